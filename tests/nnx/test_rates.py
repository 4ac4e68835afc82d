"""A probability that is an array: state of an NNX model, where a number is structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests.depth import cases
from tests.nnx.catalogue import KEY, RNGS, masks_of, mode  # noqa: F401

X_SEQ = jnp.ones((3, 4, 6))
UNITS = np.linspace(0, 1, 6, dtype=np.float32)
VALUES = {"number": 0.5, "one": jnp.float32(0.25), "per unit": UNITS}


def of_linen(p):
    return sd.simulate(sd.Dropout(p), {}, X_SEQ, deterministic=False, rngs=RNGS)


def leaves_of(layer):
    return [leaf for leaf in jax.tree.leaves(nnx.state(layer)) if leaf is not None]


def in_place(layer, x_seq, p):
    layer.p = p
    return sdn.simulate(layer, x_seq, key=KEY)


@pytest.mark.short
@pytest.mark.parametrize("before", VALUES)
@pytest.mark.parametrize("after", VALUES)
def test_another_p_of_another_kind_is_set_by_assignment(before, after):
    layer = sdn.Dropout(VALUES[before])
    layer.p = VALUES[after]
    expected, _ = of_linen(VALUES[after])
    np.testing.assert_array_equal(sdn.simulate(layer, X_SEQ, key=KEY), expected)
    assert len(leaves_of(layer)) == (after != "number")
    graphdef, state = nnx.split(layer)
    hash(graphdef)
    again = nnx.merge(graphdef, state)
    np.testing.assert_array_equal(sdn.simulate(again, X_SEQ, key=KEY), expected)


def test_one_program_for_all_rates():
    run = nnx.jit(lambda layer, x_seq: sdn.simulate(layer, x_seq, key=KEY))
    traced, layer = [], sdn.Dropout(jnp.float32(0))
    seen = nnx.jit(lambda layer, x: traced.append(x) or layer.p)
    for p in (0, 0.1, 0.5, 1):
        layer.p = jnp.float32(p)
        expected, _ = of_linen(jnp.float32(p))
        np.testing.assert_array_equal(run(layer, X_SEQ), expected)
        assert float(seen(layer, X_SEQ)) == np.float32(p)
    assert len(traced) == 1


@pytest.mark.usefixtures("mode")
def test_rates_in_each_mode_of_nnx():
    expected, state = of_linen(UNITS)
    layer = sdn.Dropout(UNITS, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda layer, x_seq: sdn.simulate(layer, x_seq, key=KEY))
    np.testing.assert_array_equal(run(layer, X_SEQ), expected)
    with sdn.simulation(layer, X_SEQ[0], key=KEY):
        for name, mask in state["state"].items():
            np.testing.assert_array_equal(masks_of(layer)[name,], mask)
        step = nnx.jit(lambda layer, x: layer(x))
        np.testing.assert_array_equal(jnp.stack([step(layer, x) for x in X_SEQ]), expected)
    assert len(leaves_of(layer)) == 3  # `p`, and what the stream has
    np.testing.assert_array_equal(layer.p, UNITS)


@pytest.mark.usefixtures("mode")
@cases(
    "before", [0.5, UNITS], ids=["number", "array"], short=lambda before: before is UNITS
)
def test_a_traced_rate_is_set_before_a_call(before):
    expected, _ = of_linen(UNITS)
    layer = sdn.Dropout(before)
    graphdef, state = nnx.split(layer)

    def merged(x_seq, p):
        return in_place(nnx.merge(graphdef, state, copy=True), x_seq, p)

    def built(x_seq, p):
        return sdn.simulate(sdn.Dropout(p), x_seq, key=KEY)

    for run in (merged, built):
        np.testing.assert_array_equal(jax.jit(run)(X_SEQ, UNITS), expected)
    assert isinstance(layer.p, float) == isinstance(before, float)


def test_a_rate_that_is_set_inside_of_nnx_jit_stays():
    expected, _ = of_linen(UNITS)
    layer = sdn.Dropout(0.5)
    np.testing.assert_array_equal(nnx.jit(in_place)(layer, X_SEQ, UNITS), expected)
    np.testing.assert_array_equal(layer.p, UNITS)


def test_a_simulation_keeps_the_rates_that_it_started_with():
    layer = sdn.Dropout(UNITS)
    with sdn.simulation(layer, X_SEQ[0], key=KEY):
        before = layer(X_SEQ[0])
        for p in (jnp.float32(0.5), np.float32([0.5] * 6), 0.5):
            layer.p = p
            np.testing.assert_allclose(layer(X_SEQ[0]), before, rtol=1e-6)
        layer.p = jnp.float32(0)  # an array: no number that a program knows
        np.testing.assert_array_equal(layer(X_SEQ[0]), before)
        layer.p = jnp.full(5, 0.5)
        with pytest.raises(ValueError, match="broadcast to the mask"):
            layer(X_SEQ[0])


def test_rows_restart_with_the_rates_of_each_unit():
    layer = sdn.Dropout(UNITS)
    sdn.init_masks(layer, X_SEQ[0], key=KEY)
    before = masks_of(layer)
    layer.p = UNITS[::-1]
    sdn.reset_rows(jnp.array([True, False, False, True]), layer, key=KEY)
    after = masks_of(layer)
    np.testing.assert_array_equal(after["mask_p",][1:3], before["mask_p",][1:3])
    np.testing.assert_array_equal(after["mask_p",][::3], [UNITS[::-1]] * 2)
    np.testing.assert_array_equal(after["mask",][1:3], before["mask",][1:3])
    assert after["mask",][::3, 5].all()
    assert not after["mask",][::3, 0].any()


def test_a_rate_of_an_array_is_part_of_what_is_saved():
    layer = sdn.Dropout(UNITS)
    sdn.init_masks(layer, X_SEQ[0], key=KEY)
    resumed = sdn.Dropout(jnp.zeros(6))
    sdn.init_masks(resumed, X_SEQ[0], key=KEY)
    nnx.update(resumed, nnx.state(layer))
    np.testing.assert_array_equal(resumed.p, UNITS)
    np.testing.assert_array_equal(resumed(X_SEQ[0]), layer(X_SEQ[0]))


def test_whole_sequences_samples_and_carried_layers_take_rates():
    expected, _ = of_linen(UNITS)
    whole = sdn.Dropout(UNITS, step_mode="m", rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(whole(X_SEQ, rngs=KEY), expected)
    result = sdn.monte_carlo(sdn.Dropout(UNITS), X_SEQ, key=KEY, samples=8, entropies=False)
    assert (result.mean[:, 0] == 1).all()
    assert (result.mean[:, -1] == 0).all()
    carried = sdn.Carried(sdn.Dropout(UNITS, rngs=nnx.Rngs(0)))
    y, _ = jax.jit(lambda x: carried(x, KEY))(X_SEQ[0])
    assert (y[:, 0] == 1).all()
    assert (y[:, -1] == 0).all()
    assert isinstance(carried.initial_state(4), jax.Array)


def test_a_parameter_learns_beside_rates():
    """No gradient reaches them, and a 1 among them makes none NaN."""
    model = nnx.Sequential(nnx.Linear(6, 6, rngs=nnx.Rngs(0)), sdn.Dropout(UNITS))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, p):
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.layers[1].p = p
        return sdn.simulate(model, X_SEQ, key=KEY).sum()

    of_params, of_rates = jax.jit(jax.grad(loss, (0, 1)))(params, UNITS)
    assert not of_rates.any()
    bias = of_params["layers"][0]["bias"][...]
    assert np.isfinite(bias).all()
    assert bias[0] == 12
    assert bias[-1] == 0
