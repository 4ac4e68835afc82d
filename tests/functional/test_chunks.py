"""The masked product of accelerators, in chunks and blocks, on the CPU."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snn_dropout import functional
from snn_dropout.functional import _chunks, connections
from tests.depth import cases
from tests.forms import of_accelerators
from tests.jaxprs import equations

KEY = jax.random.key(0)
# A bound that the kernels below are smaller and larger than, and the sizes in use.
every_bound = cases("bound", [7, 60, 1000, None], short=[7, 60])


@pytest.fixture
def bounded(bound, monkeypatch):
    if bound is not None:
        monkeypatch.setattr(_chunks, "SMALLEST", bound)
        monkeypatch.setattr(_chunks, "LARGEST", bound)


def problem(N, S, I, O, dtype=jnp.float32):  # noqa: E741
    keys = jax.random.split(KEY, 4)
    x = jax.random.normal(keys[0], (N, S, I), dtype)
    kernel = jax.random.normal(keys[1], (I, O), dtype)
    dy = jax.random.normal(keys[2], (N, S, O), dtype)
    mask = jax.random.bernoulli(keys[3], 0.6, (N, I, O))
    return x, kernel, dy, mask


@every_bound
@cases(
    "size",
    # Chunks and blocks of rows that are equal, overlap, or are one alone.
    [
        (5, 3, 7, 33),
        (6, 4, 13, 70),
        (1, 2, 1, 1),
        (4, 2, 8, 32),
        (3, 2, 1, 5),
        (7, 1, 5, 3),
    ],
    short=[(5, 3, 7, 33), (7, 1, 5, 3)],
)
@pytest.mark.usefixtures("bounded")
def test_products_are_those_of_an_einsum(size):
    x, kernel, dy, mask = problem(*size)
    words, dense = functional.pack_bits(mask), mask * kernel[None]
    found = (
        _chunks.forward_by_chunk(x, kernel, words),
        _chunks.input_gradient_by_chunk(kernel, dy, words),
        _chunks.kernel_gradient_by_chunk(x, dy, words),
    )
    expected = (
        jnp.einsum("nsi,nio->nso", x, dense),
        jnp.einsum("nso,nio->nsi", dy, dense),
        jnp.einsum("nsi,nso,nio->io", x, dy, mask.astype(x.dtype)),
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@cases("length", [*range(1, 13), 31, 32, 33], short=[7, 8])
def test_blocks_are_every_element_once(length):
    array = jnp.arange(1, length + 1)
    for size in range(1, length + 1):
        blocks = _chunks._Blocks(length, size)
        read = [blocks.read_once(array, jnp.int32(n), 0) for n in range(blocks.number)]
        elements = np.concatenate(read)
        assert sorted(elements[elements > 0].tolist()) == array.tolist()


@pytest.mark.parametrize(
    ("N", "I", "O"), [(64, 512, 512), (128, 4096, 4096), (3, 9, 2**24)]
)
def test_what_is_unpacked_at_a_time_is_bounded_whatever_the_batch_and_the_kernel(N, I, O):  # noqa: E741
    shapes = (N, 2, I), (N, 2, O), (N, I, -(-O // 32)), (I, O)
    x, dy, words, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    words = jax.ShapeDtypeStruct(words.shape, jnp.uint32)
    largest = max(_chunks.LARGEST, O)
    for product, arrays in (
        (_chunks.forward_by_chunk, (x, kernel, words)),
        (_chunks.input_gradient_by_chunk, (kernel, dy, words)),
        (_chunks.kernel_gradient_by_chunk, (x, dy, words)),
    ):
        for equation in equations(jax.make_jaxpr(product)(*arrays).jaxpr):
            for made in equation.outvars:
                shape = getattr(made.aval, "shape", ())
                if made.aval.dtype == bool and len(shape) > 2:
                    assert np.prod(shape) <= 2 * largest, (equation.primitive, shape)


@pytest.mark.exhaustive
@pytest.mark.parametrize("inputs_per_mask", [1, 3])
def test_derivatives_and_vmap_of_the_form_of_accelerators(inputs_per_mask):
    x, kernel, dy, mask = problem(4, inputs_per_mask, 5, 40)
    words, many = functional.pack_bits(mask), jnp.stack([x, x + 1])

    def everything(product):
        def loss(x, kernel):
            return (jnp.sin(product(x, kernel)) * dy).sum()

        return (
            product(x, kernel),
            jax.grad(loss, (0, 1))(x, kernel),
            jax.jvp(loss, (x, kernel), (x, kernel)),
            jax.vmap(jax.grad(loss, 1), (0, None))(many, kernel),
            jax.grad(lambda k: (jax.grad(loss)(x, k) ** 2).sum())(kernel),
        )

    def dense(x, kernel):
        return jnp.einsum("nsi,nio->nso", x, mask * kernel[None])

    expected = jax.jit(lambda: everything(dense))()
    with of_accelerators():
        found = jax.jit(
            lambda: everything(lambda x, k: functional.masked_matmul(x, k, words))
        )()
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_each_mask_of_many_inputs_is_a_matrix_product():
    x, kernel, dy, mask = problem(4, 3, 5, 40)
    words = functional.pack_bits(mask)
    for product, arrays in (
        (connections.forward_elsewhere, (x, kernel, words)),
        (connections.input_gradient_elsewhere, (kernel, dy, words)),
        (connections.kernel_gradient_elsewhere, (x, dy, words)),
    ):
        names = [
            e.primitive.name for e in equations(jax.make_jaxpr(product)(*arrays).jaxpr)
        ]
        assert "dot_general" in names


def test_bits_drawn_in_a_loop_are_those_of_one_pass():
    one_pass = functional.draw_bits(KEY, (5, 3, 100), 0.3)
    with of_accelerators():
        np.testing.assert_array_equal(functional.draw_bits(KEY, (5, 3, 100), 0.3), one_pass)
