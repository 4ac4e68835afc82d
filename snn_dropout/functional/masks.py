"""Keep masks as pure functions: draw one from a key, apply it to an array."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard
from jax.typing import DTypeLike

from snn_dropout._checks.masks import check_is_array, check_mask_fits, check_probability
from snn_dropout.functional._sharding import draw_sharded, sharding_of, vary_alike
from snn_dropout.functional._words import (
    WORD,
    bernoulli,
    bernoulli_words,
    binary_digits,
    threefry,
)
from snn_dropout.functional.bits import unpack_lanes


def draw_mask(
    key: jax.Array,
    shape: Sequence[int],
    p: float,
    *,
    out_sharding: NamedSharding | None = None,
) -> jax.Array:
    """Draws a keep mask: True with probability ``1 - p``, independently.

    ``mask[i] ~ Bernoulli(1 - p)``

    It takes as many random bits an element as ``1 - p`` has binary digits: one for
    ``p = 0.5``, two for 0.25. ``1 - p`` is rounded to 23 of them, and to 0 or 1 only
    where ``p`` is 1 or 0. The same key gives the same mask with and without x64, under
    every transform, and in every sharding on any number of devices.

    Example::

      >>> import jax
      >>> from snn_dropout import functional
      >>> mask = functional.draw_mask(jax.random.key(0), (2, 3), p=0.5)
      >>> mask.shape, mask.dtype
      ((2, 3), dtype('bool'))

    Args:
      key: a key of ``jax.random``; it is consumed.
      shape: the shape of the mask.
      p: the probability of being dropped, a static number in [0, 1].
      out_sharding: the sharding of the mask, as in ``jax.random``.

    Returns:
      A bool array of the given shape; True means kept.

    Raises:
      TypeError, ValueError: ``p`` is not a static number in [0, 1].
    """
    check_probability(p)
    mask: jax.Array = _draw(key, tuple(shape), float(p), out_sharding)
    return mask


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(
    key: jax.Array, shape: tuple[int, ...], p: float, sharding: NamedSharding | None
) -> jax.Array:
    if p in (0.0, 1.0):
        return lax.full(shape, p == 0, jnp.bool_, sharding=sharding)
    if not shape:
        return jnp.squeeze(draw_mask(key, (1,), p))
    q = 1.0 - p
    # Axes behind the last one that is not shared are set aside: they are all 1.
    ndim = 1 + max((axis for axis, length in enumerate(shape) if length != 1), default=0)
    *rows, length = shape[:ndim]
    bits = _bits_of_a_word(rows, length)
    if len(binary_digits(q)) > bits:
        first_axes = None if sharding is None else _first_axes(sharding, ndim)
        mask = bernoulli(threefry(key, (*rows, length), first_axes), q)
    else:
        first_axes = None if sharding is None else _first_axes(sharding, ndim - 1)
        words = bernoulli_words(threefry(key, (*rows, length // bits), first_axes), q)
        mask = unpack_lanes(words, bits)
    mask = lax.expand_dims(mask, range(ndim, len(shape)))
    if sharding is not None:
        mask = reshard(mask, sharding)
    # One mask in memory, not another draw of it for each time step that reads it.
    kept: jax.Array = lax.optimization_barrier(mask)
    return kept


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


def apply_mask(x: jax.Array, mask: jax.Array, p: float) -> jax.Array:
    """Zeroes what the mask drops and scales the rest by ``1 / (1 - p)``.

    ``y = where(mask, x, 0) / (1 - p)``

    Selecting comes before scaling, so a NaN or infinity that is dropped gives
    0 and a gradient of 0. The scale is applied in float32 (float64 stays
    float64) and the result is cast once, to the dtype of ``x``; bool and
    integer spikes come out as float32. The backward pass keeps the mask as it
    was given and nothing else: no copy of it for each time step.

    Example::

      >>> import jax.numpy as jnp
      >>> from snn_dropout import functional
      >>> x_seq = jnp.ones((2, 3))                       # [T, N]
      >>> mask = jnp.array([True, False, True])          # [N], held over T
      >>> functional.apply_mask(x_seq, mask, p=0.5)
      Array([[2., 0., 2.],
             [2., 0., 2.]], dtype=float32)

    Args:
      x: the input, of any shape.
      mask: bool, of a shape that broadcasts to that of ``x``.
      p: the probability of being dropped that the mask was drawn with.

    Returns:
      An array of the shape of ``x``.

    Raises:
      TypeError, ValueError: ``p`` is not a static number in [0, 1], or the mask
        is not bool, or its shape does not broadcast to that of ``x``.

    Source: Srivastava et al. 2014, in the inverted form that scales at training.
    """
    check_probability(p)
    check_is_array("x", x)
    check_mask_fits(mask, x.shape)
    # The checkpoint keeps no residual but its inputs that the gradient reads:
    # the mask before it is broadcast over time.
    masked = jax.checkpoint(partial(_select_and_scale, p=float(p)), prevent_cse=False)
    result: jax.Array = masked(x, mask)
    return result


def apply_stored_mask(
    x: jax.Array, mask: jax.Array, mask_p: jax.Array, p: float
) -> jax.Array:
    """Applies a mask with the scale of the probability that it was drawn with.

    ``y = where(mask, x, 0) / (1 - mask_p)``

    Bit for bit :func:`apply_mask` where ``mask_p`` is ``p``, which float32 rounds.

    Args:
      x: the input, of any shape.
      mask: bool, of a shape that broadcasts to that of ``x``.
      mask_p: float32, of a shape that broadcasts to that of the mask; a constant
        for gradients.
      p: the probability that masks are drawn with now.

    Returns:
      An array of the shape of ``x``.
    """
    masked = jax.checkpoint(partial(_select_and_rescale, p=float(p)), prevent_cse=False)
    result: jax.Array = masked(x, mask, lax.stop_gradient(mask_p))
    return result


def _select_and_scale(x: jax.Array, mask: jax.Array, p: float) -> jax.Array:
    kept, wide, out_dtype = _select(x, mask)
    if p in (0.0, 1.0):
        return kept.astype(out_dtype)
    return (kept.astype(wide) * _scale(p, wide)).astype(out_dtype)


def _select_and_rescale(
    x: jax.Array, mask: jax.Array, mask_p: jax.Array, p: float
) -> jax.Array:
    kept, wide, out_dtype = _select(x, mask)
    mask_p = lax.expand_dims(mask_p, range(x.ndim - mask_p.ndim))
    q = 1 - mask_p.astype(np.finfo(wide).dtype)
    own = jnp.where(q > 0, 1 / jnp.where(q > 0, q, 1), 0).astype(wide)
    # That of the p at hand is rounded once, from a Python float.
    scale = jnp.where(mask_p == np.float32(p), _scale(p, wide), own)
    return (kept.astype(wide) * scale).astype(out_dtype)


def _select(x: jax.Array, mask: jax.Array) -> tuple[jax.Array, DTypeLike, DTypeLike]:
    kept = jnp.where(mask, x, jnp.zeros((), x.dtype))
    out_dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32
    wide = out_dtype if jnp.dtype(out_dtype).itemsize >= 4 else jnp.float32
    return kept, wide, out_dtype


def _scale(p: float, dtype: DTypeLike) -> np.ndarray:
    # A product, not a quotient: XLA turns a quotient by a constant into a product
    # under jit and not in eager mode, and the results differ in the last bit.
    return np.asarray(1.0 / (1.0 - p) if p < 1 else 0.0, dtype)


def draw_mask_like(
    key: jax.Array, x: jax.Array, shape: Sequence[int], p: float
) -> jax.Array:
    """Draws a mask of ``shape`` for ``x`` that is sharded as ``x`` is.

    Axes of the mask of length 1 are not sharded; an axis of ``x`` beyond the
    mask's rank, counted from the right, is ignored (the time axis).

    Args:
      key: a key of ``jax.random``; it is consumed.
      x: the array the mask is for; only its shape and sharding are read.
      shape: the shape of the mask, of a rank up to that of ``x``.
      p: the probability of being dropped.

    Returns:
      A bool array of the given shape.
    """
    return draw_sharded(draw_mask, key, shape, p, _sharding_like(x, shape))


def fill_like(mask: jax.Array, p: float) -> jax.Array:
    """Returns ``p`` for each example of a mask, sharded as the mask is.

    Args:
      mask: the mask, ``[N, ...]``.
      p: the probability that it was drawn with.

    Returns:
      A float32 array ``[N, 1, ...]`` of the rank of the mask.
    """
    shape = mask.shape[:1] + (1,) * (mask.ndim - 1)
    filled = lax.full(shape, p, jnp.float32, sharding=_sharding_like(mask, shape))
    filled, _ = vary_alike(filled, mask)
    return filled


def _sharding_like(x: jax.Array, shape: Sequence[int]) -> NamedSharding | None:
    sharding = sharding_of(x)
    if sharding is None:
        return None
    spec = tuple(sharding.spec) + (None,) * (x.ndim - len(sharding.spec))
    spec = spec[x.ndim - len(shape) :]
    axes = (None if length == 1 else axis for length, axis in zip(shape, spec, strict=True))
    return sharding.update(spec=PartitionSpec(*axes))
