"""Random words from the counter-based generator Philox, on any number of devices.

JAX has this generator too, but spends a block of four words on each word that it
returns, and can not compile it for more than one device: XLA's partitioner does not
know the high half of a product of 32-bit words. Here it is that of a product of 64.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from snn_dropout._checks.masks import check_countable

MULTIPLIERS = np.uint32(0xD2511F53), np.uint32(0xCD9E8D57)
KEY_STEPS = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
ROUNDS = 10
BLOCK = 4  # words

Block = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def philox4x32(key: jax.Array, counter: Block) -> Block:
    """Turns counters of 128 bits into blocks of as many random bits.

    Args:
      key: two words, uint32 ``[2]``.
      counter: four uint32 arrays of one shape; no counter may come twice under a key.

    Returns:
      Four uint32 arrays of that shape, independent of each other.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    k0, k1 = key[0], key[1]
    x0, x1, x2, x3 = counter
    for _ in range(ROUNDS):
        high0, high2 = _high_half(x0, MULTIPLIERS[0]), _high_half(x2, MULTIPLIERS[1])
        low0, low2 = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1, x2, x3 = high2 ^ x1 ^ k0, low2, high0 ^ x3 ^ k1, low0
        k0, k1 = k0 + KEY_STEPS[0], k1 + KEY_STEPS[1]
    return x0, x1, x2, x3


def counters(shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Returns two uint32 arrays that together number the elements of a shape.

    They are the index along the first axis and that over all others, so that the
    numbers of an example do not depend on how many examples there are.
    """
    shape = tuple(shape)
    check_countable(shape, math.prod(shape[1:]), "behind the first axis")
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in range(len(shape) - 1, 0, -1):
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.asarray(
            stride, jnp.uint32
        )
        stride *= shape[axis]
    first = lax.broadcasted_iota(jnp.uint32, shape, 0) if shape else index
    return first, index


def _high_half(x: jax.Array, multiplier: np.uint32) -> jax.Array:
    with jax.enable_x64(True):
        wide = lax.convert_element_type(x, np.uint64)
        product = lax.mul(wide, np.uint64(multiplier))
        high = lax.shift_right_logical(product, np.uint64(32))
        return lax.convert_element_type(high, np.uint32)
