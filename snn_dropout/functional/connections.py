"""A linear layer with lost connections, ``x @ (mask * kernel)``, and its gradients.

Every example has a mask of its own, packed to one bit a connection. The masks of a
batch are never unpacked together: on CPU the batch is walked example by example, the
words in cache, each device its own share of it; elsewhere it is walked in chunks that
suit a matrix unit, or, where each mask has one input only, unpacking is fused into one
reduction.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from snn_dropout._checks.connections import check_masked_matmul
from snn_dropout.functional._batching import in_turn
from snn_dropout.functional._chunks import (
    forward_by_chunk,
    input_gradient_by_chunk,
    kernel_gradient_by_chunk,
)
from snn_dropout.functional._masked import masked as _masked
from snn_dropout.functional._masked import wide_dtype
from snn_dropout.functional._sharding import join, shares, split, vary_alike
from snn_dropout.functional._trilinear import Product, trilinear
from snn_dropout.functional.bits import packed_width


def masked_matmul(x: jax.Array, kernel: jax.Array, kernel_mask: jax.Array) -> jax.Array:
    """Multiplies each example with a kernel that has lost connections of its own.

    ``y[n, s, o] = sum_i mask[n, i, o] kernel[i, o] x[n, s, i]``

    Differentiable in ``x`` and ``kernel``, in both modes and any order; forward and
    backward keep the packed mask and one unpacked ``[I, O]`` at a time.

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


def _output(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    y: jax.Array = lax.platform_dependent(
        x, kernel, words, cpu=forward_by_share, default=forward_elsewhere
    )
    return y


def _input_gradient(kernel: jax.Array, dy: jax.Array, words: jax.Array) -> jax.Array:
    dx: jax.Array = lax.platform_dependent(
        kernel, dy, words, cpu=input_gradient_by_share, default=input_gradient_elsewhere
    )
    return dx


def _kernel_gradient(x: jax.Array, dy: jax.Array, words: jax.Array) -> jax.Array:
    dkernel: jax.Array = lax.platform_dependent(
        x, dy, words, cpu=kernel_gradient_by_share, default=kernel_gradient_elsewhere
    )
    return dkernel


# The form is `sum_{n,s,i,o} mask[n, i, o] kernel[i, o] x[n, s, i] dy[n, s, o]`.
_products = _input_gradient, _kernel_gradient, _output
*_, _masked_matmul = trilinear("masked_matmul", _products)


def forward_by_share(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    """Walks the shares of the batch side by side."""
    return _by_share(forward_by_example, (0, None, 0), join, (x, kernel, words), x)


def input_gradient_by_share(
    kernel: jax.Array, dy: jax.Array, words: jax.Array
) -> jax.Array:
    """Walks the shares of the batch side by side."""
    arrays = kernel, dy, words
    return _by_share(input_gradient_by_example, (None, 0, 0), join, arrays, dy)


def kernel_gradient_by_share(x: jax.Array, dy: jax.Array, words: jax.Array) -> jax.Array:
    """Walks the shares of the batch side by side, and adds up their gradients."""
    return _by_share(kernel_gradient_by_example, (0, 0, 0), _total, (x, dy, words), x)


def _by_share(
    walk: Product,
    axes: tuple[int | None, ...],
    combine: Callable[[jax.Array], jax.Array],
    arrays: tuple[jax.Array, ...],
    batch: jax.Array,
) -> jax.Array:
    number = shares(batch)
    if number is None:
        y: jax.Array = in_turn(walk)(*arrays)
        return y
    divided = (
        array if axis is None else split(array, number)
        for array, axis in zip(arrays, axes, strict=True)
    )
    # A gradient is taken outside of the scope that names the mesh.
    with jax.sharding.use_abstract_mesh(jax.typeof(batch).sharding.mesh):
        return combine(jax.vmap(walk, axes)(*divided))


def _total(parts: jax.Array) -> jax.Array:
    return parts.sum(0)


def forward_by_example(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    """Walks the batch; each example is one product with its masked kernel."""
    product = _vector_product if x.shape[1] == 1 else _matrix_product

    def walk(rows: slice) -> jax.Array:
        def example(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, words = inputs
            y: jax.Array = product(x, words, kernel[rows])
            return y

        part: jax.Array = lax.map(example, (x[:, :, rows], words[:, rows]))
        return part

    first, *others = map(walk, _row_blocks(x, kernel))
    return sum(others, start=first)


def _row_blocks(x: jax.Array, kernel: Any) -> list[slice]:
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


def input_gradient_by_example(
    kernel: jax.Array, dy: jax.Array, words: jax.Array
) -> jax.Array:
    """Walks the batch, in a loop of its own: short bodies compile to faster code."""

    def walk(rows: slice) -> jax.Array:
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

    return jnp.concatenate([walk(rows) for rows in _row_blocks(dy, kernel)], 2)


def kernel_gradient_by_example(x: jax.Array, dy: jax.Array, words: jax.Array) -> jax.Array:
    """Walks the batch, and adds up what each example gives."""
    kernel = jax.ShapeDtypeStruct((x.shape[2], dy.shape[2]), x.dtype)

    def walk(rows: slice) -> jax.Array:
        def add(total: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
            x, dy, words = inputs
            return total + _masked(words, x.T @ dy).astype(total.dtype), None

        shape = (len(range(kernel.shape[0])[rows]), kernel.shape[1])
        zero = jnp.zeros(shape, wide_dtype(kernel.dtype))
        zero, _ = vary_alike(zero, x)
        total, _ = lax.scan(add, zero, (x[:, :, rows], dy, words[:, rows]))
        return total.astype(kernel.dtype)

    return jnp.concatenate([walk(rows) for rows in _row_blocks(x, kernel)], 0)


def forward_elsewhere(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    """Walks the batch in chunks; one input a mask is one reduction."""
    if _is_reduction(x, *kernel.shape):
        return forward_fused(x, kernel, words)
    return _by_share(forward_by_chunk, (0, None, 0), join, (x, kernel, words), x)


def input_gradient_elsewhere(
    kernel: jax.Array, dy: jax.Array, words: jax.Array
) -> jax.Array:
    """Walks the batch in chunks; one input a mask is one reduction."""
    kernel, dy, words = lax.optimization_barrier((kernel, dy, words))
    if _is_reduction(dy, *kernel.shape):
        return input_gradient_fused(kernel, dy, words)
    return _by_share(input_gradient_by_chunk, (None, 0, 0), join, (kernel, dy, words), dy)


def kernel_gradient_elsewhere(x: jax.Array, dy: jax.Array, words: jax.Array) -> jax.Array:
    """Walks the batch in chunks; one input a mask is one reduction."""
    dy, words = lax.optimization_barrier((dy, words))
    if _is_reduction(x, dy.shape[2]):
        return kernel_gradient_fused(x, dy, words)
    return _by_share(kernel_gradient_by_chunk, (0, 0, 0), _total, (x, dy, words), x)


def _is_reduction(batch: jax.Array, *sizes: int) -> bool:
    # Nothing can be cut out of an axis of no elements.
    return batch.shape[1] == 1 or 0 in (*batch.shape, *sizes)


def forward_fused(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    """One reduction over the whole batch, into which the compiler fuses unpacking."""
    # A reduction keeps its sum in the dtype of its terms, unlike a matrix product.
    wide, out_dtype = wide_dtype(kernel.dtype), kernel.dtype
    x, kernel = x.astype(wide), kernel.astype(wide)
    y = _masked(words[:, None], x[..., None] * kernel[None, None]).sum(2)
    return y.astype(out_dtype)


def input_gradient_fused(kernel: jax.Array, dy: jax.Array, words: jax.Array) -> jax.Array:
    """One reduction over the whole batch."""
    wide, out_dtype = wide_dtype(kernel.dtype), kernel.dtype
    kernel, dy = kernel.astype(wide), dy.astype(wide)
    dx = _masked(words[:, None], dy[:, :, None] * kernel[None, None]).sum(3)
    return dx.astype(out_dtype)


def kernel_gradient_fused(x: jax.Array, dy: jax.Array, words: jax.Array) -> jax.Array:
    """One reduction over the whole batch."""
    wide, out_dtype = wide_dtype(x.dtype), x.dtype
    x, dy = x.astype(wide), dy.astype(wide)
    outer = _masked(words[:, None], x[..., None] * dy[:, :, None])
    return outer.sum((0, 1)).astype(out_dtype)
