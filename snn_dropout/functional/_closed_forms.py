"""Closed forms of E[activation(z)], z ~ N(mean, variance), and the table of them.

A closed form takes ``(mean, variance, **parameters)`` with a positive variance
and the parameters that ``functools.partial`` gave the activation. It returns the
expectation, or None where it has no formula for these parameters. A new one is
one entry in ``CLOSED_FORMS``.

Nearly all of them are sums of two functions of the normal variable, the
probability that it is positive and the mean of its positive part, so these two
carry the numerical care: their derivatives are written down, because autodiff
would divide by powers of the variance that overflow, and cancel.
"""

import builtins
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, expit, log_ndtr, ndtr

ClosedForm = Callable[..., jax.Array | None]
Parameter = jax.Array | float


@dataclass(frozen=True)
class Threshold:
    """Spikes where the input has reached the threshold, the Heaviside step.

    ``y = 1 if z >= theta else 0``

    The gradient is 0, as JAX defines it; its expectation over a normal input has
    a true one.

    Example::

      >>> import jax.numpy as jnp
      >>> from snn_dropout import functional
      >>> spike = functional.Threshold(theta=1.0)
      >>> spike(jnp.array([0.5, 1.0, 1.5]))
      Array([0., 1., 1.], dtype=float32)

    Args:
      theta: the threshold, in the units of the input.
    """

    theta: float = 0.0

    def __call__(self, z: jax.Array) -> jax.Array:
        """Returns 1 where ``z >= theta`` and 0 elsewhere, in the dtype of ``z``."""
        return jnp.asarray(z >= self.theta, z.dtype)


def taken_apart(activation: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the function that the table knows, if it does, and its parameters."""
    if isinstance(activation, functools.partial) and not activation.args:
        return activation.func, activation.keywords
    if isinstance(activation, Threshold):
        return Threshold, {"theta": activation.theta}
    return activation, {}


def put_together(function: Any, parameters: Mapping[str, Any]) -> Callable[..., Any]:
    """Undoes :func:`taken_apart`."""
    if function is Threshold:
        return Threshold(**parameters)
    return functools.partial(function, **parameters) if parameters else function


def find_closed_form(activation: Callable[..., Any]) -> ClosedForm | None:
    """Returns the closed form of an activation, its parameters bound, or None."""
    function, parameters = taken_apart(activation)
    try:
        closed_form = CLOSED_FORMS.get(function)
    except TypeError:  # not hashable, so not in the table
        return None
    return closed_form and functools.partial(closed_form, **parameters)


def _standardised(mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean in standard deviations, and the standard deviation."""
    deviation = jnp.sqrt(variance)
    # Beyond 40 the density is 0 and the probability 0 or 1, in float64 too, while
    # the square of the quotient would overflow.
    return jnp.clip(mean / deviation, -40.0, 40.0), deviation


def _unit_density(a: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * a * a) * (1.0 / math.sqrt(2.0 * math.pi))


def _density_at_zero(mean: jax.Array, variance: jax.Array) -> jax.Array:
    a, deviation = _standardised(mean, variance)
    return _unit_density(a) / deviation


@jax.custom_jvp
def _probability(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """P(z >= 0)."""
    return ndtr(_standardised(mean, variance)[0])


@_probability.defjvp
def _probability_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    mean, variance = primals
    a, deviation = _standardised(mean, variance)
    density = _unit_density(a) / deviation
    slope = density * tangents[0] - a * density / (2.0 * deviation) * tangents[1]
    return _probability(mean, variance), slope


@jax.custom_jvp
def _positive_part(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """E[max(z, 0)]."""
    a, deviation = _standardised(mean, variance)
    # m Phi(a) + s phi(a), written as relu(m) plus what the noise adds to it: the
    # error is that of the addition, and the result never below relu(m).
    distance = jnp.abs(a)
    added = _unit_density(distance) - distance * ndtr(-distance)
    return jnp.maximum(mean, 0.0) + deviation * jnp.maximum(added, 0.0)


@_positive_part.defjvp
def _positive_part_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    mean, variance = primals
    slope = _probability(mean, variance) * tangents[0]
    slope += 0.5 * _density_at_zero(mean, variance) * tangents[1]
    return _positive_part(mean, variance), slope


def _exponential_below_zero(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """E[exp(z) if z < 0 else 0] = exp(m + v/2) Phi(-u), u = a + s."""
    a, deviation = _standardised(mean, variance)
    u = a + deviation
    # For a large u a huge exponential meets a tiny probability; their product is
    # phi(a) Phi(-u) / phi(u), and that quotient has an asymptotic series.
    near = jnp.exp(
        jnp.minimum(mean + 0.5 * variance, 50.0) + log_ndtr(-jnp.minimum(u, 10.0))
    )
    inverse = 1.0 / jnp.maximum(u, 10.0)
    square = inverse * inverse
    series = 1.0 - square * (1.0 - square * (3.0 - square * 15.0))
    return jnp.where(u > 10.0, _unit_density(a) * inverse * series, near)


@jax.custom_jvp
def _unit_elu(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """E[z if z > 0 else exp(z) - 1], whose slope has no jump for the noise to meet."""
    negative = _exponential_below_zero(mean, variance) - _probability(-mean, variance)
    return _positive_part(mean, variance) + negative


@_unit_elu.defjvp
def _unit_elu_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    mean, variance = primals
    below = _exponential_below_zero(mean, variance)
    slope = (_probability(mean, variance) + below) * tangents[0]
    return _unit_elu(mean, variance), slope + 0.5 * below * tangents[1]


def _identity(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return mean


def _leaky_relu(
    mean: jax.Array, variance: jax.Array, negative_slope: Parameter = 0.01
) -> jax.Array:
    return negative_slope * mean + (1.0 - negative_slope) * _positive_part(mean, variance)


def _clip(mean: jax.Array, variance: jax.Array, low: float, high: float) -> jax.Array:
    # Measured from the nearer limit, both terms vanish where the function saturates;
    # measured across the interval, two large numbers would cancel.
    is_low = mean < 0.5 * (low + high)
    near = _positive_part(jnp.where(is_low, mean - low, high - mean), variance)
    far = _positive_part(jnp.where(is_low, mean - high, low - mean), variance)
    return jnp.where(is_low, low + (near - far), high - (near - far))


def _hard_sigmoid(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return 0.5 + _clip(mean, variance, -3.0, 3.0) / 6.0


def _sparse_sigmoid(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * _clip(mean, variance, -1.0, 1.0)


def _hard_silu(mean: jax.Array, variance: jax.Array) -> jax.Array:
    # Stein's identity, E[z f(z)] = m E[f(z)] + v E[f'(z)]; so too for gelu and silu.
    inside = _probability(mean + 3.0, variance) - _probability(mean - 3.0, variance)
    return mean * _hard_sigmoid(mean, variance) + variance * inside / 6.0


def _absolute(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return _positive_part(mean, variance) + _positive_part(-mean, variance)


def _sign(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return _probability(mean, variance) - _probability(-mean, variance)


def _threshold(mean: jax.Array, variance: jax.Array, theta: Parameter) -> jax.Array:
    return _probability(mean - theta, variance)


def _elu(mean: jax.Array, variance: jax.Array, alpha: Parameter = 1.0) -> jax.Array:
    kink = _positive_part(mean, variance)
    return alpha * _unit_elu(mean, variance) + (1.0 - alpha) * kink


def _celu(mean: jax.Array, variance: jax.Array, alpha: Parameter = 1.0) -> jax.Array | None:
    if isinstance(alpha, (int, float)) and alpha <= 0:
        return None
    return alpha * _unit_elu(mean / alpha, variance / (alpha * alpha))


def _selu(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return 1.0507009873554805 * _elu(mean, variance, 1.6732632423543772)


def _gelu(
    mean: jax.Array, variance: jax.Array, approximate: bool = True
) -> jax.Array | None:
    if approximate:
        return None
    # Phi(z) is the probability that z exceeds a standard normal of its own.
    wider = variance + 1.0
    return mean * _probability(mean, wider) + variance * _density_at_zero(mean, wider)


# The logistic distribution as a mixture of normals (standard deviation, weight), by
# a minimax fit to the sigmoid over the real line: the largest error is 8.4e-8. With
# it the sigmoid of a normal variable is the probability that it exceeds a draw of
# the mixture, whatever its variance.
_LOGISTIC_MIXTURE = (
    (0.8255886392, 0.0184469696),
    (1.1143983082, 0.1726850110),
    (1.4962647967, 0.3739322509),
    (2.0180239753, 0.3169668549),
    (2.7271172170, 0.1088948013),
    (3.7111105424, 0.0090741124),
)


def _over_logistic(
    function: Callable[[jax.Array, jax.Array], jax.Array],
    mean: jax.Array,
    variance: jax.Array,
) -> jax.Array:
    """Averages ``function`` of z minus a logistic variable."""
    total = jnp.zeros_like(mean)
    for deviation, weight in _LOGISTIC_MIXTURE:
        total += weight * function(mean, variance + deviation**2)
    return total


def _sigmoid(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return _over_logistic(_probability, mean, variance)


def _softplus(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return _over_logistic(_positive_part, mean, variance)


def _log_sigmoid(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return -_softplus(-mean, variance)


def _silu(mean: jax.Array, variance: jax.Array) -> jax.Array:
    slope = _over_logistic(_density_at_zero, mean, variance)
    return mean * _sigmoid(mean, variance) + variance * slope


def _tanh(mean: jax.Array, variance: jax.Array) -> jax.Array:
    # Not 2 sigmoid(2 z) - 1, which has no digit left of a small mean.
    return _over_logistic(_erf_quotient, 2.0 * mean, 4.0 * variance)


def _erf_quotient(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """P(z > 0) - P(z < 0), for a variance that is bounded away from 0."""
    return erf(mean * jax.lax.rsqrt(2.0 * variance))


def _erf(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return _erf_quotient(mean, variance + 0.5)


def _ndtr(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return _probability(mean, variance + 1.0)


def _square(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return mean * mean + variance


def _exp(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return jnp.exp(mean + 0.5 * variance)


def _sin(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * variance) * jnp.sin(mean)


def _cos(mean: jax.Array, variance: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * variance) * jnp.cos(mean)


# The activations of flax.linen are these very objects.
CLOSED_FORMS: dict[Callable[..., Any], ClosedForm] = {
    Threshold: _threshold,
    builtins.abs: _absolute,
    erf: _erf,
    expit: _sigmoid,
    jax.lax.logistic: _sigmoid,
    jax.lax.tanh: _tanh,
    jax.nn.celu: _celu,
    jax.nn.elu: _elu,
    jax.nn.gelu: _gelu,
    jax.nn.hard_sigmoid: _hard_sigmoid,
    jax.nn.hard_silu: _hard_silu,
    jax.nn.hard_tanh: functools.partial(_clip, low=-1.0, high=1.0),
    jax.nn.identity: _identity,
    jax.nn.leaky_relu: _leaky_relu,
    jax.nn.log_sigmoid: _log_sigmoid,
    jax.nn.relu: _positive_part,
    jax.nn.relu6: functools.partial(_clip, low=0.0, high=6.0),
    jax.nn.selu: _selu,
    jax.nn.sigmoid: _sigmoid,
    jax.nn.silu: _silu,
    jax.nn.softplus: _softplus,
    jax.nn.sparse_sigmoid: _sparse_sigmoid,
    jax.nn.tanh: _tanh,
    jnp.abs: _absolute,
    jnp.absolute: _absolute,
    jnp.cos: _cos,
    jnp.exp: _exp,
    jnp.sign: _sign,
    jnp.sin: _sin,
    jnp.square: _square,
    ndtr: _ndtr,
}
