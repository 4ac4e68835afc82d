"""Masks that axes of one step share, the batch included; and spikes that stay spikes."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout import functional
from tests.depth import cases
from tests.laws.test_laws import RNGS, TRAIN, run, within
from tests.neurons import LIF

X_SEQ = jax.random.normal(jax.random.key(1), (3, 4, 5, 6)) + 5


@cases(
    ("dims", "shape"),
    [
        ((), (4, 5, 6)),
        ((0,), (1, 5, 6)),
        ((1,), (4, 1, 6)),
        ((-1,), (4, 5, 1)),
        ((-3, 2), (1, 5, 1)),
        ([2, 0, 1], (1, 1, 1)),
        (np.arange(1, 3).tolist(), (4, 1, 1)),
        (range(2), (1, 1, 6)),
    ],
    short=lambda case: True,
)
@cases("step_mode", ["s", "m"], short=["m"])
def test_axes_are_those_of_one_step_in_either_mode(dims, shape, step_mode):
    layer = sd.Dropout(0.5, step_mode, broadcast_dims=dims)
    x = X_SEQ if step_mode == "m" else X_SEQ[0]
    y, state = run(layer, x)
    assert state["mask"].shape == shape
    assert state["mask_p"].shape == (shape[0], 1, 1)
    np.testing.assert_array_equal(y, np.where(state["mask"], 2 * x, 0))


def test_axes_that_are_given_as_a_list_have_a_hash():
    layer = sd.Dropout(0.5, broadcast_dims=[0, 1])
    assert hash(layer) == hash(layer.clone()) == hash(sd.Dropout(broadcast_dims=(0, 1)))
    assert layer.clone() == layer


def test_a_mask_that_is_shared_by_the_batch_keeps_each_feature_with_1_minus_p():
    x = jnp.ones((2, 20_000))
    y, state = run(sd.Dropout(0.3, broadcast_dims=(0,)), x)
    assert within(int(state["mask"].sum()), 20_000, 0.7)
    np.testing.assert_array_equal(y[0], y[1])


def test_shared_axes_are_those_of_channels_and_paths():
    """Bit for bit: a mask belongs to its shape."""
    for broadcast_dims, other in (((1,), sd.Dropout1d(0.3)), ((1, 2), sd.DropPath(0.3))):
        y, state = run(sd.Dropout(0.3, broadcast_dims=broadcast_dims), X_SEQ[0])
        expected, as_well = run(other, X_SEQ[0])
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(state["mask"], as_well["mask"])


@pytest.mark.parametrize(
    "dims", [1, "0", (1.0,), (True,), (None,), None, ((0,),), jnp.array([0])]
)
@pytest.mark.short
def test_axes_are_a_tuple_of_whole_numbers(dims):
    with pytest.raises(TypeError, match=r"`broadcast_dims` must be a tuple.*\(1,\)"):
        sd.Dropout(broadcast_dims=dims)


@pytest.mark.short
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("dims", "match"),
    [
        ((3,), r"without T, .*\(4, 5, 6\), but got \(3,\); there are axes from -3 to 2"),
        ((0, -4), r"axes from -3 to 2"),
        ((1, 1), r"each once, but got \(1, 1\); write `broadcast_dims=\(1,\)`"),
        ((2, 0, -3), r"each once.*write `broadcast_dims=\(0, 2\)`"),
    ],
)
def test_each_axis_is_one_of_a_step_and_there_once(dims, match, deterministic):
    for mode, x in (("s", X_SEQ[0]), ("m", X_SEQ)):
        layer = sd.Dropout(0.5, mode, broadcast_dims=dims)
        with pytest.raises(ValueError, match=match):
            run(layer, x, deterministic=deterministic)
    with pytest.raises(ValueError, match="no axis to share"):
        run(sd.Dropout(broadcast_dims=(0,)), jnp.float32(1))


@pytest.mark.parametrize("layer", [sd.Dropout1d, sd.Dropout2d, sd.Dropout3d, sd.DropPath])
def test_layers_that_share_axes_by_themselves_have_no_such_field(layer):
    with pytest.raises(TypeError, match="broadcast_dims"):
        layer(broadcast_dims=(0,))


def test_a_stored_mask_of_another_sharing_raises():
    layer, x = sd.Dropout(0.5, broadcast_dims=(0,)), X_SEQ[0]
    _, shared = run(layer, x)
    _, own = run(layer.clone(broadcast_dims=()), x)
    for other, state in ((layer, own), (layer.clone(broadcast_dims=()), shared)):
        with pytest.raises(ValueError, match=r"must fit the input"):
            run(other, x, {"state": state})
    # All batches have the shared one in common.
    y, _ = run(layer, x[:2], {"state": shared})
    np.testing.assert_array_equal(y, np.where(shared["mask"], 2 * x[:2], 0))


# Single examples can not be restarted where all share a mask.


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = LIF()(x)
        return sd.Dropout(0.5, broadcast_dims=(0,), deterministic=False, name="drop")(x)


@cases(
    ("features", "axis"),
    [(6, None), (6, 0), (4, 0), (4, {"LIF_0": 0, "drop": 0})],
    short=lambda case: case[0] == 4,
)
def test_rows_of_a_shared_mask_raise_and_the_error_says_what_to_type(features, axis):
    """Also where there are as many features as examples, which could be taken for them."""
    x, done = jnp.ones((4, features)), jnp.array([True, False, False, True])
    rngs = [{"dropout": jax.random.key(n)} for n in range(2)]
    state, fresh = (sd.init_state(Net(), {}, x, rngs=keys) for keys in rngs)
    state = {**state, "LIF_0": {"v": state["LIF_0"]["v"] + 5}}
    with pytest.raises(ValueError, match=r"all examples share \(`broadcast_dims`") as e:
        sd.reset_rows(done, state, fresh, axis=axis)
    assert "['drop']['mask" in str(e.value)
    # Obeyed to the letter.
    code = re.search(r"`(jax\.tree\.map.*?)`\.", str(e.value))[1]
    names = {"jax": jax, "reset_rows": sd.reset_rows, "state": state, "fresh": fresh}
    chosen = eval(code, names | {"done": done})
    for name, leaf in state["drop"].items():
        assert chosen["drop"][name] is leaf
    expected = np.broadcast_to([[0], [5], [5], [0]], (4, features))
    np.testing.assert_array_equal(chosen["LIF_0"]["v"], expected)
    # One example is restarted whole, by what is typed there, too.
    one, new = (sd.init_state(Net(), {}, x[:1], rngs=keys) for keys in rngs)
    one = {**one, "LIF_0": {"v": one["LIF_0"]["v"] + 5}}
    names |= {"state": one, "fresh": new, "done": jnp.array([True])}
    for again in (sd.reset_rows(jnp.array([True]), one, new), eval(code, names)):
        jax.tree.map(np.testing.assert_array_equal, again, new)


def test_a_stack_of_one_layer_is_still_restarted_by_its_axis():
    state = {"drop": {"mask": jnp.ones((1, 4, 6), bool), "mask_p": jnp.ones((1, 4, 1))}}
    fresh = jax.tree.map(lambda leaf: leaf * 0, state)
    fresh["drop"]["mask"] = fresh["drop"]["mask"].astype(bool)
    done = jnp.arange(4) == 1
    with pytest.raises(ValueError, match=r"\[L, N, \.\.\.\], write `axis=1`"):
        sd.reset_rows(done, state, fresh)
    chosen = sd.reset_rows(done, state, fresh, axis=1)
    np.testing.assert_array_equal(chosen["drop"]["mask"][0, :, 0], ~done)
    # A mask that its examples share within each layer of a stack has no rows either.
    shared = {"mask": jnp.ones((4, 1, 4), bool)}
    with pytest.raises(ValueError, match=r"share.*put it back into the result"):
        sd.reset_rows(done, shared, shared, axis=1)


# Spikes that stay 0 and 1.


@cases("make", [sd.Dropout, sd.Dropout1d, sd.DropPath], short=[sd.Dropout])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.bool_, jnp.int8])
def test_unscaled_spikes_stay_0_and_1(make, dtype):
    spikes = (X_SEQ > 5).astype(dtype)
    layer = make(0.5, "m", scale=False)
    y, state = run(layer, spikes)
    scaled, as_well = run(make(0.5, "m"), spikes)
    assert y.dtype == scaled.dtype
    jax.tree.map(np.testing.assert_array_equal, state, as_well)
    np.testing.assert_array_equal(y, np.where(state["mask"], spikes, 0))
    assert layer.apply({}, spikes, True) is spikes


def test_a_stored_mask_is_not_scaled_either_and_each_layer_scales_as_it_says():
    x = X_SEQ[0]
    for p in (0.5, jnp.float32(0.5), jnp.full(6, 0.5)):
        plain, scaled = sd.Dropout(p, scale=False), sd.Dropout(p)
        _, state = run(plain, x)
        assert state.keys() == {"mask", "mask_p"}
        for other in (plain, plain.clone(p=0.1), plain.clone(p=jnp.float32(0.9))):
            y, _ = run(other, x, {"state": state})
            np.testing.assert_array_equal(y, np.where(state["mask"], x, 0))
        y, _ = run(scaled, x, {"state": state})
        np.testing.assert_array_equal(y, np.where(state["mask"], 2 * x, 0))


def test_the_average_of_what_is_not_scaled_is_1_minus_p():
    x = jnp.ones((64, 512))
    y, _ = run(sd.Dropout(0.25, scale=False), x)
    assert within(int(y.sum()), y.size, 0.75)


@pytest.mark.parametrize("scale", [1, 0, None, "no", np.bool_(True), 1.0])
def test_scale_is_a_bool(scale):
    for make in (sd.Dropout, sd.Dropout2d, sd.DropPath):
        with pytest.raises(TypeError, match=r"`scale` must be True or False.*1 / \(1 - p"):
            make(scale=scale)
    with pytest.raises(TypeError, match=r"`scale` must be True or False"):
        functional.apply_mask(X_SEQ, X_SEQ > 5, 0.5, scale=scale)


def test_a_simulation_of_unscaled_spikes_is_binary_in_every_way():
    layer = sd.Dropout(0.5, scale=False)
    spikes = (X_SEQ > 5).astype(jnp.float32)
    y_seq, updated = sd.simulate(layer, {}, spikes, **TRAIN)
    assert set(np.unique(y_seq)) == {0, 1}
    multi = sd.MultiStep(layer).apply({}, spikes, **TRAIN)
    np.testing.assert_array_equal(multi, y_seq)
    whole = layer.clone(step_mode="m").apply({}, spikes, False, rngs=RNGS)
    np.testing.assert_array_equal(whole, y_seq)
    assert updated["state"].keys() == {"mask", "mask_p"}
