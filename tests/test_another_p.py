"""A simulation keeps the masks and the probability that it started with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout.functional.masks import apply_mask
from tests.depth import cases
from tests.laws.catalogue import every_kind_of_dropout
from tests.laws.test_laws import RNGS, TRAIN, run


def started(row, p=0.5):
    x_seq = row.x_seq()
    layer = row.make(p=p, deterministic=False)
    _, state = run(layer, x_seq[0], deterministic=None)
    return x_seq, layer, {"state": state}


@every_kind_of_dropout
def test_a_mask_keeps_the_scale_it_was_drawn_with(row):
    x_seq, layer, state = started(row)
    assert state["state"].keys() == {"mask", "mask_p"}
    mask_p = state["state"]["mask_p"]
    rows = len(state["state"]["mask"])
    assert mask_p.shape == (rows,) + (1,) * (len(row.shape) - 1)
    assert mask_p.dtype == jnp.float32
    np.testing.assert_array_equal(mask_p, 0.5)
    expected = np.where(state["state"]["mask"], 2 * np.asarray(x_seq), 0)
    other, none = layer.clone(p=0.1), layer.clone(p=1.0)
    for y_seq in (
        none.apply(state, x_seq[0])[None],
        other.clone(step_mode="m").apply(state, x_seq),
        sd.simulate(other, state, x_seq)[0],
    ):
        np.testing.assert_array_equal(y_seq, expected[: len(y_seq)])
    _, after = other.apply(state, x_seq[0], mutable=["state"])
    for name, leaf in state["state"].items():
        assert after["state"][name] is leaf


def test_the_mean_of_ones_stays_1_when_p_changes_on_the_way():
    x = jnp.ones((64, 512))
    _, state = run(sd.Dropout(0.5), x)
    y, _ = run(sd.Dropout(0.1), x, {"state": state})
    assert abs(float(y.mean()) - 1) < 0.05


def test_another_p_counts_from_the_next_simulation_on():
    x = jnp.ones((64, 512))
    _, state = run(sd.Dropout(0.5), x)
    y, state = run(sd.Dropout(0.1), x, {"state": sd.reset_masks(state)})
    np.testing.assert_array_equal(state["mask_p"], np.float32(0.1))
    assert abs(float((y == 0).mean()) - 0.1) < 0.02


def test_p_of_0_reads_nothing_and_leaves_what_is_stored():
    x = jnp.ones((4, 8))
    _, state = run(sd.Dropout(0.5), x)
    y, after = run(sd.Dropout(0.0), x, {"state": state})
    assert y is x
    assert after["mask_p"] is state["mask_p"]


@cases("p", [0.3, 1.0, 1 - 1e-9], short=[0.3])
def test_reading_a_mask_rounds_as_drawing_it_does(p):
    with jax.enable_x64(True):
        for dtype in ("bfloat16", "float64", "complex64", "bool"):
            x = (jnp.arange(24.0).reshape(4, 6) / 7).astype(dtype)
            first, state = run(sd.Dropout(p), x)
            again, _ = run(sd.Dropout(p), x, {"state": state})
            assert again.dtype == first.dtype
            np.testing.assert_array_equal(again, first, err_msg=dtype)
            np.testing.assert_array_equal(apply_mask(x, state["mask"], p), first)


def test_rows_that_were_restarted_have_a_p_of_their_own():
    x = jnp.ones((4, 256))
    done = jnp.array([True, False, False, True])
    old, new = (run(sd.Dropout(p), x)[1] for p in (0.5, 0.2))
    state = sd.reset_rows(done, old, new)
    for p in (0.5, 0.2, 0.9):
        y, _ = run(sd.Dropout(p), x, {"state": state})
        expected = np.where(done[:, None], np.float32(1.25), 2) * state["mask"]
        np.testing.assert_array_equal(y, expected)


def test_no_gradient_reaches_the_stored_probability():
    x = jnp.ones((4, 8))
    _, state = run(sd.Dropout(0.5), x)

    def loss(mask_p, x):
        given = {"state": {**state, "mask_p": mask_p}}
        return run(sd.Dropout(0.1), x, given)[0].sum()

    of_p, of_x = jax.grad(loss, argnums=(0, 1))(state["mask_p"], x)
    np.testing.assert_array_equal(of_p, 0)
    np.testing.assert_array_equal(of_x, 2.0 * state["mask"])


def test_a_mask_that_is_injected_alone_takes_the_p_of_the_layer():
    x, mask = jnp.ones((4, 8)), jnp.arange(32).reshape(4, 8) % 2 == 0
    for p, scale in ((0.2, np.float32(1.25)), (0.5, 2)):
        y, after = run(sd.Dropout(p), x, {"state": {"mask": mask}})
        np.testing.assert_array_equal(y, scale * mask)
        assert after.keys() == {"mask"}
    state = sd.init_state(sd.Dropout(0.5), {"state": {"mask": mask}}, x, **TRAIN)
    assert state.keys() == {"mask"}


def test_what_was_drawn_with_p_of_1_has_a_scale_of_0():
    """Whatever its mask says, and no infinity."""
    x = jnp.ones((2, 8))
    state = {"mask": jnp.ones((2, 8), bool), "mask_p": jnp.array([[1.0], [0.5]])}
    y, _ = run(sd.Dropout(0.2), x, {"state": state})
    np.testing.assert_array_equal(y, [[0.0] * 8, [2.0] * 8])


def test_a_probability_that_fits_no_mask_raises():
    x, layer = jnp.ones((4, 8)), sd.Dropout(0.5)
    _, state = run(layer, x)
    for mask_p in (jnp.float32(0.5), jnp.ones((1, 1)), jnp.ones((4, 1), jnp.int32)):
        with pytest.raises(ValueError, match=r"stored at state/mask_p must fit its mask"):
            run(layer, x, {"state": {**state, "mask_p": mask_p}})
    alone = {"state": {"mask_p": state["mask_p"]}}
    for of in (run, lambda *args: sd.init_state(*args[::2], args[1], **TRAIN)):
        with pytest.raises(ValueError, match=r"beside the mask.*no `mask`.*reset_masks"):
            of(layer, x, alone)


def test_lost_connections_stay_lost_and_have_no_scale():
    x = jax.random.normal(jax.random.key(1), (3, 6))
    layer = sd.DropConnectLinear(6, 4, p=0.5, invariant=True, deterministic=False)
    variables = layer.init(jax.random.key(0), x)
    y, updated = layer.apply(variables, x, rngs=RNGS, mutable=["state"])
    again = layer.clone(p=0.1).apply({**variables, **updated}, x)
    np.testing.assert_array_equal(again, y)
