"""Packed masks: pack and unpack are inverse, a draw is exact in distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from snn_dropout import functional
from snn_dropout.functional._philox import counters, philox4x32
from snn_dropout.functional._words import DIGITS, bernoulli_words, binary_digits
from tests.depth import cases
from tests.jaxprs import count, drawn_by

KEY = jax.random.key(0)


@cases(
    "shape",
    [(1,), (31,), (32,), (33,), (2, 3, 70), (0, 3, 5), (2, 0)],
    short=[(32,), (2, 3, 70), (0, 3, 5), (2, 0)],
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


@pytest.mark.parametrize(
    ("key", "counter", "block"),
    [
        ([0] * 2, [0] * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 2, [2**32 - 1] * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0xA4093822, 0x299F31D0],
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(key, counter, block):
    words = philox4x32(jnp.array(key, jnp.uint32), jnp.array(counter, jnp.uint32))
    assert " ".join(f"{int(word):08x}" for word in words) == block


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0, 3)])
def test_counters_number_the_elements(shape):
    first, index = counters(shape)
    assert first.shape == index.shape == shape
    number = np.asarray(first, int) * int(np.prod(shape[1:])) + np.asarray(index, int)
    np.testing.assert_array_equal(number, np.arange(number.size).reshape(shape))


def test_counters_do_not_wrap_around():
    largest = jax.eval_shape(lambda: counters((2**20, 2**16, 2**16))[0])
    assert largest.size == 2**52
    with pytest.raises(ValueError, match=r"2\^32 random words.*\(2, 65536, 65537\)"):
        jax.eval_shape(lambda: counters((2, 2**16, 2**16 + 1)))


def test_blocks_are_the_words_of_jaxs_philox():
    seed = jax.random.bits(KEY, (2,), jnp.uint32)
    first, index = counters((5, 7))
    zero = jnp.zeros((5, 7), jnp.uint32)
    block = philox4x32(seed, (zero, first * np.uint32(7) + index, zero, zero))
    key = jax.random.wrap_key_data(seed, impl="philox4x32")
    mixed = block[0] ^ block[1] ^ block[2] ^ block[3]
    np.testing.assert_array_equal(mixed, jax.random.bits(key, (5, 7), jnp.uint32))


@cases("unroll", [False, True], short=[False])
@cases("digits", range(1, 8), short=[1, 3, 6])
def test_the_recursion_gives_exactly_the_probability(digits, unroll):
    # The 256 lanes of eight words hold every combination of eight random bits once.
    lanes = np.arange(256)
    planes = [functional.pack_bits(jnp.asarray(lanes >> n & 1, bool)) for n in range(8)]
    planes = jnp.stack(planes).reshape(4, 2, -1)  # blocks of two words

    def generate(number):
        return tuple(planes[number])

    for kept in range(1, 2**digits, 2):
        words = bernoulli_words(generate, kept / 2**digits, unroll=unroll)
        assert int(jax.lax.population_count(words).sum()) == kept * 2 ** (8 - digits)


@cases("p", [0.5, 0.25, 0.9, 0.3, 1e-3], short=[0.25, 0.3])
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
    """Nothing is drawn, so that no number of bits is too large for all to be alike."""
    words = functional.draw_bits(KEY, (3, 40), p)
    np.testing.assert_array_equal(words, np.full((3, 2), bit * (2**32 - 1), np.uint32))
    program = jax.make_jaxpr(lambda key: functional.draw_bits(key, (3, 40), p))(KEY)
    assert not drawn_by(program.jaxpr)


def test_rows_of_two_words_are_a_loop_and_all_others_one_pass():
    """On CPU, beside the loop of other platforms: of each it makes the faster code."""
    for shape, loops in (((2, 5, 32), 1), ((3, 5, 64), 2), ((3, 2, 96), 1), ((64,), 2)):
        program = jax.make_jaxpr(lambda key, s=shape: functional.draw_bits(key, s, 0.3))(
            KEY
        )
        assert count(program.jaxpr, "scan") == loops, shape


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
