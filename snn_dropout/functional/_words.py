"""Random words of 32 bits, each bit 1 with a given probability."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p
from jax.sharding import NamedSharding

WORD = 32  # bits
# The resolution of a probability; a uniform float32 in [0, 1) has the same.
DIGITS = 23

# Makes two arrays of random words from a number; all of them are independent.
Generator = Callable[[jax.Array | int], tuple[jax.Array, jax.Array]]


def bernoulli_words(generate: Generator, q: float) -> jax.Array:
    """Makes words whose bits are 1 with probability ``q``, independently.

    With ``q = 0.b1 b2 ... bm`` in binary, ``r = 0`` and ``r = w | r if b else w & r`` for
    a random word ``w`` and each digit ``b`` from the last to the first leaves each bit of
    ``r`` set with probability exactly ``q``, for ``m`` random bits.

    Args:
      generate: makes the random words, two for each number.
      q: the probability, rounded to 23 binary digits, and to neither 0 nor 1.

    Returns:
      uint32 of the shape that ``generate`` makes.
    """
    _, *digits = binary_digits(q)  # the last one is a 1: r is the first word
    words, second = generate(0)
    if len(digits) % 2:
        words = second | words if digits.pop(0) else second & words
    if not digits:
        return words

    def prepend(words: jax.Array, pair: Any) -> tuple[jax.Array, None]:
        number, ones = pair
        for one, random in zip(ones, generate(number), strict=True):
            words = jnp.where(one, random | words, random & words)
        return words, None

    ones = np.array(digits).reshape(-1, 2)
    numbers = np.arange(1, 1 + len(ones), dtype=np.uint32)
    words, _ = lax.scan(prepend, words, (numbers, ones))
    return words


def bernoulli(generate: Generator, q: float) -> jax.Array:
    """Compares a random word for each element: True with probability ``q`` as above."""
    words, _ = generate(0)
    return words >> np.uint32(WORD - DIGITS) < np.uint32(_numerator(q))


def binary_digits(q: float) -> list[bool]:
    """Returns the digits of ``q`` behind the binary point, the last one, a 1, first."""
    digits = [bool(_numerator(q) >> place & 1) for place in range(DIGITS)]
    return digits[digits.index(True) :]


def _numerator(q: float) -> int:
    unit: int = 2**DIGITS
    return min(max(round(q * unit), 1), unit - 1)


def philox(key: jax.Array, shape: Sequence[int]) -> Generator:
    """Generates by Philox: the cheapest words, for large masks that a loop reads.

    It is ordinary arithmetic to the compiler, which may do it again wherever a word is
    read, for each time step or each bit. All 64 bits of its key come from ``key``.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    fast = jax.random.wrap_key_data(seed, impl="philox4x32")

    def generate(number: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(jax.random.fold_in(fast, number))
        return (
            jax.random.bits(first, shape, jnp.uint32),
            jax.random.bits(second, shape, jnp.uint32),
        )

    return generate


def threefry(
    key: jax.Array, shape: Sequence[int], sharding: NamedSharding | None = None
) -> Generator:
    """Generates by Threefry, both words of each block: for masks that are kept.

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
    *rows, _ = shape

    def places(axis: int) -> jax.Array:
        return lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)

    def generate(number: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        column = places(len(rows))
        row = jnp.full_like(column, number)
        for axis, length in enumerate(rows):
            row = row * jnp.asarray(length, jnp.uint32) + places(axis)
        first, second = threefry2x32_p.bind(seed[0], seed[1], row, column)
        return first, second

    return generate
