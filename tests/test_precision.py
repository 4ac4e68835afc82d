"""Half precision: what is summed is summed wide, whatever the dtype of its terms.

A sum of ones that is kept in bfloat16 stops at 256, one in float16 at 2048.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout import functional
from snn_dropout.functional import _chunks, connections
from tests.depth import cases
from tests.jaxprs import equations
from tests.neurons import LIF

MANY = 4096
RNGS = {"dropout": jax.random.key(5)}
FORMS = {
    "cpu": (
        connections.forward_by_example,
        connections.input_gradient_by_example,
        connections.kernel_gradient_by_example,
    ),
    "accelerators": (
        connections.forward_fused,
        connections.input_gradient_fused,
        connections.kernel_gradient_fused,
    ),
    "accelerators, in chunks": (
        _chunks.forward_by_chunk,
        _chunks.input_gradient_by_chunk,
        _chunks.kernel_gradient_by_chunk,
    ),
}
SUMS = ("dot_general", "reduce_sum")
every_half = cases("dtype", [jnp.bfloat16, jnp.float16], short=[jnp.bfloat16])
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def wide(array):
    return np.asarray(array, np.float32)


# Each sum is long in one of them: N examples, S inputs of a mask, I, O.
SIZES = [
    (MANY, 1, 1, 1),  # the kernel's gradient is a sum over examples,
    (64, 64, 1, 1),
    (1, MANY, 1, 1),  # and over the inputs of one mask,
    (1, 1, MANY, 1),  # the output one over inputs,
    (1, 1, 16, 1),
    (1, 2, MANY, 1),
    (1, 1, 1, MANY),  # the gradient of the input one over outputs.
    (1, 2, 1, MANY),
]


def terms(examples, inputs_per_mask, inputs, outputs):
    """Ones, but for the first term of each sum: 256, to which no 1 is added in bfloat16."""
    x = np.ones((examples, inputs_per_mask, inputs))
    dy = np.ones((examples, inputs_per_mask, outputs))
    (x if outputs == 1 else dy).flat[0] = 256
    return x, np.ones((inputs, outputs)), dy


@every_form
@every_half
def test_sums_of_products_are_wide(form, dtype):
    """The output and both gradients, rounded once, where all connections are kept."""
    forward, input_gradient, kernel_gradient = form

    @jax.jit
    def run(problems):
        results = []
        for x, kernel, dy in problems:
            mask = jnp.ones((len(x), *kernel.shape), bool)
            words = functional.pack_bits(mask)
            gradients = input_gradient(kernel, dy, words), kernel_gradient(x, dy, words)
            results.append((forward(x, kernel, words), *gradients))
        return results

    problems = [terms(*size) for size in SIZES]
    given = jax.tree.map(lambda array: jnp.asarray(array, dtype), problems)
    for (x, kernel, dy), results in zip(problems, run(given), strict=True):
        expected = x @ kernel, dy @ kernel.T, np.einsum("nsi,nso->io", x, dy)
        for result, value in zip(results, expected, strict=True):
            assert result.dtype == dtype
            np.testing.assert_array_equal(wide(result), wide(jnp.asarray(value, dtype)))


@pytest.mark.parametrize("name", [name for name in FORMS if name != "cpu"])
@every_half
def test_sums_of_products_say_that_they_are_wide(name, dtype):
    """For devices whose compiler would take the dtype of the terms, unlike that of CPUs."""
    x, kernel, dy = (jnp.ones(shape, dtype) for shape in [(4, 3, 40), (40, 50), (4, 3, 50)])
    words = functional.pack_bits(jnp.ones((4, 40, 50), bool))
    given = (x, kernel), (kernel, dy), (x, dy)
    for function, arrays in zip(FORMS[name], given, strict=True):
        traced = jax.make_jaxpr(function)(*arrays, words).jaxpr
        sums = [e for e in equations(traced) if e.primitive.name in SUMS]
        assert sums, function
        assert {e.outvars[0].aval.dtype for e in sums} == {np.dtype("float32")}, function


@cases(
    "invariant, step_mode",
    [(i, m) for i in (True, False) for m in "sm"],
    short=[(True, "m")],
)
def test_gradients_of_lost_connections_are_sums_over_all_rows(invariant, step_mode):
    """That of the bias, too, over steps and examples."""
    dtype = jnp.bfloat16
    layer = sd.DropConnectLinear(
        1,
        1,
        p=1e-9,
        invariant=invariant,
        step_mode=step_mode,
        activation=None,
        deterministic=False,
    )
    shape = (MANY, 1) if step_mode == "s" else (64, 64, 1)
    params = {"kernel": jnp.ones((1, 1), dtype), "bias": jnp.ones(1, dtype)}

    @jax.jit
    @jax.grad
    def gradient(params, x):
        y, _ = layer.apply({"params": params}, x, rngs=RNGS, mutable=["state"])
        assert y.dtype == dtype
        return y.sum(dtype=jnp.float32)

    grads = gradient(params, jnp.ones(shape, dtype))
    for grad in grads.values():
        assert grad.dtype == dtype
        np.testing.assert_array_equal(wide(grad), MANY)


@pytest.mark.parametrize("invariant", [True, False])
def test_no_reduction_is_of_half_precision_on_any_platform(invariant):
    """The program holds the form of every platform; products widen their sums alone."""
    layer = sd.DropConnectLinear(
        6, 5, invariant=invariant, step_mode="m", deterministic=False
    )
    half = jnp.bfloat16
    params = {"kernel": jnp.ones((6, 5), half), "bias": jnp.ones(5, half)}

    def loss(params, x_seq):
        y_seq, _ = layer.apply({"params": params}, x_seq, rngs=RNGS, mutable=["state"])
        return y_seq.sum(dtype=jnp.float32)

    gradient = jax.grad(loss, argnums=(0, 1))
    program = jax.make_jaxpr(gradient)(params, jnp.ones((4, 3, 6), half))
    sums = [
        (equation.invars[0].aval, equation.outvars[0].aval)
        for equation in equations(program.jaxpr)
        if equation.primitive.name == "reduce_sum"
    ]
    # An axis of length 1 that goes is no sum.
    dtypes = [after.dtype for before, after in sums if before.size > after.size]
    assert len(dtypes) >= 4, "the three of the accelerators' form, and the bias"
    assert set(dtypes) == {jnp.dtype(jnp.float32)}


@every_half
def test_moments_and_their_gradients_are_sums_of_float32(dtype):
    """Over inputs forward, over rows in the gradients of kernel and bias."""
    p = 0.5
    # The sums have more digits than half precision holds.
    x, kernel = jnp.ones((1, MANY), dtype).at[0, 0].set(3), jnp.ones((MANY, 1), dtype)
    mean, variance = functional.moments(x, kernel, jnp.ones(1, dtype), p)
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_array_equal(mean, (MANY + 3) / 2)
    np.testing.assert_array_equal(variance, (MANY + 9) / 4)

    @jax.jit
    @jax.grad
    def gradient(parameters):
        mean, variance = functional.moments(jnp.ones((MANY, 1), dtype), *parameters, p)
        return mean.sum() + variance.sum()

    # Half of each mean's term, and a quarter of twice each variance's.
    for grad in gradient((jnp.ones((1, 1), dtype), jnp.ones(1, dtype))):
        np.testing.assert_array_equal(wide(grad), MANY)


@every_half
@cases("activation", [None, nn.relu, LIF()], short=lambda a: isinstance(a, LIF))
def test_samples_are_averaged_wide(dtype, activation):
    """4096 draws of a variable that is nearly 2: a sum of half precision would stop."""
    layer = sd.DropConnectLinear(
        1, 1, use_bias=False, activation=activation, samples_num=MANY, deterministic=True
    )
    x = jnp.ones((1, 1), dtype)
    # With p = 2^-23 the mean is 4 and the deviation a thousandth.
    layer = layer.clone(p=2.0**-23)
    variables = layer.init(jax.random.key(0), x)
    variables = {**variables, "params": {"kernel": jnp.full((1, 1), 4, dtype)}}
    y, _ = jax.jit(lambda x: layer.apply(variables, x, rngs=RNGS, mutable=["state"]))(x)
    assert y.dtype == dtype
    # The neuron fires at every sample, for half of 4 is above its threshold.
    np.testing.assert_array_equal(wide(y), 1 if isinstance(activation, LIF) else 4)


class Score(nn.Module):
    """Scores of which half precision holds the terms and not the sums."""

    dtype: jnp.dtype
    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        kept = sd.DropPath(0.5, deterministic=self.deterministic)(jnp.full_like(x, 2.0))
        return (kept + jnp.array([[252, 254]])).astype(self.dtype)


@every_half
def test_scores_of_half_precision_are_averaged_wide(dtype):
    """Mean, variance and entropies of many samples, as NumPy finds them."""
    samples = 512
    x_seq = jnp.ones((1, 1, 2))

    @jax.jit
    def run(x_seq):
        given = {"rngs": RNGS, "samples": samples, "at_once": 64}
        return sd.monte_carlo(
            Score(dtype), {}, x_seq, scores=lambda y_seq: y_seq[0], **given
        )

    @jax.jit
    @jax.vmap
    def one(number):
        rngs = {"dropout": jax.random.fold_in(RNGS["dropout"], number)}
        return sd.simulate(Score(dtype, False), {}, x_seq, rngs=rngs)[0][0]

    scores = np.asarray(one(jnp.arange(samples)), np.float64)
    assert len(np.unique(scores)) > 2
    found = run(x_seq)
    assert {array.dtype for array in found} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(found.mean, scores.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.variance, scores.var(0), rtol=1e-4, atol=1e-5)
    odds = np.exp(scores - 254)
    each = odds / odds.sum(-1, keepdims=True)
    mean = each.mean(0)
    entropy = -(mean * np.log(mean)).sum(-1)
    np.testing.assert_allclose(found.predictive_entropy, entropy, rtol=1e-5)
    own = -(each * np.log(each)).sum(-1).mean(0)
    np.testing.assert_allclose(found.mutual_information, entropy - own, atol=1e-6)
