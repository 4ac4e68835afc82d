"""Masks as pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from snn_dropout import functional
from tests.depth import cases
from tests.jaxprs import count, drawn_by, equations

KEY = jax.random.key(0)


@cases("p", [0.01, 0.1, 0.3, 0.5, 0.9], short=[0.1, 0.5])
def test_draw_mask_keeps_with_probability_1_minus_p(p):
    mask = functional.draw_mask(KEY, (1000, 1000), p)
    assert mask.dtype == jnp.bool_
    low, high = (
        f(5e-10, 10**6, 1 - p) for f in (scipy.stats.binom.ppf, scipy.stats.binom.isf)
    )
    assert low <= int(mask.sum()) <= high


@cases("p", [0.5, 0.25, 0.3], short=[0.25, 0.3])
@cases("length", [10, 61, 64, 100], short=[10, 64])
def test_neighbours_are_independent_whatever_the_length_of_a_row(p, length):
    # Bits of a word for some of these, comparisons for the others.
    mask = np.asarray(functional.draw_mask(KEY, (4000, length), p)).astype(float)
    close = 6 / np.sqrt(4000)  # six standard deviations of a correlation
    correlations = np.corrcoef(mask, rowvar=False)
    assert np.abs(correlations - np.eye(length)).max() < close
    assert abs(np.corrcoef(mask[1:].ravel(), mask[:-1].ravel())[0, 1]) < close
    assert np.abs(mask.mean(0) - (1 - p)).max() < close


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_axes_of_length_1_at_the_end_change_nothing(p):
    mask = functional.draw_mask(KEY, (8, 64), p)
    np.testing.assert_array_equal(
        functional.draw_mask(KEY, (8, 64, 1, 1), p)[..., 0, 0], mask
    )
    column = functional.draw_mask(KEY, (8,), p)
    np.testing.assert_array_equal(functional.draw_mask(KEY, (8, 1), p)[:, 0], column)


@cases("shape", [(64,), (3, 64), (3, 61)], short=[(3, 64)])
def test_drawing_under_vmap_is_drawing_one_by_one(shape):
    keys = jax.random.split(KEY, 3)
    masks = jax.vmap(lambda key: functional.draw_mask(key, shape, 0.25))(keys)
    for key, mask in zip(keys, masks, strict=True):
        np.testing.assert_array_equal(functional.draw_mask(key, shape, 0.25), mask)
    assert not (masks[0] == masks[1]).all()


@pytest.mark.parametrize(
    ("p", "expected"), [(0, True), (0.0, True), (1, False), (1.0, False)]
)
def test_draw_mask_limits(p, expected):
    """Nothing is drawn, so that no number of elements is too large for all to be alike."""
    np.testing.assert_array_equal(functional.draw_mask(KEY, (3, 5), p), expected)
    program = jax.make_jaxpr(lambda key: functional.draw_mask(key, (3, 5), p))(KEY)
    assert not drawn_by(program.jaxpr)


def test_draw_mask_draws_the_same_whatever_x64():
    mask = functional.draw_mask(KEY, (1000,), 0.1)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(functional.draw_mask(KEY, (1000,), 0.1), mask)
        jaxpr = jax.make_jaxpr(lambda key: functional.draw_mask(key, (1000,), 0.1))(
            KEY
        ).jaxpr
        dtypes = {v.aval.dtype for e in equations(jaxpr) for v in e.outvars}
    assert np.dtype("float64") not in dtypes
    assert count(jaxpr, "random_bits") == 1


@pytest.mark.parametrize("shape", [(64,), (3, 32), (3, 61)])
def test_a_mask_is_kept_in_memory_and_not_made_where_it_is_read(shape):
    """Else a compiler may draw it again for each time step."""
    program = jax.make_jaxpr(lambda key: functional.draw_mask(key, shape, 0.3))(KEY).jaxpr
    assert count(program, "optimization_barrier") == 1


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_typed_and_raw_keys_give_the_same_mask(make_key):
    mask = functional.draw_mask(make_key(3), (100,), 0.5)
    np.testing.assert_array_equal(
        mask, functional.draw_mask(jax.random.key(3), (100,), 0.5)
    )


def test_apply_mask_keeps_the_mask_and_nothing_else_for_the_gradient():
    mask = functional.draw_mask(KEY, (4, 6), 0.5)
    x_seq = jnp.ones((10, 4, 6))
    _, pullback = jax.vjp(lambda x: functional.apply_mask(x, mask, 0.5), x_seq)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pullback)]
    assert shapes == [((4, 6), np.dtype(bool))], "no copy for each time step"


@cases("order", [1, 2], short=[2])
def test_gradients_forward_and_reverse(order):
    mask = functional.draw_mask(KEY, (4, 6), 0.3)
    with jax.enable_x64(True):  # finite differences of second order need it
        x = jax.random.normal(KEY, (3, 4, 6))
        check_grads(lambda x: functional.apply_mask(x, mask, 0.3) ** 2, (x,), order=order)


def test_wide_and_complex_dtypes():
    mask = jnp.array([True, False])
    with jax.enable_x64(True):
        y = functional.apply_mask(jnp.array([1.0, 1.0], jnp.float64), mask, 0.3)
        assert y.dtype == jnp.float64
        np.testing.assert_array_equal(y, [1 / (1 - 0.3), 0])
    y = functional.apply_mask(jnp.array([1j, 1j]), mask, 0.5)
    np.testing.assert_array_equal(y, np.array([2j, 0], np.complex64))


@settings(
    derandomize=True,
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**31 - 1),
    shape=st.sampled_from([(), (3,), (2, 3), (0, 3), (2, 1, 3)]),
    # From a list, because each is a program of its own.
    p=st.sampled_from([0.0, 0.25, 0.3, 0.999999, 1.0]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16, jnp.bool_, jnp.int8]),
)
def test_apply_mask_against_numpy(seed, shape, p, dtype):
    key_x, key_mask = jax.random.split(jax.random.key(seed))
    x = (3 * jax.random.normal(key_x, (2, *shape))).astype(dtype)
    mask = functional.draw_mask(key_mask, shape, p)
    y = functional.apply_mask(x, mask, p)
    scale = 1 / (1 - p) if p < 1 else 0
    out = x.dtype if jnp.issubdtype(dtype, jnp.inexact) else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.asarray(x).astype(np.float32) * np.float32(min(scale, 1e38))
        expected = np.where(np.asarray(mask), wide, np.float32(0)).astype(out)
    assert y.dtype == out
    if scale < 1e38:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (4, 3), (1, 1, 3)])
def test_a_mask_that_does_not_fit_raises(shape):
    mask = jnp.ones(shape, bool)
    with pytest.raises(
        ValueError, match=r"`mask` must broadcast to the shape of `x`, \(3,\)"
    ):
        functional.apply_mask(jnp.ones(3), mask, 0.5)


@pytest.mark.parametrize(
    ("mask", "x"), [((3,), (1,)), ((2,), (3,)), ((2, 1), (1, 3)), ((4,), (3, 1))]
)
def test_a_mask_of_another_length_raises_also_where_it_would_broadcast_the_input(mask, x):
    with pytest.raises(ValueError, match=r"`mask` must broadcast to the shape of `x`"):
        functional.apply_mask(jnp.ones(x), jnp.ones(mask, bool), 0.5)
    y = functional.apply_mask(jnp.ones((2, 3)), jnp.ones((2, 1), bool), 0.5)
    np.testing.assert_array_equal(y, np.full((2, 3), 2.0))


def test_a_mask_that_is_not_bool_raises():
    with pytest.raises(TypeError, match=r"`mask` must be bool.*float\d\d.*astype\(bool\)"):
        functional.apply_mask(jnp.ones(3), jnp.ones(3), 0.5)


@pytest.mark.parametrize("function", [functional.draw_mask, functional.apply_mask])
def test_p_is_checked(function):
    args = (
        (KEY, (3,))
        if function is functional.draw_mask
        else (jnp.ones(3), jnp.ones(3, bool))
    )
    with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\]"):
        function(*args, 1.5)


def test_more_rows_than_the_counter_has_numbers_raise():
    def draw(key, rows):
        return functional.draw_mask(key, (rows, 32), 0.5)

    jax.eval_shape(lambda key: draw(key, 2**32 // 23), KEY)
    with pytest.raises(ValueError, match=r"2\^32 random words.*\(200000000, 1\)"):
        jax.eval_shape(lambda key: draw(key, 200_000_000), KEY)
