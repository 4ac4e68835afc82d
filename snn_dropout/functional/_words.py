"""Random words of 32 bits, each bit 1 with a given probability."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p
from jax.sharding import NamedSharding

from snn_dropout._checks.masks import check_countable
from snn_dropout.functional._philox import counters, philox4x32
from snn_dropout.functional._sharding import vary_alike

WORD = 32  # bits
# The resolution of a probability; a uniform float32 in [0, 1) has the same.
DIGITS = 23

# Makes a block of arrays of random words from a number; all of them are independent.
Generator = Callable[[jax.Array | int], tuple[jax.Array, ...]]


def bernoulli_words(generate: Generator, q: float, *, unroll: bool = False) -> jax.Array:
    """Makes words whose bits are 1 with probability ``q``, independently.

    With ``q = 0.b1 b2 ... bm`` in binary, ``r = 0`` and ``r = w | r if b else w & r`` for
    a random word ``w`` and each digit ``b`` from the last to the first leaves each bit of
    ``r`` set with probability exactly ``q``, for ``m`` random bits.

    Args:
      generate: makes the random words, a block for each number.
      q: the probability, rounded to 23 binary digits, and to neither 0 nor 1.
      unroll: whether all blocks are one pass over memory; else they are a loop.

    Returns:
      uint32 of the shape that ``generate`` makes.
    """
    _, *digits = binary_digits(q)  # the last one is a 1: r is the first word
    words, *others = generate(0)
    block = 1 + len(others)
    # The first block serves the digits that fill no other one.
    first = len(digits) % block
    for digit, word in zip(digits[:first], others, strict=False):
        words = word | words if digit else word & words
    ones = np.array(digits[first:], bool).reshape(-1, block)
    numbers = np.arange(1, 1 + len(ones), dtype=np.uint32)

    def prepend(words: jax.Array, number_and_digits: Any) -> tuple[jax.Array, None]:
        number, digits = number_and_digits
        for digit, word in zip(digits, generate(number), strict=True):
            words = jnp.where(digit, word | words, word & words)
        return words, None

    if unroll:
        for number_and_digits in zip(numbers, ones, strict=True):
            words, _ = prepend(words, number_and_digits)
    elif len(ones):
        words, _ = lax.scan(prepend, words, (numbers, ones))
    return words


def bernoulli(generate: Generator, q: float) -> jax.Array:
    """Compares a random word for each element: True with probability ``q`` as above."""
    words, *_ = generate(0)
    return words >> np.uint32(WORD - DIGITS) < np.uint32(_numerator(q))


def bernoulli_each(generate: Generator, rates: jax.Array) -> jax.Array:
    """Compares a random word for each element with a number for its own rate.

    Args:
      generate: makes the random words.
      rates: the probabilities of False, float32 in [0, 1] of a shape that broadcasts to
        the words; rounded as above. What is 0 is never False, 1 or a NaN always.

    Returns:
      A bool array of the shape that ``generate`` makes.
    """
    words, *_ = generate(0)
    unit = 2**DIGITS
    # Of numbers that are exact, so that each is that of a static p.
    dropped = jnp.clip(jnp.round(rates * unit), 1, unit - 1)
    dropped = jnp.where(rates < 1, jnp.where(rates > 0, dropped, 0), unit)
    kept: jax.Array = words >> np.uint32(WORD - DIGITS) < (unit - dropped).astype(
        jnp.uint32
    )
    return kept


def binary_digits(q: float) -> list[bool]:
    """Returns the digits of ``q`` behind the binary point, the last one, a 1, first."""
    digits = [bool(_numerator(q) >> place & 1) for place in range(DIGITS)]
    return digits[digits.index(True) :]


def _numerator(q: float) -> int:
    unit: int = 2**DIGITS
    return min(max(round(q * unit), 1), unit - 1)


def philox(key: jax.Array, shape: Sequence[int]) -> Generator:
    """Generates by Philox, four words a block: for large masks that a loop reads.

    It is ordinary arithmetic to the compiler, which fuses it with what reads its words,
    and may do it again for each time step or each bit that does. All 64 bits of its key
    come from ``key``. On a mesh each device makes its own words.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    first, index = counters(shape)
    zero = jnp.zeros(shape, jnp.uint32)

    def generate(number: jax.Array | int) -> tuple[jax.Array, ...]:
        return philox4x32(seed, (zero + jnp.uint32(number), first, zero, index))

    return generate


def threefry(
    key: jax.Array, shape: Sequence[int], sharding: NamedSharding | None = None
) -> Generator:
    """Generates by Threefry, two words a block: for masks that are kept.

    ``jax.random.bits`` returns one word a block. A word depends on the key, the number
    and its own place alone: it is the same in every sharding, and no device needs what
    another one has. On CPU it is a loop that the compiler does not repeat.

    Args:
      key: a key of ``jax.random`` of any kind; it is consumed.
      shape: the shape of the words, of rank 1 or more.
      sharding: of the words, on a mesh with explicit axes.

    Returns:
      The generator.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    *rows, length = shape
    check_countable(shape, length, "along the last axis")
    # Every number has rows of its own.
    check_countable(shape, math.prod(rows) * DIGITS, "in front of the last axis, times 23")

    def places(axis: int) -> jax.Array:
        return lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)

    def generate(number: jax.Array | int) -> tuple[jax.Array, ...]:
        column = places(len(rows))
        row = jnp.full_like(column, number)
        for axis, length in enumerate(rows):
            row = row * jnp.asarray(length, jnp.uint32) + places(axis)
        words = threefry2x32_p.bind(seed[0], seed[1], row, column)
        # Within `shard_map` the primitive does not say that its words differ as keys do.
        first, second, _ = vary_alike(*words, seed)
        return first, second

    return generate
