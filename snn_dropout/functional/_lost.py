"""All time steps of a linear layer that loses connections: masks, and the product."""

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


def lose_connections(
    x_seq: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    masks: Callable[[int, NamedSharding | None], Masks],
    *,
    invariant: bool,
) -> jax.Array:
    """Multiplies all steps with kernels that have lost connections, a mask an example.

    Args:
      x_seq: the input ``[T, N, I]``.
      kernel: the weights ``[I, O]``.
      bias: the bias ``[O]``, which is lost like connections, or None.
      masks: gives the masks of so many examples, split so.
      invariant: whether the steps of an example share its mask.

    Returns:
      ``[T, N, O]``.
    """
    steps, examples, inputs = x_seq.shape
    outputs = kernel.shape[1]
    # All steps of an example lie together, so that a batch that is split over
    # devices stays where it is.
    x = x_seq.swapaxes(0, 1)
    if invariant:
        # All steps of an example are one matrix product with its mask.
        kernel_mask, bias_mask = masks(examples, batch_sharding(x))
        y = masked_matmul(x, kernel, kernel_mask)
    else:
        x = x.reshape(-1, inputs)
        kernel_mask, bias_mask = masks(steps * examples, batch_sharding(x))
        y = masked_matmul(x[:, None], kernel, kernel_mask)[:, 0]
        y = y.reshape(examples, steps, outputs)
    if bias is not None and bias_mask is not None:
        bias_mask = bias_mask.reshape(examples, -1, outputs)
        # In this order devices add up gradients of the bias, not of its copies.
        bias, bias_mask = vary_alike(bias, bias_mask)
        # The gradient is a sum over all rows, in the dtype of what is added here.
        wide = wide_dtype(bias.dtype)
        kept = jnp.where(bias_mask, bias.astype(wide), jnp.zeros((), wide))
        y = (y.astype(wide) + kept).astype(bias.dtype)
    return y.swapaxes(0, 1)
