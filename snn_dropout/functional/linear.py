"""The affine map of a linear layer, with and without lost connections."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from snn_dropout.functional._masked import wide_dtype
from snn_dropout.functional._sharding import batch_sharding, draw_sharded, vary_alike
from snn_dropout.functional.bits import draw_bits
from snn_dropout.functional.connections import masked_matmul
from snn_dropout.functional.masks import draw_mask

Masks = tuple[jax.Array, jax.Array | None]


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


def masked_linear(
    x_seq: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    masks: Callable[[int, NamedSharding | None], Masks],
    *,
    invariant: bool,
) -> jax.Array:
    """Multiplies all steps with kernels that have lost connections, a mask an example.

    Args:
      x_seq: the input ``[T, N, ..., I]``; the axes between are tokens, which share the
        mask of their example.
      kernel: the weights ``[I, O]``.
      bias: the bias ``[O]``, which is lost like connections, or None.
      masks: gives the masks of so many examples, split so.
      invariant: whether the steps of an example share its mask.

    Returns:
      ``[T, N, ..., O]``.
    """
    steps, examples, *tokens, inputs = x_seq.shape
    outputs = kernel.shape[1]
    # All steps of an example lie together, so that a batch that is split over
    # devices stays where it is.
    x = x_seq.swapaxes(0, 1)
    if invariant:
        # All steps of an example are one matrix product with its mask.
        kernel_mask, bias_mask = masks(examples, batch_sharding(x))
        y = masked_product(x, kernel, kernel_mask)
    else:
        x = x.reshape(-1, *tokens, inputs)
        kernel_mask, bias_mask = masks(steps * examples, batch_sharding(x))
        y = masked_product(x[:, None], kernel, kernel_mask)[:, 0]
        y = y.reshape(examples, steps, *tokens, outputs)
    if bias is not None and bias_mask is not None:
        ones = (1,) * len(tokens)
        bias_mask = bias_mask.reshape(examples, -1, *ones, outputs)
        y = add_masked_bias(y, bias, bias_mask)
    return y.swapaxes(0, 1)


def draw_connections(
    key_of: Callable[[str], jax.Array],
    shape: tuple[int, int, int],
    p: float,
    use_bias: bool,
    sharding: NamedSharding | None,
) -> Masks:
    """Draws the masks of a batch.

    Args:
      key_of: gives the key of ``"kernel_mask"`` and of ``"bias_mask"``.
      shape: examples, inputs and outputs, ``(N, I, O)``.
      p: the probability that a connection is dropped.
      use_bias: whether there is a bias.
      sharding: how the examples are split.

    Returns:
      The packed kernel mask ``[N, I, ceil(O / 32)]``, and the bias mask ``[N, O]`` or None.
    """
    kernel_mask = draw_sharded(draw_bits, key_of("kernel_mask"), shape, p, sharding)
    if not use_bias:
        return kernel_mask, None
    rows = (shape[0], shape[2])
    return kernel_mask, draw_sharded(draw_mask, key_of("bias_mask"), rows, p, sharding)
