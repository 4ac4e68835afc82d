"""A linear layer with lost connections, ``x @ (mask * kernel)``, and its gradients.

Every example has a mask of its own, packed to one bit a connection. The masks of a
batch are never unpacked together: on CPU the batch is walked example by example, the
words in cache, each device its own share of it; elsewhere the compiler fuses
unpacking into one reduction.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from snn_dropout._connection_checks import check_masked_matmul
from snn_dropout.functional._batching import in_turn
from snn_dropout.functional._sharding import join, shares, split, vary_alike
from snn_dropout.functional.bits import packed_width, unpack_bits


def masked_matmul(x: jax.Array, kernel: jax.Array, kernel_mask: jax.Array) -> jax.Array:
    """Multiplies each example with a kernel that has lost connections of its own.

    ``y[n, s, o] = sum_i mask[n, i, o] kernel[i, o] x[n, s, i]``

    Differentiable in ``x`` and ``kernel`` by reverse mode; forward and backward keep
    the packed mask and one unpacked ``[I, O]`` at a time.

    Example::

      >>> import jax.numpy as jnp
      >>> from snn_dropout import functional
      >>> mask = jnp.array([[[True, False], [True, True]]])            # [N, I, O]
      >>> x, kernel = jnp.array([[[1., 2.]]]), jnp.array([[3., 4.], [5., 6.]])
      >>> functional.masked_matmul(x, kernel, functional.pack_bits(mask))
      Array([[[13., 12.]]], dtype=float32)

    Args:
      x: ``[N, S, I]``, ``S`` inputs that share the mask of their example.
      kernel: ``[I, O]``, of the dtype of ``x``.
      kernel_mask: uint32 ``[N, I, ceil(O / 32)]``, as ``pack_bits`` packs it.

    Returns:
      ``[N, S, O]``.

    Raises:
      TypeError, ValueError: shapes or dtypes do not fit.
    """
    check_masked_matmul(x, kernel, kernel_mask, packed_width(kernel.shape[-1]))
    return _masked_matmul(*vary_alike(x, kernel, kernel_mask))


@jax.custom_vjp
def _masked_matmul(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    y: jax.Array = lax.platform_dependent(
        x, kernel, words, cpu=forward_by_share, default=forward_fused
    )
    return y


def _forward(x: jax.Array, kernel: jax.Array, words: jax.Array) -> tuple[jax.Array, Any]:
    return _masked_matmul(x, kernel, words), (x, kernel, words)


def _backward(residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, kernel, words = residuals
    dx, dkernel = lax.platform_dependent(
        x, kernel, words, dy, cpu=backward_by_share, default=backward_fused
    )
    return dx, dkernel, None


_masked_matmul.defvjp(_forward, _backward)


def forward_by_share(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    """Walks the shares of the batch side by side."""
    number = shares(x)
    if number is None:
        y: jax.Array = in_turn(forward_by_example)(x, kernel, words)
        return y
    walk = jax.vmap(forward_by_example, (0, None, 0))
    return join(walk(split(x, number), kernel, split(words, number)))


def backward_by_share(
    x: jax.Array, kernel: jax.Array, words: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Walks the shares of the batch side by side, and adds up their kernel gradients."""
    number = shares(x)
    if number is None:
        gradients: tuple[jax.Array, jax.Array] = in_turn(backward_by_example)(
            x, kernel, words, dy
        )
        return gradients
    walk = jax.vmap(backward_by_example, (0, None, 0, 0))
    shared = (split(array, number) for array in (words, dy))
    with jax.sharding.use_abstract_mesh(jax.typeof(x).sharding.mesh):
        dx, dkernel = walk(split(x, number), kernel, *shared)
    return join(dx), dkernel.sum(0)


def forward_by_example(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    """Walks the batch; each example is one product with its masked kernel."""
    product = _vector_product if x.shape[1] == 1 else _matrix_product
    # Under a gradient of a scan over time JAX moves zeros and bit positions out of the
    # loops, and then they are read from memory element by element, 8 times as slow. It
    # leaves a checkpoint whole.
    product = jax.checkpoint(product, prevent_cse=False)

    def walk(rows: slice) -> jax.Array:
        def example(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, words = inputs
            y: jax.Array = product(x, words, kernel[rows])
            return y

        part: jax.Array = lax.map(example, (x[:, :, rows], words[:, rows]))
        return part

    first, *others = map(walk, _row_blocks(x, kernel))
    return sum(others, start=first)


def _row_blocks(x: jax.Array, kernel: jax.Array) -> list[slice]:
    # A matrix product writes and reads a masked block: up to 2^17 elements it stays in
    # the second cache with what it is multiplied with, a tenth faster. Each block is a
    # loop of its own to compile, hence no more than four.
    inputs = max(kernel.shape[0], 1)
    blocks = 1 if x.shape[1] == 1 else max(1, min(4, -(-kernel.size // 2**17)))
    rows = -(-inputs // blocks)
    return [slice(start, start + rows) for start in range(0, inputs, rows)]


def _matrix_product(x: jax.Array, words: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ _masked(words, kernel)


def _vector_product(x: jax.Array, words: jax.Array, kernel: jax.Array) -> jax.Array:
    # A sum over rows compiles to scattered reads. Adding 16 blocks of rows elementwise
    # first leaves a short sum, and is two to four times faster (with 8 blocks XLA takes
    # another path, five times slower).
    blocks = 16
    rows = max(1, -(-kernel.shape[0] // blocks))

    def split(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, blocks * rows - array.shape[0]), (0, 0)))
        return padded.reshape(blocks, rows, -1)

    # As in a matrix product, sums are kept in float32 at least.
    wide = wide_dtype(kernel.dtype)
    total = jnp.zeros((rows, kernel.shape[1]), wide)
    rowwise = split(x.T.astype(wide)), split(words), split(kernel.astype(wide))
    for inputs, mask, weights in zip(*rowwise, strict=True):
        total += _masked(mask, weights * inputs)
    return (jnp.ones((1, rows), wide) @ total).astype(kernel.dtype)


def backward_by_example(
    x: jax.Array, kernel: jax.Array, words: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Walks the batch twice: two short loop bodies compile to faster code than one."""

    def input_gradient(rows: slice) -> jax.Array:
        block = kernel[rows]

        def vectors(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            dy, words = inputs
            return dy @ _masked(words, block).T

        def turned(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            # With the masked kernel on the left, and turned outside of the loop: inside
            # of it XLA would turn the kernel instead, which takes half as long again.
            dy, words = inputs
            return lax.dot_general(_masked(words, block), dy, (((1,), (1,)), ((), ())))

        inputs = (dy, words[:, rows])
        dx: jax.Array
        if dy.shape[1] == 1:
            dx = lax.map(vectors, inputs)
        else:
            dx = lax.map(turned, inputs).swapaxes(1, 2)
        return dx

    def kernel_gradient(rows: slice) -> jax.Array:
        def add(total: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
            x, dy, words = inputs
            return total + _masked(words, x.T @ dy).astype(total.dtype), None

        zero = jnp.zeros(kernel[rows].shape, wide_dtype(kernel.dtype))
        zero, _ = vary_alike(zero, x)
        total, _ = lax.scan(add, zero, (x[:, :, rows], dy, words[:, rows]))
        return total.astype(kernel.dtype)

    blocks = _row_blocks(x, kernel)
    dx = jnp.concatenate([input_gradient(rows) for rows in blocks], 2)
    return dx, jnp.concatenate([kernel_gradient(rows) for rows in blocks], 0)


def forward_fused(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    """One reduction over the whole batch, into which the compiler fuses unpacking."""
    # A reduction keeps its sum in the dtype of its terms, unlike a matrix product.
    wide, out_dtype = wide_dtype(kernel.dtype), kernel.dtype
    x, kernel = x.astype(wide), kernel.astype(wide)
    y = _masked(words[:, None], x[..., None] * kernel[None, None]).sum(2)
    return y.astype(out_dtype)


def backward_fused(
    x: jax.Array, kernel: jax.Array, words: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Two reductions over the whole batch."""
    wide, out_dtype = wide_dtype(kernel.dtype), kernel.dtype
    x, kernel, dy = x.astype(wide), kernel.astype(wide), dy.astype(wide)
    dx = _masked(words[:, None], dy[:, :, None] * kernel[None, None]).sum(3)
    outer = _masked(words[:, None], x[..., None] * dy[:, :, None])
    return dx.astype(out_dtype), outer.sum((0, 1)).astype(out_dtype)


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which numbers of ``dtype`` are summed, float32 at least."""
    wide: jnp.dtype = dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    return wide


def _masked(words: jax.Array, array: jax.Array) -> jax.Array:
    mask = unpack_bits(words, array.shape[-1])
    return jnp.where(mask, array, jnp.zeros((), array.dtype))
