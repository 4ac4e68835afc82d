"""Keep masks as pure functions: draw one from a key, apply it to an array."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from snn_dropout._checks.layers import check_flag
from snn_dropout._checks.masks import (
    check_is_array,
    check_mask_fits,
    check_rate,
    check_rates_fit,
    is_array,
)
from snn_dropout.functional._draws import draw_alike, draw_each
from snn_dropout.functional._rates import Rate, as_rates, scale_of
from snn_dropout.functional._shapes import rate_shape
from snn_dropout.functional._sharding import draw_sharded, sharding_of, vary_alike


def draw_mask(
    key: jax.Array,
    shape: Sequence[int],
    p: Rate,
    *,
    out_sharding: NamedSharding | None = None,
) -> jax.Array:
    """Draws a keep mask: True with probability ``1 - p``, independently.

    ``mask[i] ~ Bernoulli(1 - p)``

    It takes as many random bits an element as ``1 - p`` has binary digits: one for
    ``p = 0.5``, two for 0.25. ``1 - p`` is rounded to 23 of them, and to 0 or 1 only
    where ``p`` is 1 or 0. The same key gives the same mask with and without x64, under
    every transform, and in every sharding on any number of devices.

    Where ``p`` is an array, traced or not, each element compares 23 random bits with its
    own ``p`` in float32: the same distribution, of other bits. A 0 in it keeps all and a 1
    drops all, exactly. What is out of [0, 1] raises; in a traced array, which can not, it
    is clipped, and a NaN drops.

    Example::

      >>> import jax
      >>> from snn_dropout import functional
      >>> mask = functional.draw_mask(jax.random.key(0), (2, 3), p=0.5)
      >>> mask.shape, mask.dtype
      ((2, 3), dtype('bool'))

    Args:
      key: a key of ``jax.random``; it is consumed.
      shape: the shape of the mask.
      p: the probability of being dropped in [0, 1]: a static number, or an array that
        broadcasts to ``shape``.
      out_sharding: the sharding of the mask, as in ``jax.random``.

    Returns:
      A bool array of the given shape; True means kept.

    Raises:
      TypeError, ValueError: ``p`` is neither a static number nor an array of floats, is
        not in [0, 1], or does not broadcast to ``shape``.
    """
    check_rate(p)
    if is_array(p):
        check_rates_fit(p, shape)
        each: jax.Array = draw_each(key, as_rates(p), tuple(shape), out_sharding)
        return each
    mask: jax.Array = draw_alike(key, tuple(shape), float(p), out_sharding)
    return mask


def apply_mask(x: jax.Array, mask: jax.Array, p: Rate, *, scale: bool = True) -> jax.Array:
    """Zeroes what the mask drops and scales the rest by ``1 / (1 - p)``.

    ``y = where(mask, x, 0) / (1 - p)``, without the scale if asked to

    Selecting comes before scaling, so a NaN or infinity that is dropped gives
    0 and a gradient of 0. The scale is applied in float32 (float64 stays
    float64) and the result is cast once, to the dtype of ``x``; bool and
    integer spikes come out as float32. The backward pass keeps the mask as it
    was given and nothing else: no copy of it for each time step. The gradient of an
    array ``p`` is 0; where it is 1 so is the output, and where it is NaN that is NaN.

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
      p: the probability of being dropped that the mask was drawn with, a static number
        or an array that broadcasts to the mask.
      scale: whether what is kept is scaled.

    Returns:
      An array of the shape of ``x``.

    Raises:
      TypeError, ValueError: ``p`` is neither a static number in [0, 1] nor an array of
        them that broadcasts to the mask, or the mask is not bool, or its shape does not
        broadcast to that of ``x``.

    Source: Srivastava et al. 2014, in the inverted form that scales at training.
    """
    check_rate(p)
    check_flag("scale", scale, "whether what is kept is scaled by 1 / (1 - p)")
    check_is_array("x", x)
    check_mask_fits(mask, x.shape)
    check_rates_fit(p, mask.shape)
    if is_array(p) and scale:
        return _apply_each(x, mask, as_rates(p))
    p = float(p) if scale else 0.0
    # The checkpoint keeps no residual but its inputs that the gradient reads:
    # the mask before it is broadcast over time.
    masked = jax.checkpoint(partial(_select_and_scale, p=p), prevent_cse=False)
    result: jax.Array = masked(x, mask)
    return result


def apply_stored_mask(
    x: jax.Array, mask: jax.Array, mask_p: jax.Array, p: Rate
) -> jax.Array:
    """Applies a mask with the scale of the probability that it was drawn with.

    ``y = where(mask, x, 0) / (1 - mask_p)``

    Bit for bit :func:`apply_mask` where ``mask_p`` is ``p``, which float32 rounds, and was
    a number there if it is one here.

    Args:
      x: the input, of any shape.
      mask: bool, of a shape that broadcasts to that of ``x``.
      mask_p: float32, of a shape that broadcasts to that of the mask; a constant
        for gradients.
      p: the probability that masks are drawn with now.

    Returns:
      An array of the shape of ``x``.
    """
    if is_array(p):
        return _apply_each(x, mask, lax.stop_gradient(mask_p))
    masked = jax.checkpoint(partial(_select_and_rescale, p=float(p)), prevent_cse=False)
    result: jax.Array = masked(x, mask, lax.stop_gradient(mask_p))
    return result


def _apply_each(x: jax.Array, mask: jax.Array, rates: jax.Array) -> jax.Array:
    masked = jax.checkpoint(_select_and_scale_each, prevent_cse=False)
    result: jax.Array = masked(x, mask, rates)
    return result


def _select_and_scale_each(x: jax.Array, mask: jax.Array, rates: jax.Array) -> jax.Array:
    kept, wide, out_dtype = _select(x, mask)
    rates = lax.expand_dims(rates, range(x.ndim - rates.ndim))
    return (kept.astype(wide) * scale_of(rates, wide)).astype(out_dtype)


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
    key: jax.Array, x: jax.Array, shape: Sequence[int], p: Rate
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


def fill_like(mask: jax.Array, p: Rate) -> jax.Array:
    """Returns ``p`` for each example of a mask, sharded as the mask is.

    Args:
      mask: the mask, ``[N, ...]``.
      p: the probability that it was drawn with.

    Returns:
      A float32 array ``[N, 1, ...]`` of the rank of the mask, with the lengths of ``p``
      where that is an array of more than one.
    """
    shape = rate_shape(mask.shape, jnp.shape(p))
    number = 0.0 if is_array(p) else p
    filled = lax.full(shape, number, jnp.float32, sharding=_sharding_like(mask, shape))
    if is_array(p):
        rates = as_rates(p)
        filled = filled + lax.expand_dims(rates, range(mask.ndim - rates.ndim))
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
