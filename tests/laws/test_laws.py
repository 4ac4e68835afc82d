"""The laws, one test each, over the table of all layers."""

import functools
import re
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import snn_dropout as sd
from tests.depth import cases
from tests.garbage import checking_leaks
from tests.laws.catalogue import (
    CONNECTIONS,
    DROPOUTS,
    ROWS,
    STAND,
    STEPS,
    every,
    every_connection,
    every_dropout,
    every_row,
    every_row_by_one_of_each,
)
from tests.neurons import loop

RNGS = {"dropout": jax.random.key(5)}
TRAIN = {"deterministic": False, "rngs": RNGS}


def run(layer, x, variables=None, **kwargs):
    """One call: the output, and the state it leaves."""
    y, updated = layer.apply(variables or {}, x, mutable=["state"], **{**TRAIN, **kwargs})
    return y, updated.get("state", {})


WAYS = "loop", "simulate", "MultiStep", "m"


def all_ways(row, variables):
    """The same simulation as a loop, by `simulate`, by `MultiStep` and in mode 'm'."""
    single, multi = row.layer("s"), row.layer("m")
    state = {"mutable": ["state"], **TRAIN}
    ways = [
        lambda x: loop(single, variables, x, fold=not row.held, **TRAIN),
        lambda x: sd.simulate(single, variables, x, **TRAIN),
        lambda x: sd.MultiStep(single).apply(variables, x, **state),
        lambda x: multi.apply(variables, x, **state),
    ]
    return dict(zip(WAYS, ways, strict=True))


def equal_ways(row, variables):
    """Those that are equal, not in distribution alone.

    What is fresh at each step, mode 'm' draws in its own way.
    """
    ways = all_ways(row, variables)
    return ways if row.held else {name: ways[name] for name in WAYS[:3]}


def assert_same(row, actual, desired):
    """Bit for bit, but for the rounding of sums."""
    if row.exact:
        chex.assert_trees_all_equal(actual, desired)
    else:
        chex.assert_trees_all_close(actual, desired, rtol=1e-5, atol=1e-6)


def within(count, n, q, alpha=1e-9):
    """Whether a count lies within the exact two-sided bounds of Binomial(n, q)."""
    return (
        scipy.stats.binom.ppf(alpha / 2, n, q)
        <= count
        <= scipy.stats.binom.isf(alpha / 2, n, q)
    )


def differ_by_chance(a, b, p):
    """Whether two masks differ in as many elements as independent ones would."""
    return all(
        within(int((a != b)[of].sum()), of.sum(), 2 * one * (1 - one))
        for one, of in by_rate(p, a.shape)
    )


def by_rate(p, shape):
    """Each probability of being dropped, and where it is that of an element."""
    rates = np.broadcast_to(p, shape)
    return [(one, rates == one) for one in np.unique(rates)]


@pytest.mark.optimised
@every_row_by_one_of_each
@cases("step_mode", ["s", "m"], short=["s"])
def test_jit_equals_eager(row, step_mode):
    x = row.x_seq() if step_mode == "m" else row.x_seq()[0]
    layer, variables = row.layer(step_mode), row.variables(row.x_seq()[0])
    eager = run(layer, x, variables)
    assert_same(row, jax.jit(lambda x: run(layer, x, variables))(x), eager)


@pytest.mark.optimised
@every_row
def test_loop_equals_multi_step_mode_equals_simulate_equals_multistep(row):
    x_seq, variables = row.x_seq(), row.variables(row.x_seq()[0])
    runs = {name: way(x_seq) for name, way in equal_ways(row, variables).items()}
    y_loop, updated_loop = runs.pop("loop")
    for y, updated in runs.values():
        assert_same(row, y, y_loop)
        assert_same(row, updated.get("state", {}), updated_loop["state"])
        masks = row.masks_in(updated.get("state", {}))
        assert {name: mask.shape for name, mask in masks.items()} == row.leaves
        chex.assert_trees_all_equal(masks, row.masks_in(updated_loop.get("state", {})))


@every_row_by_one_of_each
def test_gradients_of_all_four_ways_agree(row):
    x_seq, variables = row.x_seq(), row.variables(row.x_seq()[0])
    params = variables.get("params", {})

    def loss(way):
        def of(params, x_seq):
            y, _ = equal_ways(row, {**variables, "params": params})[way](x_seq)
            return (y**2 * jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)).mean()

        return of

    first, *others = (
        jax.jit(jax.grad(loss(way), argnums=(0, 1)))(params, x_seq)
        for way in equal_ways(row, variables)
    )
    for grad in others:
        chex.assert_trees_all_close(grad, first, rtol=1e-5, atol=1e-5)


@every_dropout
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_limits_of_p(row, p):
    x_seq = row.x_seq()
    layer = row.make(p=p, step_mode="m")
    (y, updated), pullback = jax.vjp(
        lambda x: layer.apply({}, x, mutable=["state"], **TRAIN), x_seq
    )
    (grad,) = pullback((jnp.ones_like(y), jax.tree.map(_no_gradient, updated)))
    np.testing.assert_array_equal(y, x_seq if p == 0 else 0 * x_seq)
    np.testing.assert_array_equal(grad, jnp.full_like(y, 1 - p))
    assert (updated == {}) == (p == 0 and not row.array), "a static 0 stores nothing"


def _no_gradient(leaf):
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.zeros(leaf.shape, leaf.dtype if floating else jax.dtypes.float0)


@every(DROPOUTS, short=(*STAND, "Dropout2d"))
def test_values_are_exactly_zero_or_x_over_1_minus_p(row):
    x_seq = row.x_seq()
    y_seq, state = run(row.layer("m"), x_seq)
    assert state["mask"].shape == row.leaves["mask"]
    assert state["mask"].dtype == jnp.bool_
    expected = np.where(state["mask"], np.asarray(x_seq) * row.scale, 0)
    np.testing.assert_array_equal(y_seq, expected)


@every_dropout
def test_same_mask_at_every_step(row):
    y_seq, _ = run(row.layer("m"), row.x_seq())
    for t in range(1, STEPS):
        np.testing.assert_array_equal(y_seq[t] == 0, y_seq[0] == 0)


@every_row_by_one_of_each
def test_masks_keep_with_probability_1_minus_p(row):
    for mask in row.masks(row.x_seq(row.wide)[0], RNGS):
        for p, of in by_rate(row.p, mask.shape):
            assert within(int(mask[of].sum()), of.sum(), 1 - p)


@every_row_by_one_of_each
def test_another_mask_for_another_key_and_example(row):
    x = row.x_seq(row.wide)[0]
    others = row.masks(x, {"dropout": jax.random.key(6)})
    for mask, other in zip(row.masks(x, RNGS), others, strict=True):
        assert differ_by_chance(mask, other, row.p)
        if len(mask) == 1:
            continue  # shared by all examples
        half = mask.shape[0] // 2
        assert differ_by_chance(mask[:half], mask[half:], row.p)
        assert differ_by_chance(mask[::2], mask[1::2], row.p), "neighbours"


@every_dropout
def test_another_mask_for_another_layer(row):
    x_seq = row.x_seq(row.wide)[:1]
    stack = sd.MultiStep(
        _Two(row.layer(deterministic=False), row.layer(deterministic=False))
    )
    _, updated = stack.apply({}, x_seq, rngs=RNGS, mutable=["state"])
    first, second = (updated["state"][name]["mask"] for name in ("first", "second"))
    assert differ_by_chance(first, second, row.p)


class _Two(nn.Module):
    first: nn.Module
    second: nn.Module

    def __call__(self, x):
        return self.second(self.first(x))


@every_dropout
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


@every_dropout
@cases("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], short=[jnp.bfloat16])
def test_dtype_in_is_dtype_out(row, dtype):
    x_seq = row.x_seq().astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        y, state = run(row.layer("m"), x_seq)
    assert y.dtype == dtype
    wide = np.asarray(x_seq, np.float32) * np.float32(row.scale)
    expected = np.where(state["mask"], wide, 0).astype(dtype)
    np.testing.assert_array_equal(y, expected)
    chex.assert_trees_all_equal(state, run(row.layer("m"), row.x_seq())[1])


@every_dropout
@cases("dtype", [jnp.bool_, jnp.int32, jnp.uint8], short=[jnp.bool_])
def test_spikes_come_out_as_float32(row, dtype):
    spikes = row.x_seq() > 0
    y, _ = run(row.layer("m"), spikes.astype(dtype))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, run(row.layer("m"), spikes.astype(jnp.float32))[0])


@every_row
def test_state_is_stable_after_the_first_call(row):
    x, variables = row.x_seq()[0], row.variables(row.x_seq()[0])
    _, first = run(row.layer(), x, variables)
    again = {**variables, "state": first}
    _, second = run(row.layer(), x, again, rngs={"dropout": jax.random.key(8)})
    chex.assert_trees_all_equal_shapes_and_dtypes(first, second)
    masks = row.masks_in(first)
    assert masks.keys() == row.leaves.keys()
    for name, mask in row.masks_in(second).items():
        assert mask is masks[name], "a stored mask is only read"


@every_row
def test_one_trace_for_one_shape(row):
    """A call returns a state of the types that it was given, so none is traced anew."""
    single, multi = row.layer("s"), row.layer("m")
    params = {"params": row.variables(row.x_seq()[0]).get("params", {})}
    functions = {
        "s": lambda state, x, key: run(
            single, x[0], {**params, "state": state}, rngs={"dropout": key}
        )[1],
        "m": lambda state, x, key: run(
            multi, x, {**params, "state": state}, rngs={"dropout": key}
        )[1],
        "simulate": lambda state, x, key: sd.simulate(
            single,
            {**params, "state": state},
            x,
            deterministic=False,
            rngs={"dropout": key},
        )[1].get("state", {}),
    }

    def types(state):
        typed = jax.tree.map(jax.typeof, state)
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), typed)

    state = sd.init_state(single, params, row.x_seq()[0], **TRAIN)
    for name, function in functions.items():
        after = jax.eval_shape(function, state, row.x_seq(), jax.random.key(0))
        assert types(after) == types(state), name


@every(ROWS, short=["DropConnect invariant"])
@cases("way", WAYS, short=["simulate"])
def test_no_leaked_tracers(row, way):
    x_seq, variables = row.x_seq(), row.variables(row.x_seq()[0])
    run_it = all_ways(row, variables)[way]
    with checking_leaks():
        jax.jit(jax.grad(lambda x: run_it(x)[0].sum())).trace(x_seq)


@every_dropout
def test_gradient_is_zero_exactly_where_dropped(row):
    x_seq = row.x_seq()
    layer = row.layer("m")
    grad, state = jax.grad(
        lambda x: (lambda y, state: (y.sum(), state))(*run(layer, x)), has_aux=True
    )(x_seq)
    kept = jnp.broadcast_to(state["mask"], x_seq.shape)
    np.testing.assert_array_equal(grad, np.where(kept, row.scale, 0))


@every_row_by_one_of_each
def test_vmap_over_keys_equals_stacked_runs(row):
    x_seq, variables = row.x_seq(), row.variables(row.x_seq()[0])
    # Of other keys JAX says that it draws a whole batch from the first.
    keys = jax.random.split(jax.random.key(3, impl="threefry2x32"), 3)

    def one(key):
        return run(row.layer("m"), x_seq, variables, rngs={"dropout": key})

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one(key) for key in keys])
    assert_same(row, jax.vmap(one)(keys), stacked)


@every(CONNECTIONS, short=["DropConnect spiking"])
def test_inference_is_the_same_in_all_ways_and_its_expectation_blind_to_keys(row):
    x_seq, variables = row.x_seq(), row.variables(row.x_seq()[0], deterministic=None)
    stateful = isinstance(row.layer().activation, nn.Module)
    for fields in [{}] if stateful else [{}, {"inference": "analytic"}]:
        single = row.layer(samples_num=8, **fields)
        given = {"deterministic": True, **({} if fields else {"rngs": RNGS})}
        y_seq, updated = sd.simulate(single, variables, x_seq, **given)
        y_loop, updated_loop = loop(single, variables, x_seq, fold=not fields, **given)
        assert_same(row, y_seq, y_loop)
        assert_same(row, updated.get("state", {}), updated_loop.get("state", {}))
        assert not set(row.leaves) & set(updated.get("state", {})), "no mask is drawn"


@every_connection
@cases("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], short=[jnp.bfloat16])
@cases("deterministic", [True, False], short=[False])
def test_a_linear_layer_computes_in_its_dtype(row, dtype, deterministic):
    layer = row.layer("m", dtype=dtype, param_dtype=dtype, samples_num=4)
    x_seq = row.x_seq().astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        variables = layer.init(jax.random.key(0), x_seq, deterministic)
        y, _ = run(layer, x_seq, variables, deterministic=deterministic)
    assert y.dtype == dtype


@every_connection
def test_p_of_0_is_a_dense_layer_and_p_of_1_loses_everything(row):
    x_seq = row.x_seq()
    for deterministic in (True, False):
        dense = row.make(p=0.0, step_mode="m")
        variables = dense.init(jax.random.key(0), x_seq, deterministic)
        y, updated = dense.apply(variables, x_seq, deterministic, mutable=["state"])
        plain = nn.Dense(40, use_bias=dense.use_bias)
        z = plain.apply({"params": variables["params"]}, x_seq)
        expected = (
            z
            if dense.activation is None
            else sd.simulate(_Call(dense.activation), {}, z)[0]
        )
        np.testing.assert_array_equal(y, expected)
        assert not set(row.leaves) & set(updated.get("state", {})), "p=0 stores no mask"
        nothing = row.make(p=1.0, step_mode="m", samples_num=4)
        y, _ = run(nothing, x_seq, variables, deterministic=deterministic)
        np.testing.assert_array_equal(y, jnp.zeros_like(y))


class _Call(nn.Module):
    function: Callable

    def __call__(self, x):
        return self.function(x)


@every_dropout
def test_dropped_nan_and_infinity_give_zero_and_zero_gradient(row):
    x_seq = row.x_seq()
    _, state = run(row.layer("m"), x_seq)
    for bad in (jnp.nan, jnp.inf):
        with jax.debug_nans(False):
            poisoned = jnp.where(state["mask"], x_seq, bad)
        with jax.debug_nans(True):
            y, pullback = jax.vjp(lambda x: run(row.layer("m"), x)[0], poisoned)
            (grad,) = pullback(jnp.ones_like(y))
        assert bool(jnp.isfinite(y).all())
        assert bool(jnp.isfinite(grad).all())


@every(DROPOUTS, short=["Dropout p=0.3"])
@cases("axis", [0, -1], short=[0])
def test_masks_follow_the_sharding_of_the_input_and_not_the_number_of_devices(row, axis):
    # 40 is no multiple of the 32 bits of a word, nor is the share of a device, 5.
    shape = list(row.shape)
    shape[axis] = 40
    x_seq, layer = row.x_seq(shape), row.layer("m")
    y_alone, state_alone = run(layer, x_seq)
    spec = [None] * len(shape)
    spec[axis] = "data"
    of_mask = [name if length > 1 else None for name, length in
               zip(spec, state_alone["mask"].shape, strict=True)]  # fmt: skip
    for axis_type in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))

        def sharding(*spec, mesh=mesh):
            return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

        x = jax.device_put(x_seq, sharding(None, *spec))
        function = functools.partial(run, layer)
        for called in (function, jax.jit(function)):
            y, state = called(x)
            np.testing.assert_array_equal(y, y_alone)
            chex.assert_trees_all_equal(state, state_alone)
            mask = state["mask"]
            assert mask.sharding.is_equivalent_to(sharding(*of_mask), mask.ndim)
        program = jax.jit(function).lower(x).compile().as_text()
        assert not re.findall(COLLECTIVES, program), "each device makes its own part"


COLLECTIVES = r"\b(?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\b"
