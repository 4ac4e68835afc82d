"""Products with masked kernels against an einsum with the same mask, in every form."""

from functools import partial
from operator import itemgetter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from snn_dropout import functional
from snn_dropout.functional import connections
from tests.depth import cases
from tests.jaxprs import count, equations

KEY = jax.random.key(0)


def problem(examples=3, inputs_per_mask=2, I=5, O=40, dtype=jnp.float32):  # noqa: E741
    keys = jax.random.split(KEY, 4)
    x = jax.random.normal(keys[0], (examples, inputs_per_mask, I), dtype)
    kernel = jax.random.normal(keys[1], (I, O), dtype)
    dy = jax.random.normal(keys[2], (examples, inputs_per_mask, O), dtype)
    mask = jax.random.bernoulli(keys[3], 0.6, (examples, I, O))
    return x, kernel, mask, dy


def reference(x, kernel, mask):
    return jnp.einsum("nsi,io,nio->nso", x, kernel, mask.astype(x.dtype))


@pytest.mark.optimised
@cases("inputs_per_mask", [1, 2], short=[2])
@cases(
    "size",
    [(5, 40), (0, 3), (1, 1), (33, 64), (301, 1000)],
    short=[(5, 40), (301, 1000)],
)
def test_forward_and_gradients_equal_an_einsum(inputs_per_mask, size):
    x, kernel, mask, dy = problem(3, inputs_per_mask, *size)
    words = functional.pack_bits(mask)
    y, pullback = jax.vjp(lambda x, k: functional.masked_matmul(x, k, words), x, kernel)
    expected, expected_pullback = jax.vjp(lambda x, k: reference(x, k, mask), x, kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    for grad, other in zip(pullback(dy), expected_pullback(dy), strict=True):
        np.testing.assert_allclose(grad, other, rtol=1e-4, atol=1e-4)


@pytest.mark.short
@pytest.mark.parametrize("inputs_per_mask", [1, 2])
@pytest.mark.parametrize("outputs", [1, 2**15, 2**17, 2**18 + 1])
def test_blocks_of_rows_are_every_row_once(inputs_per_mask, outputs):
    for inputs in range(1, 12):
        x = jax.ShapeDtypeStruct((3, inputs_per_mask, inputs), jnp.float32)
        kernel = jax.ShapeDtypeStruct((inputs, outputs), jnp.float32)
        blocks = [range(inputs)[rows] for rows in connections._row_blocks(x, kernel)]
        assert [row for block in blocks for row in block] == list(range(inputs))
        assert len(blocks) <= 4


PRODUCTS = {  # and which of x, kernel and dy each multiplies
    "forward": itemgetter(0, 1),
    "input_gradient": itemgetter(1, 2),
    "kernel_gradient": itemgetter(0, 2),
}
every_product = pytest.mark.parametrize("product", PRODUCTS)


@pytest.mark.parametrize("inputs_per_mask", [1, 2])
@every_product
def test_the_accelerators_form_equals_the_cpus(inputs_per_mask, product):
    x, kernel, mask, dy = problem(inputs_per_mask=inputs_per_mask)
    arrays = *PRODUCTS[product]((x, kernel, dy)), functional.pack_bits(mask)
    fused, by_example = (
        getattr(connections, f"{product}_{form}")(*arrays)
        for form in ("fused", "by_example")
    )
    np.testing.assert_allclose(fused, by_example, rtol=1e-5, atol=1e-5)


@cases("order", [1, 2], short=[2])
def test_check_grads(order):
    x, kernel, mask, _ = problem()
    words = functional.pack_bits(mask)
    check_grads(
        lambda x, kernel: functional.masked_matmul(x, kernel, words) ** 2,
        (x, kernel),
        order=order,
        modes=["fwd", "rev"],
        rtol=2e-2,
    )


@cases("inputs_per_mask", [1, 2], short=[2])
def test_derivatives_of_both_modes_equal_an_einsums(inputs_per_mask):
    x, kernel, mask, dy = problem(2, inputs_per_mask, 2, 3)
    words = functional.pack_bits(mask)

    def everything(product, x, kernel):
        def loss(x, kernel):
            return (jnp.sin(product(x, kernel)) * dy).sum()

        return (
            jax.linearize(product, x, kernel)[1](x + 1, kernel),
            jax.jacfwd(jax.checkpoint(product), 1)(x, kernel),
            jax.hessian(loss)(x, kernel),
            jax.jacrev(jax.jacfwd(loss, 1))(x, kernel),
            jax.linear_transpose(lambda x: product(x, kernel), x)(dy),
        )

    product = partial(functional.masked_matmul, kernel_mask=words)
    found = jax.jit(partial(everything, product))(x, kernel)
    expected = jax.jit(partial(everything, partial(reference, mask=mask)))(x, kernel)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1])
def test_derivatives_are_taken_of_what_varies_and_of_nothing_else(place):
    *arrays, mask, dy = problem()
    words = functional.pack_bits(mask)

    def product(varied):
        return functional.masked_matmul(
            *(varied if n == place else array for n, array in enumerate(arrays)), words
        )

    def forward(varied):
        return jax.jvp(product, (varied,), (varied,))

    def backward(varied, dy):
        return jax.vjp(product, varied)[1](dy)

    for function, given, products in (
        (product, (arrays[place],), 1),
        (forward, (arrays[place],), 2),
        (backward, (arrays[place], dy), 2),
    ):
        jaxpr = jax.make_jaxpr(function)(*given).jaxpr
        assert count(jaxpr, "masked_matmul") == products


@cases(
    "inputs_per_mask, axes",
    [(1, (0, None, 0)), (1, (0, 0, 0)), (2, (1, 1, 2))],
    short=[(2, (1, 1, 2))],
)
def test_vmapped_products_are_products_alone_also_in_gradients(inputs_per_mask, axes):
    x, kernel, mask, _ = problem(inputs_per_mask=inputs_per_mask)
    words = functional.pack_bits(mask)
    networks = [
        jnp.stack([array, array[::-1]], 0 if axis is None else axis)
        for array, axis in zip((x, kernel, words), axes, strict=True)
    ]
    vmapped = [
        array if axis is not None else array[0]
        for array, axis in zip(networks, axes, strict=True)
    ]

    def loss(x, kernel, words):
        return (functional.masked_matmul(x, kernel, words) ** 2).sum()

    def size_of_gradient(x, kernel, words):
        parts = jax.grad(loss, (0, 1))(x, kernel, words)
        return sum((part**2).sum() for part in parts)

    def everything(x, kernel, words):
        first, second = jax.grad(loss, (0, 1)), jax.grad(size_of_gradient, (0, 1))
        forward = jax.jacfwd(lambda a: functional.masked_matmul(x * a, kernel * a, words))
        return [
            functional.masked_matmul(x, kernel, words),
            first(x, kernel, words),
            second(x, kernel, words),
            forward(1.5),
        ]

    found, alone = jax.jit(jax.vmap(everything, axes))(*vmapped), jax.jit(everything)
    for network in range(2):
        own = [
            array if axis is None else jnp.take(array, network, axis)
            for array, axis in zip(vmapped, axes, strict=True)
        ]
        chex.assert_trees_all_close(
            jax.tree.map(itemgetter(network), found), alone(*own), rtol=1e-4
        )


@every_product
def test_vmapped_products_are_walked_in_turn(product):
    """A wider loop body leaves the cache, and is several times as slow."""
    x, kernel, mask, dy = problem()
    arrays = *PRODUCTS[product]((x, kernel, dy)), functional.pack_bits(mask)
    networks = [jnp.stack([array] * 7) for array in arrays]
    walk = jax.vmap(getattr(connections, f"{product}_by_share"))
    jaxpr = jax.make_jaxpr(walk)(*networks).jaxpr
    masked = [e for e in equations(jaxpr) if e.primitive.name == "select_n"]
    assert masked
    assert all(equation.outvars[0].aval.ndim == 2 for equation in masked)


@pytest.mark.parametrize(
    ("sizes", "loops"),
    [
        ((3, 2, 5, 40), 1),
        ((2, 1, 600, 600), 1),
        ((1, 2, 512, 256), 1),
        ((1, 2, 513, 256), 2),
        ((2, 3, 600, 600), 3),
        ((2, 2, 3000, 600), 4),
    ],
)
def test_the_batch_is_walked_once_for_each_part_of_the_kernel_that_fits_the_cache(
    sizes, loops
):
    """Vectors take one walk; gradients of inputs are turned after it, if they are more."""
    examples, inputs_per_mask, inputs, outputs = sizes
    float32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    x = float32((examples, inputs_per_mask, inputs))
    kernel = float32((inputs, outputs))
    dy = float32((examples, inputs_per_mask, outputs))
    words = jax.ShapeDtypeStruct((examples, inputs, -(-outputs // 32)), jnp.uint32)

    def walks(product, *arrays):
        program = jax.make_jaxpr(product)(*arrays, words).jaxpr
        return [e for e in equations(program) if e.primitive.name == "scan"]

    assert len(walks(connections.forward_by_example, x, kernel)) == loops
    assert len(walks(connections.kernel_gradient_by_example, x, dy)) == loops
    turning = walks(connections.input_gradient_by_example, kernel, dy)
    assert len(turning) == loops
    rows = -(-inputs // loops)
    turned = (rows, inputs_per_mask) if inputs_per_mask > 1 else (1, rows)
    assert turning[0].outvars[0].aval.shape == (examples, *turned)


@cases("dtype", [jnp.bfloat16, jnp.float16], short=[jnp.bfloat16])
@cases("inputs_per_mask", [1, 2], short=[2])
def test_half_precision(dtype, inputs_per_mask):
    """Products are those of float32, but for a rounding of the terms and of the sum."""
    x, kernel, mask, dy = problem(3, inputs_per_mask, 70, dtype=dtype)
    words = functional.pack_bits(mask)

    def all_three(product, x, kernel, dy):
        y, pullback = jax.vjp(product, x, kernel)
        return y, *pullback(dy)

    found = jax.jit(
        partial(all_three, partial(functional.masked_matmul, kernel_mask=words))
    )
    wide = [array.astype(jnp.float32) for array in (x, kernel, dy)]
    expected = jax.jit(partial(all_three, partial(reference, mask=mask)))
    sizes = expected(*map(jnp.abs, wide))
    for half, exact, size in zip(found(x, kernel, dy), expected(*wide), sizes, strict=True):
        assert half.dtype == dtype
        error = np.abs(half.astype(jnp.float32) - exact)
        assert (error <= float(jnp.finfo(dtype).eps) * size).all()


def test_one_program_serves_all_platforms():
    x, kernel, mask, _ = problem()
    words = functional.pack_bits(mask)

    def loss(kernel):
        return functional.masked_matmul(x, kernel, words).sum()

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=["cpu", "cuda", "tpu"])(
        kernel
    )
    np.testing.assert_allclose(exported.call(kernel), jax.grad(loss)(kernel), rtol=1e-6)


@pytest.mark.parametrize(("invariant", "most"), [(True, 8), (False, 20)])
def test_temporary_memory_of_a_training_step_is_bounded(invariant, most):
    """The packed masks are 2 and 16 MiB; one byte an element, they would be 16 and 128."""
    steps, examples, width = 8, 64, 512
    batch = examples if invariant else steps * examples
    x = jnp.ones((batch, steps if invariant else 1, width))
    kernel = jnp.ones((width, width))

    def loss(x, kernel, key):
        words = functional.draw_bits(key, (batch, width, width), 0.5)
        return functional.masked_matmul(x, kernel, words).sum()

    compiled = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(x, kernel, KEY).compile()
    )
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary <= most * 2**20


def test_errors():
    x, kernel, mask, _ = problem()
    words = functional.pack_bits(mask)
    for bad in ((x[0], kernel, words), (x, kernel[:2], words), (x, kernel, words[:1])):
        with pytest.raises(ValueError, match=r"must fit together.*shapes.*pack_bits"):
            functional.masked_matmul(*bad)
    with pytest.raises(TypeError, match=r"one dtype and `kernel_mask` uint32.*astype"):
        functional.masked_matmul(x.astype(jnp.bfloat16), kernel, words)
    with pytest.raises(TypeError, match=r"one dtype and `kernel_mask` uint32.*astype"):
        functional.masked_matmul(x, kernel, words.astype(jnp.int32))
