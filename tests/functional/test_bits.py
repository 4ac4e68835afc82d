"""Packed masks: pack and unpack are inverse, a draw is exact in distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from snn_dropout import functional
from snn_dropout.functional._words import DIGITS, bernoulli_words, binary_digits

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "shape", [(1,), (31,), (32,), (33,), (2, 3, 70), (0, 3, 5), (2, 0)]
)
def test_unpacking_undoes_packing(shape):
    mask = jax.random.bernoulli(KEY, 0.5, shape)
    words = functional.pack_bits(mask)
    assert words.dtype == jnp.uint32
    assert words.shape == (*shape[:-1], -(-shape[-1] // 32))
    np.testing.assert_array_equal(functional.unpack_bits(words, shape[-1]), mask)


def test_the_layout_is_that_of_numpy():
    mask = np.asarray(jax.random.bernoulli(KEY, 0.5, (3, 64)))
    expected = np.packbits(mask, axis=-1, bitorder="little").view("<u4")
    np.testing.assert_array_equal(functional.pack_bits(mask), expected)


@pytest.mark.parametrize(
    ("p", "digits"), [(0.5, 1), (0.25, 2), (0.75, 2), (0.125, 3), (0.0625, 4), (0.3, 22)]
)
def test_a_draw_takes_as_many_random_bits_as_the_probability_has_digits(p, digits):
    found = binary_digits(1 - p)
    assert len(found) <= digits <= DIGITS
    value = sum(one * 2.0 ** -(len(found) - place) for place, one in enumerate(found))
    assert abs(value - (1 - p)) <= 2**-DIGITS


@pytest.mark.parametrize("digits", range(1, 8))
def test_the_recursion_gives_exactly_the_probability(digits):
    # The 256 lanes of eight words hold every combination of eight random bits once.
    lanes = np.arange(256)
    planes = [functional.pack_bits(jnp.asarray(lanes >> n & 1, bool)) for n in range(8)]
    planes = jnp.stack(planes).reshape(4, 2, -1)

    def generate(number):
        return tuple(planes[number])

    for kept in range(1, 2**digits, 2):
        words = bernoulli_words(generate, kept / 2**digits)
        assert int(jax.lax.population_count(words).sum()) == kept * 2 ** (8 - digits)


@pytest.mark.parametrize("p", [0.5, 0.25, 0.9, 0.3, 1e-3])
def test_draw_bits_keeps_with_probability_1_minus_p(p):
    bits = functional.unpack_bits(functional.draw_bits(KEY, (1000, 1000), p), 1000)
    low, high = (
        f(5e-10, 10**6, 1 - p) for f in (scipy.stats.binom.ppf, scipy.stats.binom.isf)
    )
    assert low <= int(bits.sum()) <= high
    # Neighbours in a word, and in memory, are independent.
    for shift in (1, 32):
        differ = int((bits[:, shift:] != bits[:, :-shift]).sum())
        count, chance = bits[:, shift:].size, 2 * p * (1 - p)
        low, high = (
            f(5e-10, count, chance) for f in (scipy.stats.binom.ppf, scipy.stats.binom.isf)
        )
        # Pairs overlap, so the count has up to twice the variance of independent ones.
        middle = count * chance
        assert 2 * (low - middle) <= differ - middle <= 2 * (high - middle)


@pytest.mark.parametrize(("p", "bit"), [(0, True), (1, False), (0.0, True), (1.0, False)])
def test_limits_of_p(p, bit):
    words = functional.draw_bits(KEY, (3, 40), p)
    assert (functional.unpack_bits(words, 40) == bit).all()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_any_key_works_and_another_key_gives_another_mask(impl):
    draws = [
        functional.draw_bits(jax.random.key(seed, impl=impl), (64, 640), 0.5)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] == draws[2]).mean() < 0.01
    jitted = jax.jit(lambda key: functional.draw_bits(key, (64, 640), 0.5))
    np.testing.assert_array_equal(jitted(jax.random.key(0, impl=impl)), draws[0])


def test_errors():
    with pytest.raises(TypeError, match=r"`mask` must be bool.*astype\(bool\)"):
        functional.pack_bits(jnp.ones(3))
    with pytest.raises(TypeError, match=r"`words` must be uint32.*pack_bits"):
        functional.unpack_bits(jnp.ones(1, jnp.int32), 3)
    with pytest.raises(ValueError, match=r"last axis of 2 words for masks of 33.*\(1,\)"):
        functional.unpack_bits(jnp.ones(1, jnp.uint32), 33)
    with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\]"):
        functional.draw_bits(KEY, (3,), -1)
