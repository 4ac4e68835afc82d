"""Expected activations against quadrature in float64, sampled ones against their law."""

import builtins
import functools
import inspect
from dataclasses import dataclass, field
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import erf, expit, ndtr

from snn_dropout.functional import (
    Threshold,
    expected_activation,
    moments,
    sampled_activation,
)
from snn_dropout.functional._closed_forms import CLOSED_FORMS, find_closed_form
from tests.depth import cases
from tests.garbage import checking_leaks

KEY = jax.random.key(0)


# The activations, their definitions in float64, and the exact expectation
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An activation, its definition in float64, and where that has a kink or a jump."""

    activation: object
    definition: object
    kinks: tuple = field(default=())

    def reference(self, mean, variance):
        """Value, derivative by the mean, derivative by the variance, in float64.

        Gauss-Legendre on panels of half a standard deviation that end at the kinks. The
        derivatives are those of the density, so they hold for jumps too.
        """
        mean, deviation = np.float64(mean), np.sqrt(np.float64(variance))
        nodes, weights = np.polynomial.legendre.leggauss(32)
        edges = [np.broadcast_to(np.linspace(-10, 10, 41), (*mean.shape, 41))]
        edges += [np.clip((k - mean) / deviation, -10, 10)[..., None] for k in self.kinks]
        edges = np.sort(np.concatenate(edges, axis=-1))
        half, centre = np.diff(edges)[..., None] / 2, (edges[..., 1:] + edges[..., :-1]) / 2
        x = centre[..., None] + half * nodes
        density = half * weights * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
        z = mean[..., None, None] + deviation[..., None, None] * x
        y = density * self.definition(z)
        average = functools.partial(np.sum, axis=(-2, -1))
        by_mean, by_variance = average(y * x), average(y * (x * x - 1))
        return average(y), by_mean / deviation, by_variance / (2 * deviation**2)


def elu(z, alpha=1.0):
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))


def leaky_relu(z, slope=0.01):
    return np.where(z > 0, z, slope * z)


def gelu_of_tanh(z):
    return z * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def selu(z):
    return 1.0507009873554805 * elu(z, 1.6732632423543772)


CLOSED = {
    "None": Case(None, lambda z: z),
    "relu": Case(nn.relu, lambda z: np.maximum(z, 0), (0,)),
    "leaky_relu": Case(nn.leaky_relu, leaky_relu, (0,)),
    "leaky_relu 0.2": Case(
        partial(nn.leaky_relu, negative_slope=0.2), partial(leaky_relu, slope=0.2), (0,)
    ),
    "relu6": Case(nn.relu6, lambda z: np.clip(z, 0, 6), (0, 6)),
    "hard_tanh": Case(nn.hard_tanh, lambda z: np.clip(z, -1, 1), (-1, 1)),
    "hard_sigmoid": Case(nn.hard_sigmoid, lambda z: np.clip(z + 3, 0, 6) / 6, (-3, 3)),
    "hard_silu": Case(nn.hard_silu, lambda z: z * np.clip(z + 3, 0, 6) / 6, (-3, 3)),
    "sparse_sigmoid": Case(
        jax.nn.sparse_sigmoid, lambda z: np.clip(z + 1, 0, 2) / 2, (-1, 1)
    ),
    "abs": Case(jnp.abs, np.abs, (0,)),
    "sign": Case(jnp.sign, np.sign, (0,)),
    "threshold": Case(Threshold(theta=0.25), lambda z: z >= 0.25, (0.25,)),
    "elu": Case(nn.elu, elu, (0,)),
    "elu 1.7": Case(partial(nn.elu, alpha=1.7), partial(elu, alpha=1.7), (0,)),
    "selu": Case(nn.selu, selu, (0,)),
    "celu 0.5": Case(partial(nn.celu, alpha=0.5), lambda z: 0.5 * elu(z / 0.5), (0,)),
    "gelu exact": Case(partial(nn.gelu, approximate=False), lambda z: z * ndtr(z)),
    "sigmoid": Case(nn.sigmoid, expit),
    "tanh": Case(nn.tanh, np.tanh),
    "silu": Case(nn.silu, lambda z: z * expit(z)),
    "softplus": Case(nn.softplus, lambda z: np.logaddexp(z, 0)),
    "log_sigmoid": Case(nn.log_sigmoid, lambda z: -np.logaddexp(-z, 0)),
    "erf": Case(jax.scipy.special.erf, erf),
    "ndtr": Case(jax.scipy.special.ndtr, ndtr),
    "sin": Case(jnp.sin, np.sin),
    "cos": Case(jnp.cos, np.cos),
    "square": Case(jnp.square, np.square),
}
ALIASES = [
    ("None", jax.nn.identity),
    ("abs", builtins.abs),
    ("abs", jnp.absolute),
    ("sigmoid", jax.lax.logistic),
    ("sigmoid", jax.scipy.special.expit),
    ("tanh", jax.lax.tanh),
]
SMOOTH_BY_QUADRATURE = {
    "gelu": Case(nn.gelu, gelu_of_tanh),
    "lambda sin": Case(lambda z: jnp.sin(z) + 1, lambda z: np.sin(z) + 1),
}
ACCURATE = CLOSED | SMOOTH_BY_QUADRATURE
every_closed = pytest.mark.parametrize("name", CLOSED)
# One of each way to find it: kinks, a jump, steps of exp, erf, and by quadrature.
SHORT = [
    *("None", "leaky_relu 0.2", "relu6", "threshold", "selu"),
    *("gelu exact", "tanh", "sin", "lambda sin"),
]
every_accurate = cases("name", ACCURATE, short=SHORT)

MEANS = np.concatenate(
    [np.linspace(-5, 5, 17), [1e-3, -1e-3, 1e-6, -1e-6, 0.25001, -0.9999, 2.9999]]
)
DEVIATIONS = np.array([1e-6, 1e-5, 1e-4, 1e-3, 0.03, 0.1, 0.3, 1, 2, 3.5, 5])
TINY = np.finfo(np.float32).tiny


def grid(means, variances):
    return [a.astype(np.float32).ravel() for a in np.meshgrid(means, variances)]


MEAN, VARIANCE = grid(MEANS, DEVIATIONS**2)
EXTREMES = grid(
    np.array([0, TINY, 1e-20, 1, -1, 1e6, -1e6, 1e30, -1e30]),
    np.array([0, 1e-45, TINY, 1e-30, 1, 1e6, 1e30]),
)


def value_and_slopes(activation, mean, variance, transform=jax.jit):
    @transform
    def compute(mean, variance):
        value, pullback = jax.vjp(partial(expected_activation, activation), mean, variance)
        return value, *pullback(jnp.ones_like(value))

    return compute(jnp.asarray(mean), jnp.asarray(variance))


@functools.cache
def computed(name):
    """Value and slopes on the grid, at variance 0, and of extreme numbers.

    One program for all of them, because compiling it is what takes the time.
    """
    # The square of 1e30 is infinite, and the GELU of tanh takes a third power.
    largest = np.float32(1e6 if name in {*SMOOTH_BY_QUADRATURE, "square"} else 1e30)
    parts = [
        (MEAN, VARIANCE),
        (MEANS.astype(np.float32), np.zeros(len(MEANS), np.float32)),
        np.clip(EXTREMES, -largest, largest),
    ]
    mean, variance = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    results = value_and_slopes(ACCURATE[name].activation, mean, variance)
    ends = np.cumsum([len(mean) for mean, _ in parts])[:-1]
    split = [np.split(np.asarray(result), ends) for result in results]
    return dict(zip(["grid", "point", "extreme"], zip(*split, strict=True), strict=True))


@cases("name", ["relu6", "elu", "silu", "threshold"], short=["relu6", "silu"])
@pytest.mark.parametrize(("mean", "deviation"), [(-0.7, 0.3), (0.3, 1.0), (4.0, 5.0)])
def test_the_reference_agrees_with_adaptive_quadrature(name, mean, deviation):
    case = CLOSED[name]
    limits = mean - 10 * deviation, mean + 10 * deviation
    density = scipy.stats.norm(mean, deviation).pdf
    value, _ = scipy.integrate.quad(
        lambda z: case.definition(z) * density(z), *limits, points=case.kinks, limit=200
    )
    reference = case.reference(np.array(mean), np.array(deviation**2))[0]
    np.testing.assert_allclose(reference, value, rtol=0, atol=1e-9)


# Closed forms
# --------------------------------------------------------------------------------------


@every_accurate
def test_value(name):
    value = computed(name)["grid"][0]
    reference = ACCURATE[name].reference(MEAN, VARIANCE)[0]
    # Half a unit in the last place of 50, the largest square, is 1.9e-6.
    np.testing.assert_allclose(value, reference, rtol=0, atol=3e-6)


def test_value_of_exp():
    # The result is up to 4e7: only a relative error is possible, and the exponent of
    # 17.5 is itself rounded to 1e-6.
    value = expected_activation(jnp.exp, MEAN, VARIANCE)
    expected = np.exp(np.float64(MEAN) + np.float64(VARIANCE) / 2)
    np.testing.assert_allclose(value, expected, rtol=3e-6)


@pytest.mark.short
@pytest.mark.parametrize("name", ACCURATE)
def test_gradient(name):
    _, by_mean, by_variance = computed(name)["grid"]
    assert np.isfinite(by_mean).all()
    assert np.isfinite(by_variance).all()
    # Down to where float64 still gives the derivatives of the reference; those of a
    # quadrature carry the rounding of float32 divided by the deviation.
    smallest = (2e-3, 2e-3) if name in SMOOTH_BY_QUADRATURE else (0, 5e-9)
    mean_slope, variance_slope = ACCURATE[name].reference(MEAN, VARIANCE)[1:]
    for slope, reference, least in [
        (by_mean, mean_slope, smallest[0]),
        (by_variance, variance_slope, smallest[1]),
    ]:
        at = least < VARIANCE
        np.testing.assert_allclose(slope[at], reference[at], rtol=1e-3, atol=1e-5)


@cases("name", ["relu", "threshold", "elu", "silu"], short=["elu"])
def test_second_derivatives(name):
    activation = CLOSED[name].activation

    def slopes(x):
        return jnp.stack(value_and_slopes(activation, *x, transform=lambda f: f)[1:])

    with jax.enable_x64(True):
        x = jnp.array([[-1.3, 0.2, 3.7], [0.4, 1.5, 6.0]])
        slopes = jax.jit(slopes)
        for direction in (jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [1.0]])):
            step = jnp.broadcast_to(direction, x.shape)
            tangent = jax.jit(lambda x, step: jax.jvp(slopes, (x,), (step,))[1])(x, step)
            difference = (slopes(x + 1e-5 * step) - slopes(x - 1e-5 * step)) / 2e-5
            np.testing.assert_allclose(tangent, difference, rtol=1e-4, atol=1e-5)


def test_every_entry_of_the_table_is_tested():
    def function_of(case):
        activation = case.activation
        if isinstance(activation, Threshold):
            return Threshold
        return activation.func if isinstance(activation, partial) else activation

    tested = {function_of(case) for case in CLOSED.values()} | {jnp.exp}
    tested |= {alias for _, alias in ALIASES}
    assert tested - {None} == set(CLOSED_FORMS)


@pytest.mark.parametrize(("name", "alias"), ALIASES)
def test_aliases_have_the_same_value(name, alias):
    mean, variance = jnp.array([-0.3, 1.2, 2.0]), jnp.array([0.4, 2.0, 0.0])
    np.testing.assert_array_equal(
        expected_activation(alias, mean, variance),
        expected_activation(CLOSED[name].activation, mean, variance),
    )


@pytest.mark.short
@every_closed
def test_the_table_recognises(name):
    activation = CLOSED[name].activation
    assert activation is None or find_closed_form(activation) is not None


def test_linen_has_the_very_functions_of_the_table():
    names = [n for n in dir(nn) if getattr(jax.nn, n, None) in list(CLOSED_FORMS)]
    assert {"relu", "gelu", "silu", "swish", "hard_swish", "tanh", "celu"} <= set(names)
    for name in names:
        assert getattr(nn, name) is getattr(jax.nn, name), name


def test_parameters_may_be_arrays_with_a_gradient():
    mean, variance = jnp.array([-0.5, 0.5]), jnp.ones(2)

    @jax.jit
    def loss(slope):
        prelu = partial(nn.leaky_relu, negative_slope=slope)
        return expected_activation(prelu, mean, variance).sum()

    # E[min(z, 0)] = E[z] - E[max(z, 0)]
    expected = mean - expected_activation(nn.relu, mean, variance)
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(2)), expected, rtol=1e-6)


def test_defaults_of_parameters_are_those_of_the_activations():
    """A closed form without the parameters, against itself with what JAX takes then."""
    mean, variance = jnp.array([-0.5, 0.4, 1.5]), jnp.array([0.3, 1.0, 2.0])
    for activation, parameters in (
        (nn.celu, {"alpha": 1.0}),
        (nn.elu, {"alpha": 1.0}),
        (nn.leaky_relu, {"negative_slope": 0.01}),
    ):
        signature = inspect.signature(activation)
        assert {name: signature.parameters[name].default for name in parameters} == (
            parameters
        )
        np.testing.assert_array_equal(
            expected_activation(activation, mean, variance),
            expected_activation(partial(activation, **parameters), mean, variance),
        )
    assert Threshold() == Threshold(0.0)


def test_celu_of_a_negative_alpha_is_not_given_the_closed_form():
    celu = partial(nn.celu, alpha=-1.0)
    mean, variance = jnp.array([-1.0, 1.0]), jnp.full(2, 0.01)
    case = Case(celu, lambda z: np.maximum(z, 0) - np.expm1(-np.minimum(z, 0)), (0,))
    np.testing.assert_allclose(
        expected_activation(celu, mean, variance),
        case.reference(mean, variance)[0],
        atol=1e-5,
    )


def test_nested_partials_and_unhashable_callables():
    class Unhashable:
        __hash__ = None

        def __call__(self, z):
            return jnp.tanh(z)

    mean, variance = jnp.array([0.3]), jnp.array([0.5])
    nested = partial(partial(nn.gelu), approximate=False)
    assert find_closed_form(nested) is not None
    assert find_closed_form(Unhashable()) is None
    # Given by position, it is the argument and not the parameter.
    constant = expected_activation(partial(nn.elu, 0.3), mean, variance)
    np.testing.assert_allclose(constant, 0.3, rtol=1e-6)
    np.testing.assert_allclose(
        expected_activation(Unhashable(), mean, variance),
        expected_activation(jnp.tanh, mean, variance),
        atol=1e-6,
    )


def test_threshold():
    z = jnp.array([0.9, 1.0, 1.1], jnp.bfloat16)
    spikes = Threshold(1.0)(z)
    assert spikes.dtype == jnp.bfloat16
    np.testing.assert_array_equal(spikes.astype(jnp.float32), [0, z[1] >= 1, 1])
    assert hash(Threshold(1.0)) == hash(Threshold(1.0))
    assert Threshold(1.0) == Threshold(1.0) != Threshold()


# Quadrature
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "name", "error"),
    [
        (lambda z: jnp.maximum(z, 0), "relu", 5e-5),
        (lambda z: jnp.clip(z, -1, 1), "hard_tanh", 1e-4),
    ],
)
def test_a_kink_costs_a_small_part_of_a_deviation(activation, name, error):
    value = expected_activation(activation, MEAN, VARIANCE)
    reference = CLOSED[name].reference(MEAN, VARIANCE)[0]
    bound = error * np.sqrt(VARIANCE) + 1e-6
    assert (np.abs(value - reference) <= bound).all()


@pytest.mark.parametrize(
    "spike", [lambda z: z >= 0.25, lambda z: jnp.where(z >= 0.25, 1, 0)]
)
def test_a_jump_costs_one_percent_and_the_result_is_a_float(spike):
    value = expected_activation(spike, MEAN, VARIANCE)
    reference = CLOSED["threshold"].reference(MEAN, VARIANCE)[0]
    assert value.dtype == jnp.float32
    assert (np.abs(value - reference) <= 0.01).all()


@jax.custom_vjp
def spike_with_surrogate(z):
    return (z >= 0).astype(z.dtype)


spike_with_surrogate.defvjp(
    lambda z: (spike_with_surrogate(z), z), lambda z, g: (g * jnp.exp(-z * z),)
)


def test_a_surrogate_gradient_is_averaged():
    mean, variance = jnp.array([-0.4, 0.0, 1.0]), jnp.array([0.5, 0.0, 2.0])
    _, by_mean, by_variance = value_and_slopes(spike_with_surrogate, mean, variance)
    # E[exp(-z^2)] and half of E[d/dz exp(-z^2)], by completing the square
    wider = 1 + 2 * variance
    average = jnp.exp(-(mean**2) / wider) / jnp.sqrt(wider)
    np.testing.assert_allclose(by_mean, average, rtol=1e-5)
    expected = jnp.where(variance > 0, -mean / wider * average, 0)
    np.testing.assert_allclose(by_variance, expected, rtol=1e-4, atol=1e-6)


def test_the_quadrature_does_not_hold_its_nodes():
    mean = jnp.ones((8, 64, 512))

    def loss(mean, variance):
        return expected_activation(lambda z: jnp.maximum(z, 0), mean, variance).sum()

    # Some compilers keep what is unrolled, 16 pairs of nodes, and none keeps all 64.
    for function, most in ((loss, 3), (jax.grad(loss, (0, 1)), 40)):
        compiled = jax.jit(function).lower(mean, mean).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < most * mean.nbytes


@cases("name, most", [("relu", 2), ("silu", 2), ("lambda sin", 6)], [("lambda sin", 6)])
def test_little_but_the_moments_is_kept_for_the_gradient(name, most):
    activation = ACCURATE[name].activation
    x = jnp.ones((8, 64))
    _, pullback = jax.vjp(partial(expected_activation, activation), x, x)
    assert sum(leaf.size >= 512 for leaf in jax.tree.leaves(pullback)) <= most


# Variance 0, extreme numbers
# --------------------------------------------------------------------------------------


@every_accurate
def test_variance_0_is_the_activation_and_its_gradient(name):
    activation = ACCURATE[name].activation or jax.nn.identity
    mean = jnp.asarray(MEANS, jnp.float32)
    value, by_mean, _ = computed(name)["point"]
    np.testing.assert_allclose(value, activation(mean), rtol=4e-6, atol=4e-6)
    slope = jax.vjp(activation, mean)[1](jnp.ones_like(mean))[0]
    np.testing.assert_allclose(by_mean, slope, rtol=4e-6, atol=4e-6)


@pytest.mark.short
@cases("name", CLOSED, short=[name for name in SHORT if name in CLOSED])
def test_variance_0_has_half_the_curvature_as_its_slope(name):
    by_variance = computed(name)["point"][2]
    near = np.isclose(VARIANCE, 1e-8, atol=0)  # small, and far from a kink in deviations
    limit = computed(name)["grid"][2][near]
    kinks = np.array([*CLOSED[name].kinks, np.inf])
    at = np.abs(MEANS[:, None] - kinks).min(axis=1) > 1e-2
    np.testing.assert_allclose(by_variance[at], limit[at], rtol=1e-3, atol=1e-5)


@pytest.mark.short
@every_accurate
def test_extreme_numbers_give_finite_results(name):
    for result in computed(name)["extreme"]:
        assert np.isfinite(result).all()


def test_a_quadrature_of_variance_0_is_exactly_the_activation():
    mean = jax.random.normal(KEY, (1000,))
    value = expected_activation(lambda z: z, mean, jnp.zeros_like(mean))
    np.testing.assert_array_equal(value, mean)


@pytest.mark.parametrize(
    ("name", "transform"),
    [("elu", lambda f: jax.jit(jax.vmap(f))), ("lambda sin", lambda f: f)],
)
def test_values_and_gradients_are_finite_under_transforms(name, transform):
    mean = jnp.array([[0.0, -1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0]])
    variance = jnp.array([[0.0, 0.0, 1.0, 1.0], [1.0, 1e-30, 0.0, 1e-38]])
    activation = ACCURATE[name].activation
    results = value_and_slopes(activation, mean, variance, transform)
    expected = value_and_slopes(activation, mean, variance)
    for result, wanted in zip(results, expected, strict=True):
        assert jnp.isfinite(result).all()
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-6)


def test_a_clipped_activation_saturates_exactly():
    mean, variance = jnp.array([-3e8, 3e8]), jnp.ones(2)
    np.testing.assert_array_equal(expected_activation(nn.relu6, mean, variance), [0, 6])


def test_the_expectation_of_relu_is_not_below_relu():
    mean = jnp.linspace(-10, 10, 1001)
    value = expected_activation(nn.relu, mean, jnp.ones_like(mean))
    assert (value >= nn.relu(mean)).all()


@cases("name", ["relu", "sigmoid", "lambda sin"], short=["relu", "lambda sin"])
def test_a_nan_is_not_hidden(name):
    nan, one = jnp.array([jnp.nan]), jnp.ones(1)
    activation = ACCURATE[name].activation
    assert jnp.isnan(expected_activation(activation, nan, one)).all()
    assert jnp.isnan(expected_activation(activation, one, nan)).all()


# Dtypes
# --------------------------------------------------------------------------------------


@cases(
    "name, dtype",
    [("selu", jnp.float16), ("tanh", jnp.bfloat16), ("lambda sin", jnp.bfloat16)],
    short=[("tanh", jnp.bfloat16)],
)
def test_half_precision_is_computed_in_float32(name, dtype):
    mean, variance = jnp.array([-0.5, 1.5], dtype), jnp.array([0.5, 2.0], dtype)
    activation = ACCURATE[name].activation
    with jax.numpy_dtype_promotion("strict"):
        value, *slopes = value_and_slopes(activation, mean, variance)
    assert {value.dtype, *(slope.dtype for slope in slopes)} == {jnp.dtype(dtype)}
    wide, *_ = value_and_slopes(
        activation, mean.astype(jnp.float32), variance.astype(jnp.float32)
    )
    np.testing.assert_array_equal(value, wide.astype(dtype))


def test_dtypes_may_differ_and_the_result_has_that_of_the_mean():
    mean, variance = jnp.ones(2, jnp.bfloat16), jnp.full(2, 1e-3)
    value = expected_activation(nn.relu, mean, variance)
    assert value.dtype == jnp.bfloat16
    assert expected_activation(None, jnp.arange(3), jnp.ones(3)).dtype == jnp.float32


@cases("name", ["elu", "gelu exact", "lambda sin"], short=["elu"])
def test_float64_stays_float64(name):
    case = ACCURATE[name]
    with jax.enable_x64(True):
        mean, variance = np.array([-0.5, 1.5]), np.array([0.5, 2.0])
        value = expected_activation(case.activation, mean, variance)
        assert value.dtype == jnp.float64
        error = 1e-6 if name == "lambda sin" else 1e-12
        np.testing.assert_allclose(value, case.reference(mean, variance)[0], atol=error)
        single = expected_activation(
            case.activation, np.float32(mean), np.float32(variance)
        )
        assert single.dtype == jnp.float32


@cases("axis_type", [AxisType.Auto, AxisType.Explicit], short=[AxisType.Explicit])
def test_a_sharded_batch_stays_sharded(axis_type):
    mean = jnp.linspace(-1, 1, 32).reshape(8, 4)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))

    def functions(mean, variance):
        return (
            expected_activation(nn.elu, mean, variance),
            expected_activation(lambda z: z * z, mean, variance),
            sampled_activation(KEY, nn.relu, mean, variance, 18),
        )

    expected = jax.jit(functions)(mean, mean**2)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("data", None))
        results = jax.jit(functions)(*jax.device_put((mean, mean**2), sharding))
    for result, wanted in zip(results, expected, strict=True):
        assert result.sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


# Errors
# --------------------------------------------------------------------------------------

ONE = jnp.ones((2, 3))


@pytest.mark.short
@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("relu", ONE, ONE), TypeError, r"`activation` must be a function.*'relu' of type"),
        ((nn.relu, [1.0], ONE), TypeError, r"`mean` must be an array.*asarray\(mean\)"),
        ((nn.relu, ONE, 1.0), TypeError, r"`variance` must be an array, but got float"),
        ((nn.relu, ONE + 1j, ONE), TypeError, r"`mean` must be real.*complex64"),
        ((nn.relu, ONE, ONE + 1j), TypeError, r"`variance` must be real.*variance\.real"),
        ((nn.relu, ONE, ONE[0]), ValueError, r"same shape.*\(2, 3\) and \(3,\).*broadcast"),
        ((jnp.sum, ONE, ONE), ValueError, r"`activation` must return one.*\(\)"),
        ((lambda z: None, ONE, ONE), ValueError, r"`activation`.*returned NoneType"),
    ],
)
def test_errors(arguments, error, match):
    with pytest.raises(error, match=match):
        expected_activation(*arguments)
    with pytest.raises(error, match=match):
        sampled_activation(KEY, *arguments, samples=3)


@pytest.mark.parametrize(
    ("samples", "error", "match"),
    [
        (0, ValueError, r"`samples` must be .*1.*got 0"),
        (-1, ValueError, r"`samples` must be .*1.*got -1"),
        (2.0, TypeError, r"`samples` must be .*integer.*got 2\.0 of type float"),
        (True, TypeError, r"`samples` must be .*integer.*got True of type bool"),
    ],
)
def test_errors_of_samples(samples, error, match):
    with pytest.raises(error, match=match):
        sampled_activation(KEY, nn.relu, ONE, ONE, samples)


def test_samples_can_not_be_traced():
    with pytest.raises(TypeError, match=r"`samples` must be .*traced.*static_argnames"):
        jax.jit(lambda samples: sampled_activation(KEY, nn.relu, ONE, ONE, samples))(3)


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4)])
def test_sampling_needs_a_batch_axis(shape):
    with pytest.raises(ValueError, match=r"`mean` must be \[N, O\] or \[T, N, O\].*got"):
        sampled_activation(KEY, nn.relu, jnp.ones(shape), jnp.ones(shape), 3)


# Sampling
# --------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(1, 2))
def noise(key, shape, samples):
    """The average of the draws themselves."""
    return sampled_activation(key, None, jnp.zeros(shape), jnp.ones(shape), samples)


@cases("samples", [1, 17, 32], short=[17])
def test_the_draws_are_independent_standard_normals(samples):
    keys, steps, features = 3000, 2, 4
    draw = jax.jit(jax.vmap(lambda key: noise(key, (steps, 1, features), samples)))
    x = np.asarray(draw(jax.random.split(KEY, keys))).reshape(keys, -1) * samples**0.5
    # Independent over samples: the variance of an average of S is 1 / S.
    low, high = scipy.stats.chi2.ppf([5e-10, 1 - 5e-10], x.size)
    assert low <= np.sum(x**2) <= high
    assert abs(np.sum(x)) <= 6 * x.size**0.5
    assert scipy.stats.kstest(x.ravel(), "norm").pvalue > 1e-9
    # Independent over time steps and features: no correlation in pairs, 6 sigma.
    correlation = x.T @ x / keys - np.eye(steps * features)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() <= 6 / keys**0.5


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)])
def test_the_draws_are_shared_by_the_batch(shape):
    y = noise(KEY, shape, 3)
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[..., :1, :], shape))
    assert len(np.unique(y[..., 0, :])) == y[..., 0, :].size


def test_other_keys_give_other_draws_and_the_same_key_the_same():
    y = noise(KEY, (2, 3), 3)
    np.testing.assert_array_equal(noise(KEY, (2, 3), 3), y)
    assert not np.any(noise(jax.random.key(1), (2, 3), 3) == y)
    np.testing.assert_array_equal(noise(jax.random.PRNGKey(0), (2, 3), 3), y)


@cases("samples", [5, 1024], short=[5])
def test_sampled_relu_agrees_with_the_closed_form(samples):
    mean = jnp.broadcast_to(jnp.array([[-1.0], [0.0], [1.5]]), (3, 1024))
    variance = jnp.full((3, 1024), 2.0)
    sample = jax.jit(partial(sampled_activation, activation=nn.relu, samples=samples))
    y = sample(KEY, mean=mean, variance=variance)
    expected = expected_activation(nn.relu, mean, variance)
    # An average of independent features and samples, each no wider than z: 6 sigma.
    error = jnp.abs((y - expected).mean(axis=1))
    assert (error <= 6 * (2.0 / (samples * 1024)) ** 0.5).all()
    assert (y.std(axis=1) <= 1.2 * (2.0 / samples) ** 0.5).all()


def test_sampling_is_the_same_under_jit_and_vmap():
    mean, variance = jnp.linspace(-1, 1, 12).reshape(2, 2, 3), jnp.full((2, 2, 3), 0.5)
    keys = jax.random.split(KEY, 2)

    def sample(key, mean, variance):
        return sampled_activation(key, jnp.sin, mean, variance, samples=18)

    each = [sample(*arguments) for arguments in zip(keys, mean, variance, strict=True)]
    batched = jax.jit(jax.vmap(sample))(keys, mean, variance)
    np.testing.assert_allclose(batched, jnp.stack(each), rtol=1e-6, atol=1e-7)


def test_sampled_gradient_is_that_of_the_draws_and_finite_at_variance_0():
    mean = jnp.array([[-0.3, 0.2], [0.6, -1.0], [0.5, 0.0]])
    variance = jnp.array([[0.5, 2.0], [1.0, 0.1], [0.0, 0.0]])

    @jax.jit
    def value_and_slopes(mean, variance):
        sample = partial(sampled_activation, KEY, jnp.square, samples=18)
        value, pullback = jax.vjp(lambda m, v: sample(mean=m, variance=v), mean, variance)
        return value, *pullback(jnp.ones_like(value))

    value, by_mean, by_variance = value_and_slopes(mean, variance)
    # (m + s e)^2 averaged is m^2 + 2 m s E + v Q, with E and Q the averages of e and e^2.
    average = noise(KEY, mean.shape, 18)
    square = value_and_slopes(jnp.zeros_like(mean), jnp.ones_like(mean))[0]
    deviation = jnp.sqrt(variance)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(value, mean**2 + 2 * mean * deviation * average + variance * square)
    close(by_mean, 2 * mean + 2 * deviation * average)
    close(by_variance[:2], (mean / deviation * average + square)[:2])
    np.testing.assert_array_equal(by_variance[2], 0)


def test_memory_of_sampling_does_not_grow_with_the_samples():
    mean = jnp.ones((8, 64, 512))

    def temporary(samples, transform):
        def loss(mean, variance):
            return jnp.sum(sampled_activation(KEY, nn.relu, mean, variance, samples) ** 2)

        compiled = jax.jit(transform(loss)).lower(mean, mean).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for transform in (lambda loss: loss, lambda loss: jax.grad(loss, (0, 1))):
        few, many = temporary(1024, transform), temporary(4096, transform)
        assert many < 1.01 * few + 4096
        assert many < 6 * mean.nbytes


@pytest.mark.exhaustive
def test_no_key_leaks_out_of_a_loop():
    mean, variance = jnp.zeros((2, 3)), jnp.ones((2, 3))

    def step(carry, key):
        return carry, sampled_activation(key, jax.nn.relu, mean, variance, 20)

    with checking_leaks():
        jax.lax.scan(step, (), jax.random.split(jax.random.key(0), 2))


def test_sampling_may_mix_features():
    mean, variance = jnp.ones((2, 4)), jnp.ones((2, 4))
    y = sampled_activation(KEY, nn.softmax, mean, variance, 3)
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-6)


@cases("dtype", [jnp.float16, jnp.bfloat16], short=[jnp.bfloat16])
def test_sampled_dtypes(dtype):
    mean, variance = jnp.ones((2, 3), dtype), jnp.full((2, 3), 0.5, dtype)
    with jax.numpy_dtype_promotion("strict"):
        y = sampled_activation(KEY, nn.relu, mean, variance, 3)
    assert y.dtype == dtype
    wide = sampled_activation(
        KEY, nn.relu, mean.astype(jnp.float32), variance.astype(jnp.float32), 3
    )
    np.testing.assert_array_equal(y, wide.astype(dtype))


def test_numpy_arrays_of_float64_give_what_jax_makes_of_them():
    """Where x64 is off that is float32, and not a warning."""
    mean, variance = np.ones((2, 3)), np.full((2, 3), 0.5)
    for y in (
        expected_activation(nn.relu, mean, variance),
        expected_activation(lambda z: z.at[:].get() ** 2, mean, variance),
        sampled_activation(KEY, nn.relu, mean, variance, 3),
        *moments(mean, np.ones((3, 4)), np.ones(4), 0.5),
    ):
        assert y.dtype == jnp.float32


def test_sampling_nothing():
    for shape in [(0, 3), (2, 0), (0, 2, 3)]:
        assert noise(KEY, shape, 3).shape == shape
        assert expected_activation(nn.relu, jnp.ones(shape), jnp.ones(shape)).size == 0


# Moments
# --------------------------------------------------------------------------------------


@cases("shape", [(3,), (5, 3), (2, 5, 3)], short=[(2, 5, 3)])
@pytest.mark.parametrize("use_bias", [True, False])
@cases("p", [0, 0.2, 0.5, 1.0], short=[0.2])
def test_moments(shape, use_bias, p):
    generator = np.random.default_rng(0)
    x, kernel, bias = (generator.normal(size=s) for s in (shape, (3, 4), (4,)))
    bias = bias if use_bias else np.zeros(4)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel)]
    given = jnp.asarray(bias, jnp.float32) if use_bias else None
    mean, variance = moments(*arrays, given, p)
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(mean, (1 - p) * (x @ kernel + bias), atol=1e-5)
    expected = p * (1 - p) * (x**2 @ kernel**2 + bias**2)
    np.testing.assert_allclose(variance, expected, atol=1e-5)


def test_moments_are_those_of_the_masks():
    x, kernel, bias = np.array([1.0, -2.0]), np.array([[0.5], [2.0]]), np.array([3.0])
    terms = np.array([*(x * kernel[:, 0]), *bias])
    masks = np.array([[int(bit) for bit in f"{n:03b}"] for n in range(8)])
    chance = np.prod(np.where(masks, 0.7, 0.3), axis=1)
    outcome = masks @ terms
    mean, variance = moments(*(jnp.asarray(a) for a in (x, kernel, bias)), p=0.3)
    np.testing.assert_allclose(mean[0], chance @ outcome, rtol=1e-5)
    np.testing.assert_allclose(
        variance[0], chance @ outcome**2 - (chance @ outcome) ** 2, rtol=1e-5
    )


def test_moments_of_half_precision_do_not_overflow():
    x, kernel = jnp.full((1, 2), 300.0, jnp.float16), jnp.ones((2, 1), jnp.float16)
    mean, variance = moments(x, kernel, None, 0.5)
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(variance, [[0.25 * 2 * 300.0**2]])
    spikes = jnp.ones((1, 2), bool)
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_allclose(moments(spikes, kernel, None, 0.5)[0], [[1.0]])


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((2, 3), (3,), None), r"`kernel` must be \[I, O\].*\(3,\)"),
        (((2, 3), (4, 3), None), r"`x` must be .*I = 4.*\(2, 3\).*kernel\.T"),
        (((), (4, 3), None), r"`x` must be .*I = 4.*\(\)"),
        (((2, 3), (3, 4), (3,)), r"`bias` must be .*O = 4.*\(3,\)"),
    ],
)
def test_moments_need_shapes_that_fit(shapes, match):
    x, kernel, bias = (None if s is None else jnp.ones(s) for s in shapes)
    with pytest.raises(ValueError, match=match):
        moments(x, kernel, bias, 0.5)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_moments_are_of_real_numbers(position):
    arguments = [jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4)]
    arguments[position] = arguments[position] + 1j
    with pytest.raises(TypeError, match=r"must be real.*complex64"):
        moments(*arguments, 0.5)
    with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\]"):
        moments(jnp.ones((2, 3)), jnp.ones((3, 4)), None, 1.5)
