"""The inference of DropConnect: E[activation(z)] for a normal pre-activation z.

Over the connections that are dropped, a pre-activation is a sum of many
independent terms, so it is taken to be normal with the mean and the variance that
``moments`` computes. What the layer passes on is the expectation of its
activation, which is not the activation of the mean: exactly
(``expected_activation``) or as an average of draws (``sampled_activation``).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snn_dropout._checks.connections import (
    check_activation,
    check_affine,
    check_count,
    check_elementwise,
    check_has_examples,
    check_normal,
)
from snn_dropout._checks.masks import check_probability
from snn_dropout.functional._averages import (
    average_draws,
    integrate,
    is_point,
    nodes_and_weights,
)
from snn_dropout.functional._closed_forms import (
    find_closed_form,
    put_together,
    taken_apart,
)
from snn_dropout.functional._elementwise import is_elementwise
from snn_dropout.functional._programs import (
    KEPT,
    Activation,
    Traced,
    run,
    trace,
)


def moments(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, p: float
) -> tuple[jax.Array, jax.Array]:
    """Computes mean and variance of an affine map that loses connections.

    ``mean = (1 - p) (x K + b)``, ``variance = p (1 - p) (x^2 K^2 + b^2)``

    The squares are of the elements. Computed and returned in float32 at least,
    where neither of them underflows or overflows as it does in half precision.

    Example::

      >>> import jax.numpy as jnp
      >>> from snn_dropout import functional
      >>> mean, variance = functional.moments(
      ...     jnp.ones((1, 3)), jnp.ones((3, 2)), bias=None, p=0.5
      ... )
      >>> mean, variance
      (Array([[1.5, 1.5]], dtype=float32), Array([[0.75, 0.75]], dtype=float32))

    Args:
      x: the input, ``[..., I]``; bool and integer spikes count as float32.
      kernel: the weights, ``[I, O]``.
      bias: the bias, ``[O]``, which is dropped like a connection, or None.
      p: the probability of a connection's being dropped, a static number in [0, 1].

    Returns:
      ``(mean, variance)``, each ``[..., O]``; the variance is in squared units of
      the mean.

    Raises:
      TypeError, ValueError: ``p`` is not a static number in [0, 1], an argument is
        complex or not an array, or the shapes do not fit.

    Source: Wan et al. 2013, Algorithm 2, with the variance of the dropped bias.
    """
    check_probability(p)
    check_affine(x, kernel, bias)
    dtype = _wide_dtype(x, kernel, *(() if bias is None else (bias,)))
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    mean, variance = x @ kernel, jnp.square(x) @ jnp.square(kernel)
    if bias is not None:
        # A promotion of rank is an error where a user asks, and a broadcast in words
        # would give every device the gradients of all examples.
        bias = jnp.asarray(bias, dtype).reshape((1,) * (mean.ndim - 1) + (-1,))
        mean, variance = mean + bias, variance + jnp.square(bias)
    keep = 1.0 - float(p)
    return keep * mean, float(p) * keep * variance


def expected_activation(
    activation: Activation | None, mean: jax.Array, variance: jax.Array
) -> jax.Array:
    """Computes the expectation of an elementwise activation of a normal variable.

    ``y = E[activation(z)], z ~ N(mean, variance)``

    The activations of ``jax.nn`` and ``flax.linen`` that have a closed form get it,
    also as a ``functools.partial`` that sets their parameters, and so does
    ``Threshold``: the error is that of float32, or 4e-7 for what is built on the
    sigmoid. Any other callable is integrated with 128 nodes: an error of 1e-6 where
    it is smooth, 5e-5 standard deviations at a kink, 1 % of the height of a jump.
    It must be elementwise. One whose numbers depend on each other raises, as softmax,
    and needs ``sampled_activation``: most are told by their equations, the others by
    trying, and what can be neither seen nor tried raises too.

    A variance of 0 gives ``activation(mean)`` and its gradient. The gradients are
    those of the expectation, so that of a threshold is its density; only of a
    callable without a closed form it is the expectation of JAX's gradient, which
    keeps a surrogate and does not see a jump.

    Example::

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from snn_dropout import functional
      >>> mean, variance = jnp.zeros((2,)), jnp.array([0.0, 1.0])
      >>> functional.expected_activation(jax.nn.relu, mean, variance).round(4)
      Array([0.    , 0.3989], dtype=float32)

    Args:
      activation: a callable, or None for the identity.
      mean: the mean of the pre-activation, of any shape.
      variance: its variance, of the same shape and at least 0, in squared units.

    Returns:
      An array of the shape and dtype of ``mean`` (float32 for integers), computed
      in float32 at least.

    Raises:
      TypeError: ``activation`` is not callable, ``mean`` or ``variance`` is complex
        or not an array.
      ValueError: the shapes of ``mean`` and ``variance`` differ, or the activation
        changes the shape or is not elementwise.

    Source: Wan et al. 2013, Algorithm 2, "numeric integration"; for the sigmoid,
    Monahan and Stefanski 1992.
    """
    check_activation(activation)
    check_normal(mean, variance)
    mean, variance, out_dtype = _widen(mean, variance)
    function = jax.nn.identity if activation is None else activation
    result = _in_closed_form(function, mean, variance)
    if result is None:
        traced = _trace_elementwise(function, mean)
        rule = (jnp.asarray(part, mean.dtype) for part in nodes_and_weights())
        result = run(integrate, traced, mean, variance, *rule)
    return result.astype(out_dtype)


def sampled_activation(
    key: jax.Array,
    activation: Activation | None,
    mean: jax.Array,
    variance: jax.Array,
    samples: int,
) -> jax.Array:
    """Averages an activation over draws of a normal variable.

    ``y = (1 / S) sum_s activation(mean + sqrt(variance) e_s), e_s ~ N(0, 1)``

    The draws ``e_s`` are independent over samples, time steps and features, and
    shared by the examples of the batch: every example's average has the
    distribution it would have with draws of its own, and they cost N times less.
    Memory does not grow with ``samples``, and neither does that of the gradient,
    which draws the same again. At variance 0 the gradient of the variance is 0.

    Example::

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from snn_dropout import functional
      >>> mean, variance = jnp.zeros((2, 3)), jnp.ones((2, 3))
      >>> y = functional.sampled_activation(
      ...     jax.random.key(0), jax.nn.relu, mean, variance, samples=1024
      ... )
      >>> bool(jnp.all(jnp.abs(y - 0.3989) < 0.1))
      True

    Args:
      key: a key of ``jax.random``; it is consumed.
      activation: a callable that keeps the shape, or None for the identity. It may
        mix features, as ``softmax`` does, but no examples, for they share the draws.
      mean: the mean of the pre-activation, ``[N, O]`` or ``[T, N, O]``.
      variance: its variance, of the same shape and at least 0, in squared units.
      samples: the number of draws S, a static integer of at least 1.

    Returns:
      An array of the shape and dtype of ``mean`` (float32 for integers), computed
      in float32 at least.

    Raises:
      TypeError: ``activation`` is not callable, ``samples`` is not a static integer,
        ``mean`` or ``variance`` is complex or not an array.
      ValueError: ``samples`` is below 1, the shapes of ``mean`` and ``variance``
        differ or have no batch axis, or the activation changes the shape.

    Source: Wan et al. 2013, Algorithm 2.
    """
    check_activation(activation)
    check_normal(mean, variance)
    check_has_examples(mean)
    check_count("samples", samples)
    mean, variance, out_dtype = _widen(mean, variance)
    function = jax.nn.identity if activation is None else activation
    traced = trace(function, mean)
    average = run(average_draws, traced, key, mean, variance, static=(int(samples),))
    return average.astype(out_dtype)


def check_expectation(activation: Activation | None, z: jax.Array) -> None:
    """Raises where the exact expectation can not be had of an activation of ``z``."""
    if activation is not None and find_closed_form(activation) is None:
        _trace_elementwise(activation, z)


def _trace_elementwise(activation: Activation, z: jax.Array) -> Traced:
    traced = trace(activation, z)
    check_elementwise(is_elementwise(traced, z), activation)
    return traced


def _in_closed_form(
    activation: Activation, mean: jax.Array, variance: jax.Array
) -> jax.Array | None:
    if find_closed_form(activation) is None:
        return None
    function, parameters = taken_apart(activation)
    arrays, numbers = {}, []
    for name, value in sorted(parameters.items()):
        if isinstance(value, (jax.Array, np.ndarray)):
            arrays[name] = value
        else:
            numbers.append((name, value))
    result: jax.Array | None = _closed(function, tuple(numbers))(arrays, mean, variance)
    return result


@functools.lru_cache(KEPT)
def _closed(function: Any, numbers: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    closed_form = jax.checkpoint(functools.partial(_closed_form, function, dict(numbers)))
    return jax.jit(closed_form)


def _closed_form(
    function: Any,
    numbers: dict[str, Any],
    arrays: dict[str, jax.Array],
    mean: jax.Array,
    variance: jax.Array,
) -> jax.Array | None:
    activation = put_together(function, numbers | arrays)
    closed_form = find_closed_form(activation)
    if closed_form is None:
        return None
    at_point = is_point(variance)
    # Both branches are evaluated everywhere, and a NaN of the one that is not
    # chosen would reach the gradient: each gets arguments that it takes.
    spread = closed_form(mean, jnp.where(at_point, 1.0, variance).astype(mean.dtype))
    if spread is None:
        return None
    point = _taylor(activation, jnp.where(at_point, mean, 0.0), variance)
    return jnp.where(at_point, point, spread)


def _taylor(activation: Activation, mean: jax.Array, variance: jax.Array) -> jax.Array:
    """The value at variance 0, with the derivative that it has there."""

    def slope(z: jax.Array) -> jax.Array:
        tangent: jax.Array = jax.jvp(activation, (z,), (jnp.ones_like(z),))[1]
        return tangent

    curvature: jax.Array = jax.jvp(slope, (mean,), (jnp.ones_like(mean),))[1]
    return activation(mean) + 0.5 * variance * curvature


def _widen(mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array, jnp.dtype]:
    dtype = _wide_dtype(mean, variance)
    mean = jnp.asarray(mean)
    is_float = jnp.issubdtype(mean.dtype, jnp.inexact)
    out_dtype = mean.dtype if is_float else jnp.dtype(jnp.float32)
    return mean.astype(dtype), jnp.asarray(variance, dtype), out_dtype


def _wide_dtype(*arrays: Any) -> Any:
    # jnp.promote_types refuses to mix dtypes where a user asks for strictness.
    is_double = any(jnp.asarray(array).dtype == jnp.float64 for array in arrays)
    return jnp.float64 if is_double else jnp.float32
