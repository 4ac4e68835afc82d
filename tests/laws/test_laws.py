"""The laws, one test each, over the table of all layers."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import snn_dropout as sd
from tests.laws.catalogue import STEPS, every_row
from tests.neurons import loop

RNGS = {"dropout": jax.random.key(5)}
TRAIN = {"deterministic": False, "rngs": RNGS}


def run(layer, x, variables=None, **kwargs):
    y, updated = layer.apply(variables or {}, x, mutable=["state"], **{**TRAIN, **kwargs})
    return y, updated["state"]


def four_ways(row):
    """The same simulation as a loop, in mode 'm', by `simulate` and by `MultiStep`."""
    single, multi = row.layer("s"), row.layer("m")
    return {
        "loop": lambda x: loop(single, {}, x, **TRAIN),
        "m": lambda x: multi.apply({}, x, mutable=["state"], **TRAIN),
        "simulate": lambda x: sd.simulate(single, {}, x, **TRAIN),
        "MultiStep": lambda x: sd.MultiStep(single).apply(
            {}, x, mutable=["state"], **TRAIN
        ),
    }


def within(count, n, q, alpha=1e-9):
    """Whether a count lies within the exact two-sided bounds of Binomial(n, q)."""
    return (
        scipy.stats.binom.ppf(alpha / 2, n, q)
        <= count
        <= scipy.stats.binom.isf(alpha / 2, n, q)
    )


def differ_by_chance(a, b, q):
    """Whether two masks differ in as many elements as independent ones would."""
    return within(int((a != b).sum()), a.size, 2 * q * (1 - q))


@every_row
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_jit_equals_eager(row, step_mode):
    x = row.x_seq() if step_mode == "m" else row.x_seq()[0]
    layer = row.layer(step_mode)
    chex.assert_trees_all_equal(run(layer, x), jax.jit(lambda x: run(layer, x))(x))


@every_row
def test_loop_equals_multi_step_mode_equals_simulate_equals_multistep(row):
    x_seq = row.x_seq()
    y_loop, updated_loop = four_ways(row)["loop"](x_seq)
    for way in ("m", "simulate", "MultiStep"):
        y, updated = four_ways(row)[way](x_seq)
        np.testing.assert_array_equal(y, y_loop, err_msg=way)
        chex.assert_trees_all_equal(updated, updated_loop)


@every_row
def test_gradients_of_all_four_ways_agree(row):
    x_seq, weight = row.x_seq(), row.x_seq()[::-1]
    grads = [
        jax.grad(lambda x, way=way: (way(x)[0] * weight).sum())(x_seq)
        for way in four_ways(row).values()
    ]
    for grad in grads[1:]:
        np.testing.assert_allclose(grad, grads[0], rtol=1e-6)


@every_row
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_limits_of_p(row, p):
    x_seq = row.x_seq()
    layer = row.make(p=p, step_mode="m")
    (y, updated), pullback = jax.vjp(
        lambda x: layer.apply({}, x, mutable=["state"], **TRAIN), x_seq
    )
    (grad,) = pullback((jnp.ones_like(y), jax.tree.map(_float0, updated)))
    np.testing.assert_array_equal(y, x_seq if p == 0 else 0 * x_seq)
    np.testing.assert_array_equal(grad, jnp.full_like(y, 1 - p))
    assert (updated == {}) == (p == 0), "p=0 stores nothing"


def _float0(leaf):
    return np.zeros(leaf.shape, jax.dtypes.float0)


@every_row
def test_values_are_exactly_zero_or_x_over_1_minus_p(row):
    x_seq = row.x_seq()
    y_seq, state = run(row.layer("m"), x_seq)
    assert state["mask"].shape == row.mask
    assert state["mask"].dtype == jnp.bool_
    expected = np.where(state["mask"], np.asarray(x_seq) * row.scale, 0)
    np.testing.assert_array_equal(y_seq, expected)


@every_row
def test_same_mask_at_every_step(row):
    y_seq, _ = run(row.layer("m"), row.x_seq())
    for t in range(1, STEPS):
        np.testing.assert_array_equal(y_seq[t] == 0, y_seq[0] == 0)


@every_row
def test_mask_keeps_with_probability_1_minus_p(row):
    _, state = run(row.layer(), row.x_seq(row.wide)[0])
    assert within(int(state["mask"].sum()), state["mask"].size, 1 - row.p)


@every_row
def test_another_mask_for_another_key_layer_and_example(row):
    x = row.x_seq(row.wide)[0]
    mask = run(row.layer(), x)[1]["mask"]
    other_key = run(row.layer(), x, rngs={"dropout": jax.random.key(6)})[1]["mask"]
    assert differ_by_chance(mask, other_key, 1 - row.p)

    half = mask.shape[0] // 2
    assert differ_by_chance(mask[:half], mask[half:], 1 - row.p)

    stack = sd.MultiStep(
        _Two(row.layer(deterministic=False), row.layer(deterministic=False))
    )
    _, updated = stack.apply({}, x[None], rngs=RNGS, mutable=["state"])
    first, second = (updated["state"][name]["mask"] for name in ("first", "second"))
    assert differ_by_chance(first, second, 1 - row.p)


class _Two(nn.Module):
    first: nn.Module
    second: nn.Module

    def __call__(self, x):
        return self.second(self.first(x))


@every_row
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_inference_is_the_identity_and_blind_to_keys(row, step_mode):
    x = row.x_seq() if step_mode == "m" else row.x_seq()[0]
    layer = row.layer(step_mode)
    assert layer.apply({}, x, deterministic=True) is x
    _, state = run(layer, x)
    for rngs in (None, RNGS, {"dropout": jax.random.key(9)}):
        y, updated = layer.apply(
            {"state": state}, x, deterministic=True, rngs=rngs, mutable=["state"]
        )
        assert y is x
        assert updated["state"]["mask"] is state["mask"]


@every_row
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype_in_is_dtype_out(row, dtype):
    x_seq = row.x_seq().astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        y, state = run(row.layer("m"), x_seq)
    assert y.dtype == dtype
    wide = np.asarray(x_seq, np.float32) * row.scale
    expected = np.where(state["mask"], wide, 0).astype(dtype)
    np.testing.assert_array_equal(y, expected)
    chex.assert_trees_all_equal(state, run(row.layer("m"), row.x_seq())[1])


@every_row
@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int32, jnp.uint8])
def test_spikes_come_out_as_float32(row, dtype):
    spikes = row.x_seq() > 0
    y, _ = run(row.layer("m"), spikes.astype(dtype))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, run(row.layer("m"), spikes.astype(jnp.float32))[0])


@every_row
def test_state_is_stable_after_the_first_call(row):
    x = row.x_seq()[0]
    _, first = run(row.layer(), x)
    _, second = run(row.layer(), x, {"state": first}, rngs={"dropout": jax.random.key(8)})
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_equal_dtypes(first, second)


@every_row
def test_one_trace_for_one_shape(row):
    single, multi = row.layer("s"), row.layer("m")
    functions = {
        "s": lambda state, x, key: run(
            single, x[0], {"state": state}, rngs={"dropout": key}
        ),
        "m": lambda state, x, key: run(multi, x, rngs={"dropout": key}),
        "simulate": lambda state, x, key: sd.simulate(
            single, {}, x, deterministic=False, rngs={"dropout": key}
        ),
    }
    state = sd.init_state(single, {}, row.x_seq()[0], **TRAIN)
    for name, function in functions.items():
        traces = []

        @jax.jit
        def counted(*args, function=function, traces=traces):
            traces.append(None)
            return function(*args)

        for seed in range(3):
            counted(state, row.x_seq() + seed, jax.random.key(seed))
        assert len(traces) == 1, name


@every_row
def test_no_leaked_tracers(row):
    x_seq = row.x_seq()
    with jax.checking_leaks():
        for way in four_ways(row).values():
            jax.jit(jax.grad(lambda x, way=way: way(x)[0].sum()))(x_seq)


@every_row
def test_gradient_is_zero_exactly_where_dropped(row):
    x_seq = row.x_seq()
    layer = row.layer("m")
    grad, state = jax.grad(
        lambda x: (lambda y, state: (y.sum(), state))(*run(layer, x)), has_aux=True
    )(x_seq)
    kept = jnp.broadcast_to(state["mask"], x_seq.shape)
    np.testing.assert_array_equal(grad != 0, kept)
    np.testing.assert_array_equal(grad[kept], row.scale)


@every_row
def test_vmap_over_keys_equals_stacked_runs(row):
    x_seq = row.x_seq()
    keys = jax.random.split(jax.random.key(3), 3)

    def one(key):
        return run(row.layer("m"), x_seq, rngs={"dropout": key})

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one(key) for key in keys])
    chex.assert_trees_all_equal(jax.vmap(one)(keys), stacked)


@every_row
def test_dropped_nan_and_infinity_give_zero_and_zero_gradient(row):
    x_seq = row.x_seq()
    _, state = run(row.layer("m"), x_seq)
    for bad in (jnp.nan, jnp.inf):
        poisoned = jnp.where(state["mask"], x_seq, bad)
        with jax.debug_nans(True):
            y, pullback = jax.vjp(lambda x: run(row.layer("m"), x)[0], poisoned)
            (grad,) = pullback(jnp.ones_like(y))
        assert bool(jnp.isfinite(y).all())
        assert bool(jnp.isfinite(grad).all())


@every_row
def test_masks_follow_the_sharding_of_the_input_and_not_the_number_of_devices(row):
    x_seq = row.x_seq((8, *row.shape[1:]))
    y_alone, state_alone = run(row.layer("m"), x_seq)
    for axis_type in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
        spec = jax.sharding.PartitionSpec(None, "data")
        x = jax.device_put(x_seq, jax.sharding.NamedSharding(mesh, spec))
        for function in (run, jax.jit(run, static_argnums=0)):
            y, state = function(row.layer("m"), x)
            np.testing.assert_array_equal(y, y_alone)
            chex.assert_trees_all_equal(state, state_alone)
            assert state["mask"].sharding.is_equivalent_to(
                jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")),
                state["mask"].ndim,
            )
