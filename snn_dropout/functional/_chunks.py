"""The masked product where there is a matrix unit: in chunks of the batch.

A matrix unit needs the masked kernel itself, and the compiler would unpack the masks of
all examples for it at once. So the batch is walked in chunks, and a large kernel in blocks
of rows; what is unpacked at a time is no more than ``LARGEST`` elements, whatever the
batch and the kernel are. A last block that would be shorter starts earlier instead.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snn_dropout.functional._masked import masked, wide_dtype
from snn_dropout.functional._sharding import vary_alike

LARGEST = 2**22
# A turn of a loop takes a device microseconds to start: no more turns than `CHUNKS`, and
# no smaller ones than this, as long as that is no more than `LARGEST`.
SMALLEST = 2**19
CHUNKS = 64

# Takes the number of the block of rows, that of the chunk, and the sum before them.
Add = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class _Blocks(NamedTuple):
    """An axis in equal blocks, the last of which may overlap the one before."""

    length: int
    size: int

    @property
    def number(self) -> int:
        return -(-self.length // self.size)

    def start(self, block: jax.Array) -> jax.Array:
        return jnp.minimum(block * self.size, self.length - self.size)

    def read(self, array: jax.Array, block: jax.Array, axis: int) -> jax.Array:
        if self.size is self.length:
            return array
        return lax.dynamic_slice_in_dim(array, self.start(block), self.size, axis)

    def write(
        self, array: jax.Array, part: jax.Array, block: jax.Array, axis: int
    ) -> jax.Array:
        if self.size is self.length:
            return part
        return lax.dynamic_update_slice_in_dim(array, part, self.start(block), axis)

    def read_once(self, array: jax.Array, block: jax.Array, axis: int) -> jax.Array:
        """Reads a block, with zeros for what the block before has read already."""
        part = self.read(array, block, axis)
        if self.size == 1 or self.length % self.size == 0:
            return part
        index = lax.broadcasted_iota(jnp.int32, part.shape, axis)
        is_new = self.start(block) + index >= block * self.size
        return jnp.where(is_new, part, jnp.zeros((), part.dtype))


def forward_by_chunk(x: jax.Array, kernel: jax.Array, words: jax.Array) -> jax.Array:
    """Multiplies a chunk of examples with their masked kernels at a time."""
    rows, examples = _blocks(x.shape[0], *kernel.shape)
    wide = wide_dtype(kernel.dtype)

    def add(row: jax.Array, example: jax.Array, y: jax.Array) -> jax.Array:
        product = jnp.einsum(
            "nsi,nio->nso",
            examples.read_once(rows.read_once(x, row, 2), example, 0),
            masked(
                rows.read(examples.read(words, example, 0), row, 1),
                rows.read(kernel, row, 0)[None],
            ),
            preferred_element_type=wide,
        )
        return examples.write(y, examples.read(y, example, 0) + product, example, 0)

    zero = jnp.zeros((*x.shape[:2], kernel.shape[1]), wide)
    return _walk(rows, examples, add, zero, x).astype(kernel.dtype)


def input_gradient_by_chunk(
    kernel: jax.Array, dy: jax.Array, words: jax.Array
) -> jax.Array:
    """Multiplies a chunk of cotangents with the masked kernels at a time."""
    rows, examples = _blocks(dy.shape[0], *kernel.shape)

    def put(row: jax.Array, example: jax.Array, dx: jax.Array) -> jax.Array:
        product = jnp.einsum(
            "nso,nio->nsi",
            examples.read(dy, example, 0),
            masked(
                rows.read(examples.read(words, example, 0), row, 1),
                rows.read(kernel, row, 0)[None],
            ),
            preferred_element_type=wide_dtype(kernel.dtype),
        )
        chunk = examples.read(dx, example, 0)
        chunk = rows.write(chunk, product.astype(dx.dtype), row, 2)
        return examples.write(dx, chunk, example, 0)

    zero = jnp.zeros((*dy.shape[:2], kernel.shape[0]), kernel.dtype)
    return _walk(rows, examples, put, zero, dy)


def kernel_gradient_by_chunk(x: jax.Array, dy: jax.Array, words: jax.Array) -> jax.Array:
    """Adds up what a chunk of examples gives at a time."""
    rows, examples = _blocks(x.shape[0], x.shape[2], dy.shape[2])
    wide = wide_dtype(x.dtype)

    def add(row: jax.Array, example: jax.Array, dkernel: jax.Array) -> jax.Array:
        outer = jnp.einsum(
            "nsi,nso->nio",
            examples.read_once(rows.read_once(x, row, 2), example, 0),
            examples.read(dy, example, 0),
            preferred_element_type=wide,
        )
        part = masked(rows.read(examples.read(words, example, 0), row, 1), outer).sum(0)
        return rows.write(dkernel, rows.read(dkernel, row, 0) + part, row, 0)

    zero = jnp.zeros((x.shape[2], dy.shape[2]), wide)
    return _walk(rows, examples, add, zero, x).astype(x.dtype)


def _blocks(examples: int, inputs: int, outputs: int) -> tuple[_Blocks, _Blocks]:
    """Returns how the rows of a kernel, and the examples, are divided."""
    one = max(1, inputs * outputs)
    if not isinstance(examples, int):  # in an export for any number of them
        bound = LARGEST
        chunk = 1
    else:
        bound = min(LARGEST, max(SMALLEST, examples * one // CHUNKS))
        chunk = max(1, min(examples, bound // one))
    rows = inputs if one <= bound else max(1, bound // outputs)
    return _Blocks(inputs, rows), _Blocks(examples, chunk)


def _walk(
    rows: _Blocks, examples: _Blocks, add: Add, zero: jax.Array, batch: jax.Array
) -> jax.Array:
    """Calls ``add`` for each block of rows and each chunk of examples."""
    zero, _ = vary_alike(zero, batch)

    def walk_examples(row: jax.Array, total: jax.Array) -> jax.Array:
        if examples.number == 1:
            return add(row, jnp.int32(0), total)
        walked: jax.Array = lax.fori_loop(
            0, examples.number, lambda example, total: add(row, example, total), total
        )
        return walked

    if rows.number == 1:
        return walk_examples(jnp.int32(0), zero)
    total: jax.Array = lax.fori_loop(0, rows.number, walk_examples, zero)
    return total
