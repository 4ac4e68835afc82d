"""What all forms of the masked product share."""

import jax
import jax.numpy as jnp

from snn_dropout.functional.bits import unpack_bits


def masked(words: jax.Array, array: jax.Array) -> jax.Array:
    """Returns ``array``, ``[..., O]``, with zeros where the packed mask says so."""
    mask = unpack_bits(words, array.shape[-1])
    return jnp.where(mask, array, jnp.zeros((), array.dtype))


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which numbers of ``dtype`` are summed, float32 at least."""
    wide: jnp.dtype = dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    return wide
