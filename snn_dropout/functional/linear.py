"""The affine map of a linear layer, with and without lost connections."""

import math

import jax
import jax.numpy as jnp

from snn_dropout.functional._masked import wide_dtype
from snn_dropout.functional._sharding import vary_alike
from snn_dropout.functional.connections import masked_matmul


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns ``x @ kernel + bias`` for ``[..., I]``, ``[I, O]`` and ``[O]``."""
    y = x @ kernel
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def masked_product(x: jax.Array, kernel: jax.Array, kernel_mask: jax.Array) -> jax.Array:
    """Multiplies ``[N, ..., I]`` with a masked kernel an example.

    All inputs of an example are one matrix product with its mask.
    """
    examples, *axes, features = x.shape
    if len(axes) == 1:
        return masked_matmul(x, kernel, kernel_mask)
    inputs = x.reshape(examples, math.prod(axes), features)
    y = masked_matmul(inputs, kernel, kernel_mask)
    return y.reshape(examples, *axes, kernel.shape[-1])


def add_masked_bias(y: jax.Array, bias: jax.Array, bias_mask: jax.Array) -> jax.Array:
    """Adds what a mask keeps of a bias; the mask broadcasts to ``y``."""
    # In this order devices add up gradients of the bias, not of its copies.
    bias, bias_mask = vary_alike(bias, bias_mask)
    # The gradient is a sum over all rows, in the dtype of what is added here.
    wide = wide_dtype(bias.dtype)
    kept = jnp.where(bias_mask, bias.astype(wide), jnp.zeros((), wide))
    return (y.astype(wide) + kept).astype(bias.dtype)
