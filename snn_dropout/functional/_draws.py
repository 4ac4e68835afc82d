"""Drawing a keep mask: for one static probability, or for rates that are an array."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

from snn_dropout.functional._words import (
    WORD,
    bernoulli,
    bernoulli_each,
    bernoulli_words,
    binary_digits,
    threefry,
)
from snn_dropout.functional.bits import unpack_lanes

# A row of a vector register of a TPU has so many numbers.
_ROW = 128


@partial(jax.jit, static_argnums=(1, 2, 3))
def draw_alike(
    key: jax.Array, shape: tuple[int, ...], p: float, sharding: NamedSharding | None
) -> jax.Array:
    """Draws a mask whose elements all have the same static ``p``."""
    if p in (0.0, 1.0):
        return lax.full(shape, p == 0, jnp.bool_, sharding=sharding)
    if not shape:
        return jnp.squeeze(draw_alike(key, (1,), p, None))
    q = 1.0 - p
    ndim = _own_axes(shape)
    *rows, length = shape[:ndim]
    bits = _bits_of_a_word(rows, length)
    if len(binary_digits(q)) > bits:
        first_axes = None if sharding is None else _first_axes(sharding, ndim)
        mask = bernoulli(threefry(key, (*rows, length), first_axes), q)
    else:
        first_axes = None if sharding is None else _first_axes(sharding, ndim - 1)
        words = bernoulli_words(threefry(key, (*rows, length // bits), first_axes), q)
        mask = lax.platform_dependent(
            words,
            tpu=partial(_unpack_by_row, lanes=bits),
            default=partial(unpack_lanes, lanes=bits),
        )
    return _kept(mask, shape, sharding)


@partial(jax.jit, static_argnums=(2, 3))
def draw_each(
    key: jax.Array,
    rates: jax.Array,
    shape: tuple[int, ...],
    sharding: NamedSharding | None,
) -> jax.Array:
    """Draws a mask whose elements each have their own of the rates, which fit its shape."""
    if not shape:
        return jnp.squeeze(draw_each(key, rates, (1,), None))
    ndim = _own_axes(shape)
    rates = lax.expand_dims(rates, range(len(shape) - rates.ndim))
    rates = lax.squeeze(rates, range(ndim, len(shape)))
    first_axes = None if sharding is None else _first_axes(sharding, ndim)
    mask = bernoulli_each(threefry(key, shape[:ndim], first_axes), rates)
    return _kept(mask, shape, sharding)


def _own_axes(shape: tuple[int, ...]) -> int:
    """Returns up to which axis a mask is drawn: all behind it are 1."""
    return 1 + max((axis for axis, length in enumerate(shape) if length != 1), default=0)


def _kept(
    mask: jax.Array, shape: tuple[int, ...], sharding: NamedSharding | None
) -> jax.Array:
    mask = lax.expand_dims(mask, range(mask.ndim, len(shape)))
    if sharding is not None:
        mask = reshard(mask, sharding)
    # One mask in memory, not another draw of it for each time step that reads it.
    kept: jax.Array = lax.optimization_barrier(mask)
    return kept


def _unpack_by_row(words: jax.Array, *, lanes: int) -> jax.Array:
    """Unpacks as :func:`unpack_lanes` does, to the layout that arrays have on a TPU.

    There axes of fewer than 128 numbers are merged where the batch is last in memory. A
    loop over time that reads such a mask turns all that it carries, keeps and returns
    that way, and copies its input at every step. Here each number of a row of 128, or
    the next longer one that divides the axis, looks at all words of its row.
    """
    if lanes == 1 or words.shape[-1] * lanes < _ROW // 2:
        return unpack_lanes(words, lanes)
    *batch, count = words.shape
    least = min(_ROW, count * lanes)
    lengths = (n for n in range(1, _ROW + 1) if count % n == 0 and n * lanes >= least)
    each = next(lengths, None)
    if each is None:
        return unpack_lanes(words, lanes)
    column = np.arange(each * lanes)
    own = column // lanes == np.arange(each)[:, None]
    bits = np.where(own, 1 << column % lanes, 0).astype(np.uint32)
    bits = bits.reshape((1,) * words.ndim + bits.shape)
    rows = jnp.any(words.reshape(*batch, count // each, each, 1) & bits != 0, -2)
    # Otherwise the compiler would merge the words' own axes after all.
    mask: jax.Array = lax.optimization_barrier(rows).reshape(*batch, count * lanes)
    return mask


def _bits_of_a_word(rows: Sequence[int], length: int) -> int:
    """Returns how many neighbours along the last axis are the bits of one word.

    Words end where a row ends, so that no device needs those of another one. The first
    axis is the batch, whose size may be unknown and must not change the mask.
    """
    if not rows or not isinstance(length, int):
        return 1
    return math.gcd(length, WORD)


def _first_axes(sharding: NamedSharding, count: int) -> NamedSharding:
    """Shards the first ``count`` axes as given, and none behind them."""
    return sharding.update(spec=PartitionSpec(*tuple(sharding.spec)[:count]))
