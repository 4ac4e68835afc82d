"""Random words: the exact probability, none of them twice, every bit of the key used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from snn_dropout import functional
from snn_dropout.functional._words import (
    DIGITS,
    bernoulli,
    bernoulli_words,
    binary_digits,
    philox,
    threefry,
)
from tests.depth import cases

KEY = jax.random.key(0)
UNIT = 2**DIGITS

# Exactly the probability
# --------------------------------------------------------------------------------------


@functools.cache
def every_pattern(digits):
    """Words whose lanes, taken together, hold every pattern of so many bits once."""
    index = np.arange(2 ** (digits - 5), dtype=np.uint32)
    lanes = np.arange(32, dtype=np.uint32)
    low = [(lanes >> n & 1) @ (1 << lanes) for n in range(5)]
    words = [np.full_like(index, word) for word in low]
    words += [np.uint32(0) - (index >> np.uint32(n) & 1) for n in range(digits - 5)]
    return jnp.asarray(np.stack(words))


def kept_of_every_pattern(q, block, unroll):
    """How many of all patterns of 24 random bits give a 1, of 2^24."""

    @jax.jit
    def kept(patterns):
        blocks = patterns.reshape(24 // block, block, -1)
        words = bernoulli_words(lambda number: tuple(blocks[number]), q, unroll=unroll)
        return jax.lax.population_count(words).sum()

    return int(kept(every_pattern(24)))


PROBABILITIES = {
    0.5: UNIT // 2,
    0.75: 3 * UNIT // 4,
    0.7: 5872026,
    1 / 3: 2796203,
    1e-9: 1,
    1 - 1e-9: UNIT - 1,
    3 / UNIT: 3,
    1 - 2 / UNIT: UNIT - 2,
}


@pytest.mark.parametrize("block", [2, 4])
@cases("unroll", [False, True], short=[False])
def test_of_all_patterns_of_random_bits_exactly_the_share_is_kept(block, unroll):
    """A word that is left out, taken twice or for another digit changes the count."""
    for q in (0.75, 0.7, 1e-9, 1 - 2 / UNIT):
        assert kept_of_every_pattern(q, block, unroll) == 2 * PROBABILITIES[q], q


def test_of_all_words_that_are_compared_exactly_the_share_is_kept():
    number = np.arange(UNIT, dtype=np.uint32)
    # The bits below the resolution are not looked at.
    words = jnp.asarray(number << np.uint32(9) | number & np.uint32(2**9 - 1))
    for q, numerator in PROBABILITIES.items():
        kept = jax.jit(lambda words, q=q: bernoulli(lambda _: (words,), q).sum())
        assert int(kept(words)) == numerator, q


def test_digits_are_those_of_the_nearest_probability():
    for q, numerator in PROBABILITIES.items():
        digits = binary_digits(q)
        value = sum(one << place for place, one in enumerate(digits))
        assert digits[0], "the last digit is a 1"
        assert value * 2 ** (DIGITS - len(digits)) == numerator, q


# The same words for ever, as NumPy makes them
# --------------------------------------------------------------------------------------


def philox_in_numpy(seed, number, first, index):
    """Four words of each counter, after Salmon et al. 2011."""
    low = np.uint64(2**32 - 1)
    x = [np.asarray(word, np.uint64) for word in (number, first, 0, index)]
    k0, k1 = (int(word) for word in seed)
    for _ in range(10):
        a, b = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = [
            b >> np.uint64(32) ^ x[1] ^ np.uint64(k0),
            b & low,
            a >> np.uint64(32) ^ x[3] ^ np.uint64(k1),
            a & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [word.astype(np.uint32) for word in np.broadcast_arrays(*x)]


def threefry_in_numpy(seed, row, column):
    """Two words of each counter, after the same authors."""
    seed = np.asarray(seed, np.uint32)
    keys = [seed[0], seed[1], seed[0] ^ seed[1] ^ np.uint32(0x1BD11BDA)]
    turns = [(13, 15, 26, 6), (17, 29, 16, 24)]
    with np.errstate(over="ignore"):
        x0, x1 = row.astype(np.uint32) + keys[0], column.astype(np.uint32) + keys[1]
        for block in range(5):
            for turn in turns[block % 2]:
                x0 = x0 + x1
                x1 = (x1 << np.uint32(turn) | x1 >> np.uint32(32 - turn)) ^ x0
            x0 = x0 + keys[(block + 1) % 3]
            x1 = x1 + keys[(block + 2) % 3] + np.uint32(block + 1)
    return [x0, x1]


def recursion_in_numpy(blocks, q):
    """`blocks` lists the words of each number, `q` is at least of two digits."""
    _, *digits = binary_digits(q)
    words, *first = blocks[0]
    rest = len(digits) % len(blocks[0])
    used = first[:rest] + [word for block in blocks[1:] for word in block]
    for one, word in zip(digits, used, strict=False):
        words = word | words if one else word & words
    return words


def bits_in_numpy(key, shape, p):
    """What `draw_bits` returns."""
    seed = np.asarray(jax.random.bits(key, (2,), jnp.uint32))
    packed = (*shape[:-1], -(-shape[-1] // 32))
    index = np.arange(np.prod(packed[1:], dtype=int)).reshape(1, *packed[1:])
    first = np.arange(packed[0]).reshape(-1, *[1] * (len(packed) - 1))
    blocks = [philox_in_numpy(seed, number, first, index) for number in range(7)]
    return recursion_in_numpy(blocks, 1 - p)


def mask_in_numpy(key, shape, p):
    """What `draw_mask` returns."""
    seed = np.asarray(jax.random.bits(key, (2,), jnp.uint32))
    ndim = 1 + max((axis for axis, n in enumerate(shape) if n != 1), default=0)
    *rows, length = shape[:ndim]
    lanes = np.gcd(length, 32) if rows else 1
    compares = len(binary_digits(1 - p)) > lanes
    columns = length if compares else length // lanes
    count = int(np.prod(rows, dtype=int))
    row, column = np.meshgrid(np.arange(count), np.arange(columns), indexing="ij")
    blocks = [threefry_in_numpy(seed, n * count + row, column) for n in range(12)]
    if compares:
        mask = (blocks[0][0] >> np.uint32(9)) < round((1 - p) * UNIT)
    else:
        words = recursion_in_numpy(blocks, 1 - p)
        mask = words[..., None] >> np.arange(lanes, dtype=np.uint32) & 1 == 1
    return mask.reshape(shape)


@pytest.mark.parametrize(
    ("shape", "p"),
    [((3, 5, 70), 0.5), ((2, 3, 40), 0.3), ((4, 70), 0.25), ((40,), 0.125), ((2, 33), 0.3)],
)
def test_packed_masks_are_those_that_numpy_makes(shape, p):
    """Two axes in front, words of a row and of several, the loop and one pass."""
    words = functional.draw_bits(KEY, shape, p)
    np.testing.assert_array_equal(words, bits_in_numpy(KEY, shape, p))


@pytest.mark.short
@pytest.mark.parametrize(
    ("shape", "p"),
    [
        ((3, 5, 64), 0.5),
        ((2, 3, 32), 0.3),
        ((4, 2, 40), 0.25),
        ((3, 7), 0.5),
        ((2, 3, 5), 0.3),
        ((40,), 0.5),
        ((40,), 0.3),
        ((3, 8, 1, 1), 0.125),
        ((5, 1), 0.25),
        ((1, 1), 0.5),
    ],
)
def test_masks_are_those_that_numpy_makes(shape, p):
    """Whole words, parts of a word, comparisons, one axis, axes of length 1 behind."""
    mask = functional.draw_mask(KEY, shape, p)
    np.testing.assert_array_equal(mask, mask_in_numpy(KEY, shape, p))


# None of them twice
# --------------------------------------------------------------------------------------


def counts_of_equal_words(words):
    """How many pairs of words are equal, and how many that may be by chance."""
    _, counts = np.unique(words, return_counts=True)
    by_chance = words.size**2 / 2 / 2**32
    return (counts * (counts - 1) // 2).sum(), scipy.stats.poisson.isf(1e-9, by_chance)


@pytest.mark.parametrize("make", [philox, threefry])
def test_no_block_of_words_comes_twice(make):
    """Neither for another example, row or column, nor for another number of block."""

    @jax.jit
    def blocks(key):
        generate = make(key, (8, 16, 32))
        return jnp.stack([jnp.stack(generate(n), -1) for n in (*range(6), 22)])

    words = np.asarray(blocks(KEY))
    each = words.reshape(-1, words.shape[-1])
    assert len(np.unique(each, axis=0)) == len(each)
    found, most = counts_of_equal_words(words)
    assert found <= most


# No word tells of another one
# --------------------------------------------------------------------------------------


def largest_correlation(bits, q):
    """Of all elements with those at one distance, the distance that correlates most.

    Every distance along all axes at once is looked at, those around the ends included. A
    product of two independent standardised bits has the variance 1, and so has their sum
    over all pairs, divided by the root of their number; where a distance is its own
    opposite, each pair counts twice.
    """
    z = (np.asarray(bits, np.float32) - q) / np.sqrt(q * (1 - q))
    assert abs(z.sum()) < 6 * np.sqrt(z.size), "as many as there should be"
    axes = tuple(range(z.ndim))
    sums = np.fft.irfftn(np.abs(np.fft.rfftn(z)) ** 2, z.shape, axes)
    sums.flat[0] = 0
    return np.abs(sums).max() / z.size, 6 * np.sqrt(2 / z.size)


@pytest.mark.parametrize(
    ("shape", "p"),
    [
        ((16, 64, 256), 0.5),
        ((16, 64, 256), 0.25),
        ((16, 64, 256), 0.3),
        ((64, 64, 64), 0.5),
        ((64, 64, 64), 0.3),
        ((2048, 128), 0.25),
    ],
)
def test_packed_bits_are_independent_at_every_distance(shape, p):
    bits = functional.unpack_bits(functional.draw_bits(KEY, shape, p), shape[-1])
    found, most = largest_correlation(bits, 1 - p)
    assert found < most < 0.02


@cases(
    "shape, p",
    [
        ((64, 64, 64), 0.5),
        ((64, 64, 64), 0.3),
        ((64, 64, 72), 0.5),  # eight bits of each word,
        ((64, 64, 60), 0.25),  # four,
        ((64, 64, 66), 0.25),  # two,
        ((64, 64, 63), 0.5),  # and one;
        ((64, 64, 63), 0.3),  # comparisons.
        ((2**18,), 0.25),
        ((2048, 128, 1), 0.25),
    ],
    short=[((64, 64, 64), 0.3), ((64, 64, 60), 0.25), ((64, 64, 63), 0.3)],
)
def test_masks_are_independent_at_every_distance(shape, p):
    found, most = largest_correlation(functional.draw_mask(KEY, shape, p), 1 - p)
    assert found < most < 0.02


# Every bit of the key
# --------------------------------------------------------------------------------------


def one_bit_apart(words):
    """A key's data, and beside it the keys that differ from it in one bit."""
    keys = [np.asarray(jax.random.bits(KEY, (words,), jnp.uint32))]
    for bit in range(32 * words):
        keys.append(keys[0].copy())
        keys[-1][bit // 32] ^= np.uint32(1 << bit % 32)
    return np.stack(keys)


def assert_all_independent(masks, q):
    """No two masks agree more or less often than independent ones do."""
    masks = np.asarray(masks).reshape(len(masks), -1)
    wide = masks.astype(np.int32)
    differ = (wide @ (1 - wide).T) + (1 - wide) @ wide.T
    pairs = differ[np.triu_indices(len(masks), 1)]
    chance = scipy.stats.binom(masks.shape[1], 2 * q * (1 - q))
    alpha = 1e-9 / len(pairs)
    assert chance.ppf(alpha) <= pairs.min()
    assert pairs.max() <= chance.isf(alpha)


def both_masks(key):
    words = functional.draw_bits(key, (4, 8, 32), 0.5)
    return (
        functional.unpack_bits(words, 32),
        functional.draw_mask(key, (4, 256), 0.5),
        functional.draw_mask(key, (1024,), 0.5),
    )


@pytest.mark.parametrize("wrap", [jnp.asarray, jax.random.wrap_key_data])
def test_every_bit_of_a_key_makes_another_mask(wrap):
    with jax.default_prng_impl("threefry2x32"):
        keys = wrap(one_bit_apart(2))
        for masks in jax.jit(jax.vmap(both_masks))(keys):
            assert_all_independent(masks, 0.5)


def test_every_bit_of_an_rbg_key_makes_another_mask():
    draw = jax.jit(lambda data: both_masks(jax.random.wrap_key_data(data, impl="rbg")))
    draws = [draw(data) for data in one_bit_apart(4)]
    for masks in zip(*draws, strict=True):
        assert_all_independent(np.stack(masks), 0.5)
