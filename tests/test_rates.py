"""A probability that is an array: traced or not, one for all or one a unit."""

from operator import itemgetter

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import snn_dropout as sd
from snn_dropout import functional
from snn_dropout.functional._words import DIGITS, WORD, bernoulli, bernoulli_each
from tests.depth import cases
from tests.laws.test_laws import RNGS, TRAIN, run, within

KEY = jax.random.key(3)
RATES = np.float32([0, 0.1, 0.25, 0.5, 0.9, 1])


assert_equal = chex.assert_trees_all_equal


@jax.jit
def draw(p):
    x = jnp.ones((64, 512))
    y, state = run(sd.Dropout(p), x)
    return y, state


def test_one_program_for_all_rates():
    before = draw._cache_size()
    for p in RATES:
        y, state = draw(p)
        kept = state["mask"]
        assert within(int(kept.sum()), kept.size, 1 - float(p))
        np.testing.assert_array_equal(state["mask_p"], np.full((64, 1), p))
        scale = 0 if p == 1 else 1 / (1 - p)
        np.testing.assert_array_equal(y, np.where(kept, scale, np.float32(0)))
    assert draw._cache_size() == before + 1


def test_a_rate_of_its_own_for_each_unit():
    """Exact bounds for each of them; 0 keeps all and 1 drops all."""
    mask = functional.draw_mask(KEY, (20_000, 1, 6), RATES)
    for unit, p in enumerate(RATES):
        assert within(int(mask[..., unit].sum()), 20_000, 1 - float(p))


def test_an_array_has_the_distribution_of_each_of_its_numbers():
    """Next to its threshold, each word of 23 bits falls to the side of a static p."""
    random = np.random.default_rng(0)
    rates = [0.3, 0.5, 1e-9, 2.0**-24, 3 * 2.0**-24, 1 - 2.0**-24, 0.1, 0.9999]
    rates = np.float32([*rates, *random.random(40), *random.random(8) * 1e-6])
    for p in rates:
        threshold = round((1 - float(p)) * 2**DIGITS)
        near = np.clip(threshold + np.arange(-3, 4), 0, 2**DIGITS - 1)
        words = jnp.asarray(near, jnp.uint32) << (WORD - DIGITS)

        def generate(_, words=words):
            return (words,)

        each = bernoulli_each(generate, jnp.full(7, p))
        np.testing.assert_array_equal(each, bernoulli(generate, 1 - float(p)), str(p))

    def extremes(_):
        return (jnp.uint32([0, 2**32 - 1]),)

    for p, kept in ((0, True), (1, False), (np.nan, False)):
        np.testing.assert_array_equal(bernoulli_each(extremes, jnp.float32(p)), kept)


@cases("dtype", ["bfloat16", "float16", "float32", "float64"], short=["float64"])
def test_any_float_is_taken_and_none_widens_the_output(dtype):
    x = jnp.ones((4, 8), jnp.bfloat16)
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        p = jnp.asarray(0.25, dtype)
        y, state = run(sd.Dropout(p), x)
        traced, _ = jax.jit(lambda p: run(sd.Dropout(p), x))(p)
    assert y.dtype == jnp.bfloat16
    assert state["mask_p"].dtype == jnp.float32
    np.testing.assert_array_equal(y, run(sd.Dropout(jnp.float32(0.25)), x)[0])
    np.testing.assert_array_equal(traced, y)


@pytest.mark.parametrize("integers", [np.array([0, 1, 1]), jnp.array([0, 1, 1])])
def test_whole_numbers_that_are_0_or_1_are_rates(integers):
    y, _ = run(sd.Dropout(integers), jnp.ones((4, 3)))
    np.testing.assert_array_equal(y, [[1, 0, 0]] * 4)


LAYERS = {
    "channels last": (sd.Dropout2d, {}, (4, 3, 3, 6), (6,), (4, 1, 1, 6)),
    "channels first": (
        sd.Dropout2d,
        {"channel_axis": 1},
        (4, 6, 3, 3),
        (6, 1, 1),
        (4, 6, 1, 1),
    ),
    "examples": (sd.DropPath, {}, (6, 3, 3), (6, 1, 1), (6, 1, 1)),
    "shared": (sd.Dropout, {"broadcast_dims": (0,)}, (4, 3, 6), (6,), (1, 1, 6)),
    "one of a batch": (sd.DropPath, {}, (6, 3), (1,), (6, 1)),
}


@cases("kind", LAYERS, short=["shared"])
def test_every_layer_takes_rates_for_its_mask(kind):
    make, fields, shape, p_shape, mask_p = LAYERS[kind]
    p = jnp.full(p_shape, 0.5).at[(0,) * len(p_shape)].set(1)
    y, state = run(make(p, "m", **fields), jnp.ones((3, *shape)))
    assert state["mask_p"].shape == mask_p
    rates = np.broadcast_to(p, state["mask"].shape)
    np.testing.assert_array_equal(np.broadcast_to(state["mask_p"], rates.shape), rates)
    assert not state["mask"][rates == 1].any()
    expected = np.where(state["mask"], np.float32(2), np.float32(0))
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


# What is out of range, where it can and where it can not raise.


@jax.jit
def clipped(p, x):
    y, state = run(sd.Dropout(p), x)
    return y, state["mask"]


def test_traced_rates_out_of_range_are_clipped_and_a_nan_is_one():
    x = jnp.full((4, 8), 3.0)
    for p, scale in ((-0.5, 1), (-jnp.inf, 1), (1.5, 0), (jnp.inf, 0), (1.0000001, 0)):
        y, mask = clipped(p, x)
        np.testing.assert_array_equal(y, scale * x)
        np.testing.assert_array_equal(mask, scale == 1)
    with jax.debug_nans(False):
        y, mask = clipped(jnp.nan, x)
    assert not mask.any()
    assert jnp.isnan(y).all()


def test_checkify_finds_what_is_out_of_range():
    """Also behind `grad`, which takes apart what is compiled; and nothing in range."""
    x_seq = jnp.ones((2, 4, 6))

    def loss(x_seq, p):
        return sd.simulate(sd.Dropout(p), {}, x_seq, **TRAIN)[0].sum()

    checked = jax.jit(
        checkify.checkify(jax.grad(jax.jit(loss)), errors=checkify.float_checks)
    )
    for p in (0.0, 0.3, 1.0):
        assert checked(x_seq, p)[0].get() is None
    for p in (-0.1, 1.1, jnp.nan):
        with jax.debug_nans(False), pytest.raises(checkify.JaxRuntimeError, match="nan"):
            checked(x_seq, p)[0].throw()


def test_a_program_that_is_not_checked_has_no_effects_and_can_be_saved():
    program = jax.jit(lambda p, key: functional.draw_mask(key, (4, 8), p))
    seed = jax.random.key_data(KEY)
    assert not jax.make_jaxpr(program)(0.5, seed).effects
    saved = jax.export.export(program)(0.5, seed).serialize()
    again = jax.export.deserialize(saved).call(0.5, seed)
    np.testing.assert_array_equal(again, program(0.5, seed))


ARRAYS = {
    "nan": (jnp.array([0.1, jnp.nan]), ValueError, r"`p` must be in \[0, 1\].*with nan"),
    "above": (np.array([0.1, 1.5]), ValueError, r"\[0, 1\].*with 1\.5.*`jnp\.clip"),
    "below": (jnp.float32(-0.5), ValueError, r"\[0, 1\].*with -0\.5"),
    "percent": (jnp.int32(30), ValueError, r"\[0, 1\].*with 30"),
    "bool": (jnp.array([True, False]), TypeError, r"of dtype bool.*`p\.astype\("),
    "complex": (jnp.array([0.5j]), TypeError, r"of dtype complex64.*`p\.real\.astype\("),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_known_array_is_checked_as_a_number_is(kind):
    p, error, match = ARRAYS[kind]
    mask = jnp.ones(p.shape, bool)
    for given in (
        lambda: sd.Dropout(p),
        lambda: sd.Dropout2d(p),
        lambda: sd.DropPath(p),
        lambda: functional.draw_mask(KEY, p.shape, p),
        lambda: functional.apply_mask(mask, mask, p),
    ):
        with pytest.raises(error, match=match):
            given()


@pytest.mark.parametrize("p", [1, True, 0.5j])
def test_a_traced_array_is_of_floats(p):
    with pytest.raises(TypeError, match=r"got a traced array of dtype .*\.astype"):
        jax.jit(lambda p: functional.draw_mask(KEY, (3,), p))(p)


@cases(
    ("shape", "p_shape", "remedy"),
    [
        ((4, 6), (4,), r"`p\.reshape\(-1, 1\)`"),
        ((4, 6), (5,), "as many axes"),
        ((4, 6), (4, 5), "as many axes"),
        ((4, 6), (1, 4, 6), "as many axes"),
        ((), (1,), "as many axes"),
    ],
    short=lambda case: True,
)
def test_rates_that_do_not_fit_the_mask_raise(shape, p_shape, remedy):
    p = jnp.full(p_shape, 0.5)
    match = rf"`p` must be one number or broadcast to the mask.*{remedy}"
    layer, x = sd.Dropout(p), jnp.ones(shape)
    _, state = run(sd.Dropout(0.5), x)
    for given in (
        lambda: run(layer, x),
        lambda: run(layer, x, {"state": state}),
        lambda: run(layer, x, {"state": {"mask": state["mask"]}}),
        lambda: functional.draw_mask(KEY, shape, p),
        lambda: functional.apply_mask(x, x == 1, p),
    ):
        with pytest.raises(ValueError, match=match):
            given()
    # In inference it is not read, and the batch may be another one.
    assert layer.apply({}, x, True) is x


def test_channels_in_front_need_axes_behind_them():
    layer, x = sd.Dropout2d(jnp.full(6, 0.5), channel_axis=1), jnp.ones((4, 6, 3, 3))
    with pytest.raises(ValueError, match=r"`p\.reshape\(1, -1, 1, 1\)` for axis 1 of it"):
        run(layer, x)
    # Obeyed to the letter.
    _, state = run(layer.clone(p=layer.p.reshape(1, -1, 1, 1)), x)
    assert state["mask_p"].shape == (4, 6, 1, 1)


# Gradients.


def test_no_gradient_reaches_p_and_all_are_finite():
    x = jnp.ones((8, 6))

    def loss(p, x):
        y, state = run(sd.Dropout(p), x)
        return (y**2).sum(), state

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (of_p, of_x), state = jax.jit(gradient)(jnp.asarray(RATES), x)
    np.testing.assert_array_equal(of_p, 0)
    scale = np.where(RATES < 1, 1 / (1 - np.minimum(RATES, 0.99)), 0)
    np.testing.assert_allclose(of_x, np.where(state["mask"], 2 * scale**2, 0), rtol=1e-5)
    _, tangent = jax.jvp(lambda p: loss(p, x)[0], (jnp.asarray(RATES),), (jnp.ones(6),))
    np.testing.assert_array_equal(tangent, 0)


# What a simulation started with, it keeps.


def test_a_mask_keeps_its_rates_when_p_changes_on_the_way():
    x = jnp.arange(1.0, 25).reshape(4, 6)
    drawn = {}
    for name, p in (("one", jnp.float32(0.3)), ("each", RATES), ("number", 0.3)):
        drawn[name] = run(sd.Dropout(p), x)
    for name, (first, state) in drawn.items():
        for other in (jnp.float32(0.0), RATES[::-1].copy(), 0.9, jnp.full((4, 1), 0.7)):
            again, after = run(sd.Dropout(other), x, {"state": state})
            # A number is rounded once, and float32 twice.
            np.testing.assert_allclose(again, first, rtol=3e-7, err_msg=name)
            assert after["mask"] is state["mask"]
            assert after["mask_p"] is state["mask_p"]
    for name in ("one", "each"):
        first, state = drawn[name]
        again, _ = run(sd.Dropout(jnp.float32(0.9)), x, {"state": state})
        np.testing.assert_array_equal(again, first)


def test_rows_are_restarted_with_rates_of_their_own():
    x, done = jnp.ones((4, 6)), jnp.array([True, False, False, True])
    old, new = (run(sd.Dropout(p), x)[1] for p in (RATES, RATES[::-1].copy()))
    state = sd.reset_rows(done, old, new, axis=0)
    y, _ = run(sd.Dropout(jnp.float32(0.5)), x, {"state": state})
    rates = np.where(done[:, None], RATES[::-1], RATES)
    np.testing.assert_array_equal(state["mask_p"], rates)
    scale = np.where(rates < 1, 1 / (1 - np.minimum(rates, np.float32(0.95))), 0)
    np.testing.assert_allclose(y, scale * state["mask"], rtol=1e-6)


def test_an_array_of_0_is_drawn_with_and_stored():
    """It may be another number in the next call; only a static 0 stores nothing."""
    x = jnp.ones((4, 6))
    y, state = run(sd.Dropout(jnp.float32(0)), x)
    np.testing.assert_array_equal(y, x)
    assert state["mask"].all()
    assert sd.init_state(sd.Dropout(jnp.float32(0)), {}, x, **TRAIN).keys() == state.keys()


# Where layers are built and run.


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, p, train=True):
        x = nn.Dense(6)(x)
        return sd.Dropout(p, name="drop")(x, deterministic=not train)


class Lifted(nn.Module):
    lift: object

    @nn.compact
    def __call__(self, x, p):
        return self.lift(Net)(name="net")(x, p)


def test_every_way_of_running_takes_a_traced_p():
    x_seq = jax.random.normal(KEY, (3, 4, 5))
    params = Net().init(KEY, x_seq[0], 0.5)["params"]

    @jax.jit
    def ways(p):
        given = {"params": params}
        y_seq, updated = sd.simulate(Net(), given, x_seq, p, rngs=RNGS)
        multi = sd.MultiStep(Net()).apply(given, x_seq, p, rngs=RNGS)
        state = sd.init_state(Net(), given, x_seq[0], p, rngs=RNGS)
        mean = sd.monte_carlo(
            Net(), given, x_seq, p, False, rngs=RNGS, samples=2, at_once=2
        ).mean
        return y_seq, multi, updated["state"], state, mean

    for p in (0.3, 0.9):
        y_seq, multi, updated, state, mean = ways(p)
        np.testing.assert_array_equal(y_seq, multi)
        assert_equal(updated, state)
        assert mean.shape == (4, 6)
        assert (y_seq[:, ~state["drop"]["mask"]] == 0).all()


@cases("lift", [nn.jit, nn.remat], short=[nn.jit])
def test_a_lifted_module_builds_the_layer_inside(lift):
    x = jax.random.normal(KEY, (4, 5))
    model = Lifted(lift)
    params = model.init(KEY, x, 0.5)["params"]

    @jax.jit
    def train(params, p):
        def loss(params):
            y, _ = model.apply({"params": params}, x, p, rngs=RNGS, mutable=["state"])
            return (y**2).sum()

        return jax.grad(loss)(params)["net"]["Dense_0"]["kernel"]

    assert not train(params, 1.0).any()
    assert train(params, 0.0).all()


def test_nn_jit_of_a_layer_that_has_an_array_says_what_to_type():
    """A NumPy array with axes has a hash there, of its numbers."""
    x = jnp.ones((4, 6))
    for p in (jnp.float32(0.5), jnp.asarray(RATES), np.array(0.5)):
        jitted = nn.jit(sd.Dropout)(p, deterministic=False)
        with pytest.raises(TypeError, match=r"where `nn\.jit`.*Hand it to the call"):
            jitted.apply({}, x, rngs=RNGS, mutable=["state"])
    for p in (0.0, 1.0):
        jitted = nn.jit(sd.Dropout)(np.full(6, p), deterministic=False)
        y, _ = jitted.apply({}, x, rngs=RNGS, mutable=["state"])
        np.testing.assert_array_equal(y, (1 - p) * x)


def test_vmap_over_rates_is_one_at_a_time():
    x = jnp.ones((4, 6))
    many = jax.vmap(lambda p: run(sd.Dropout(p), x))(jnp.asarray(RATES))
    for n, p in enumerate(RATES):
        one = run(sd.Dropout(jnp.float32(p)), x)
        assert_equal(one, jax.tree.map(itemgetter(n), many))
