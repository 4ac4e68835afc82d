"""A simulation in chunks is the simulation in one piece, what is fresh at each step too."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.neurons import LIF

KEY = jax.random.key(7)
RNGS = {"dropout": KEY}
STEPS = 6


class Noisy(nn.Module):
    """All kinds of noise: held, fresh at every step, of Flax, and sampled."""

    @nn.compact
    def __call__(self, x):
        x = sd.Dropout(0.5)(LIF()(x), False)
        x = nn.Dropout(0.5)(x, False)
        x = sd.DropConnectLinear(4, 6, activation=LIF())(8 * x, False)
        sampled = sd.DropConnectLinear(6, 5, samples_num=2, activation=LIF())
        return sampled(8 * x, True)


@pytest.fixture(scope="module")
def x_seq():
    return jnp.round(4 * jax.random.normal(jax.random.key(3), (STEPS, 3, 4)))


@pytest.fixture(scope="module")
def params(x_seq):
    # Multiples of 1/4: every sum is exact, in whatever order a compiler adds up.
    params = jax.jit(Noisy().init)(KEY, x_seq[0])["params"]
    return jax.tree.map(lambda leaf: jnp.ceil(4 * abs(leaf)) / 4, params)


def test_chunks_are_the_whole_bit_for_bit(x_seq, params):
    state = sd.init_state(Noisy(), {"params": params}, x_seq[0], rngs=RNGS)

    @jax.jit
    def run(state, x_seq, first):
        variables = {"params": params, "state": state}
        given = {} if first is None else {"first_time_step": first}
        y_seq, updated = sd.simulate(Noisy(), variables, x_seq, rngs=RNGS, **given)
        return updated["state"], y_seq

    last, whole = run(state, x_seq, None)
    steps = {y.tobytes() for y in np.asarray(whole)}
    assert len(steps) > 2, "no step repeats another"
    middle, first = run(state, x_seq[:3], 0)
    end, second = run(middle, x_seq[3:], 3)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), whole)
    chex.assert_trees_all_equal(end, last)
    # Who forgets the number meets the noise of the first steps again.
    _, again = run(middle, x_seq[3:], 0)
    assert (again != second).any()


class Few(nn.Module):
    """The same without connections, which take longer to compile."""

    @nn.compact
    def __call__(self, x):
        x = sd.Dropout(0.5)(LIF()(x), False)
        return LIF()(8 * nn.Dropout(0.5)(x, False))


@pytest.mark.exhaustive
def test_a_number_of_any_integer_type_is_the_same(x_seq):
    def last(number):
        return sd.simulate(Few(), {}, x_seq, rngs=RNGS, first_time_step=number)[0]

    expected = jax.jit(partial(last, 3))()
    assert (expected != jax.jit(partial(last, 0))()).any()
    for number in (np.int64(3), jnp.uint8(3), jnp.int32(3)):
        np.testing.assert_array_equal(jax.jit(last)(number), expected)
    numbers = jnp.arange(2, 4)
    np.testing.assert_array_equal(jax.jit(jax.vmap(last))(numbers)[1], expected)


def test_it_is_the_loop_that_folds_in_the_number(x_seq):
    layer = nn.Dropout(0.5, deterministic=False)
    y_seq, _ = sd.simulate(layer, {}, x_seq, rngs=RNGS, first_time_step=3)
    for t, x in enumerate(x_seq, 3):
        y = layer.apply({}, x, rngs={"dropout": jax.random.fold_in(KEY, t)})
        np.testing.assert_array_equal(y_seq[t - 3], y)


def test_a_chunk_inside_of_a_module_knows_its_first_step(x_seq):
    class Chunked(nn.Module):
        @nn.compact
        def __call__(self, x_seq, first):
            return nn.remat(sd.MultiStep)(Few())(x_seq, first_time_step=first)

    run = jax.jit(partial(Chunked().apply, mutable=["state"], rngs=RNGS))
    whole, state = run({}, x_seq, 0)
    first, middle = run({}, x_seq[:2], 0)
    last, end = run(middle, x_seq[2:], 2)
    np.testing.assert_array_equal(jnp.concatenate([first, last]), whole)
    chex.assert_trees_all_equal(end, state)


def test_a_chunk_in_mode_m_needs_a_key_of_its_own():
    layer = sd.DropConnectLinear(4, 40, activation=None, step_mode="m", deterministic=False)
    x_seq = jnp.ones((2, 3, 4))
    variables = layer.init(KEY, x_seq)
    run = jax.jit(lambda key: layer.apply(variables, x_seq, rngs={"dropout": key}))
    np.testing.assert_array_equal(run(KEY), run(KEY))
    chunks = [run(jax.random.fold_in(KEY, chunk)) for chunk in range(2)]
    assert (chunks[0] != chunks[1]).any()
    assert "fold_in(key,\n    chunk)" in sd.simulate.__doc__


@pytest.mark.short
@pytest.mark.parametrize(
    ("number", "error"),
    [
        (True, TypeError),
        (1.0, TypeError),
        ("0", TypeError),
        (None, TypeError),
        (jnp.float32(1), TypeError),
        (jnp.arange(2), TypeError),
        (-1, ValueError),
        (2**31, ValueError),
    ],
)
def test_a_number_that_is_none_raises(number, error):
    x_seq = jnp.ones((2, 3))
    for run in (
        partial(sd.simulate, LIF(), {}, x_seq),
        partial(sd.MultiStep(LIF()).apply, {}, x_seq),
        partial(sd.MultiStep(LIF()).init, KEY, x_seq),
    ):
        with pytest.raises(error, match=r"`first_time_step` must be .*steps_so_far"):
            run(first_time_step=number)
