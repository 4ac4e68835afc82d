"""Keep masks of one bit an element: drawn, packed and unpacked."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from snn_dropout._checks.connections import check_packed_width
from snn_dropout._checks.masks import check_mask_is_bool, check_probability
from snn_dropout.functional._words import WORD, bernoulli_words, philox


def pack_bits(mask: jax.Array) -> jax.Array:
    """Packs a bool mask ``[..., O]`` into words, 32 neighbours along the last axis each.

    ``words[..., w] = sum_j mask[..., 32 w + j] 2^j``

    Example::

      >>> import jax.numpy as jnp
      >>> from snn_dropout import functional
      >>> functional.pack_bits(jnp.array([True, False, True]))
      Array([5], dtype=uint32)

    Args:
      mask: bool ``[..., O]``; ``[N, I, O]`` for the connections of a linear layer.

    Returns:
      uint32 ``[..., ceil(O / 32)]``; the bits beyond ``O`` are 0.

    Raises:
      TypeError: the mask is not bool.
    """
    check_mask_is_bool(mask)
    padding = [(0, 0)] * (mask.ndim - 1) + [(0, -mask.shape[-1] % WORD)]
    padded = jnp.pad(mask, padding)
    lanes = padded.reshape(*mask.shape[:-1], packed_width(mask.shape[-1]), WORD)
    # The bits of a word are disjoint, so their sum is their union.
    return jnp.sum(
        lanes.astype(jnp.uint32) << _places(lanes.ndim, WORD), -1, dtype=jnp.uint32
    )


def unpack_bits(words: jax.Array, O: int) -> jax.Array:  # noqa: E741
    """Unpacks words to the bool mask ``[..., O]`` that :func:`pack_bits` packed.

    Example::

      >>> import jax.numpy as jnp
      >>> from snn_dropout import functional
      >>> functional.unpack_bits(jnp.array([5], jnp.uint32), 3)
      Array([ True, False,  True], dtype=bool)

    Args:
      words: uint32 ``[..., ceil(O / 32)]``.
      O: the length of the last axis of the mask.

    Returns:
      bool ``[..., O]``.

    Raises:
      TypeError, ValueError: the words are not uint32, or not as many as ``O`` needs.
    """
    check_packed_width(words, packed_width(O), O)
    return unpack_lanes(words, WORD)[..., :O]


def unpack_lanes(words: jax.Array, lanes: int) -> jax.Array:
    """Unpacks the lowest bits of words ``[..., W]`` to bool ``[..., W lanes]``."""
    bits = words[..., None] >> _places(words.ndim + 1, lanes) & np.uint32(1)
    return bits.astype(bool).reshape(*words.shape[:-1], words.shape[-1] * lanes)


def draw_bits(
    key: jax.Array,
    shape: Sequence[int],
    p: float,
    *,
    out_sharding: NamedSharding | None = None,
) -> jax.Array:
    """Draws a packed keep mask: each bit is 1 with probability ``1 - p``, independently.

    It takes as many random bits an element as ``1 - p`` has binary digits: one for
    ``p = 0.5``, two for 0.25. ``1 - p`` is rounded to 23 of them, and to 0 or 1 only
    where ``p`` is 1 or 0. The bits are the same for any number of devices.

    Example::

      >>> import jax
      >>> from snn_dropout import functional
      >>> words = functional.draw_bits(jax.random.key(0), (4, 10, 100), p=0.5)
      >>> words.shape, words.dtype
      ((4, 10, 4), dtype('uint32'))

    Args:
      key: a key of ``jax.random``; it is consumed.
      shape: the shape of the mask, unpacked.
      p: the probability of being dropped, a static number in [0, 1].
      out_sharding: the sharding of the words, as in ``jax.random``.

    Returns:
      uint32 words of the shape of ``pack_bits`` of such a mask; the bits beyond the
      last axis are arbitrary.

    Raises:
      TypeError, ValueError: ``p`` is not a static number in [0, 1].
    """
    check_probability(p)
    packed = (*shape[:-1], packed_width(shape[-1]))
    words: jax.Array = _draw(key, packed, float(p), out_sharding)
    return words


@partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _draw(
    key: jax.Array, shape: tuple[int, ...], p: float, sharding: NamedSharding | None
) -> jax.Array:
    draw = partial(_draw_words, shape=shape, p=p)
    if sharding is not None:
        explicit = sharding.mesh.explicit_axes
        draw = jax.sharding.auto_axes(draw, out_sharding=sharding, axes=explicit)
    words: jax.Array = draw(key)
    return words


def _draw_words(key: jax.Array, *, shape: tuple[int, ...], p: float) -> jax.Array:
    if p in (0, 1):
        return jnp.full(shape, 0 if p == 1 else 2**WORD - 1, jnp.uint32)
    # On CPU a row of two words would become a loop body that is not vectorized; with one
    # pass over memory for each block of random words it is three times as fast. Elsewhere
    # the compiler would repeat a long pass in all that reads the words, and take a minute.
    one_pass = shape[-1] != 2

    def draw(key: jax.Array, *, unroll: bool) -> jax.Array:
        return bernoulli_words(philox(key, shape), 1.0 - p, unroll=unroll)

    words: jax.Array = jax.lax.platform_dependent(
        key, cpu=partial(draw, unroll=one_pass), default=partial(draw, unroll=False)
    )
    return words


def packed_width(length: int) -> int:
    """Returns how many words hold ``length`` bits."""
    return -(-length // WORD)


def _places(ndim: int, lanes: int) -> jax.Array:
    return jnp.arange(lanes, dtype=jnp.uint32).reshape((1,) * (ndim - 1) + (lanes,))
