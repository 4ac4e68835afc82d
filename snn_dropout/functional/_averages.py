"""Averages of an activation over a normal variable: over nodes, and over draws."""

import functools
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snn_dropout.functional._programs import Applied

# Unrolled in the body of a loop, so that one pass over memory serves all of them.
# XLA's CPU compiler copies what makes the normals into each of their uses if there
# are at most 15, and then computes them again for every example of the batch.
_UNROLLED = 16


def is_point(variance: jax.Array) -> jax.Array:
    """Returns where a normal variable has one value only."""
    # Smaller numbers are 0 to a processor that flushes subnormal ones.
    at_point: jax.Array = jnp.abs(variance) < np.finfo(variance.dtype).tiny
    return at_point


def standard_deviation(variance: jax.Array) -> jax.Array:
    """The square root with slope 0 at 0, where that of the square root is infinite."""
    at_point = is_point(variance)
    root = jnp.sqrt(jnp.where(at_point, 1.0, variance))
    return jnp.where(at_point, 0.0, root)


def integrate(
    activation: Applied,
    values: Sequence[Any],
    mean: jax.Array,
    variance: jax.Array,
    nodes: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Integrates an activation of a normal variable, by a rule of nodes and weights."""
    deviation = standard_deviation(variance)
    sum_of_nodes = jax.checkpoint(
        functools.partial(_sum_over_pairs, activation), prevent_cse=False
    )
    result = _sum_over_loop(
        lambda chunk: sum_of_nodes(values, mean, deviation, *chunk), mean, (nodes, weights)
    )
    # At variance 0 the rule returns the activation but for rounding, which would
    # make 0.9999999 of a spike; the gradient is right as it is.
    exact = activation(values, mean)
    rounding = jnp.where(is_point(variance), exact - result, 0.0)
    return result + jax.lax.stop_gradient(rounding)


@functools.cache
def nodes_and_weights() -> tuple[np.ndarray, np.ndarray]:
    """The positive nodes of the rule and the weight of each, in rows to unroll.

    The nodes are quantiles of a normal of twice the width, the weights the quotient
    of the densities. They lie as dense as quantiles where the mass is, which bounds
    the error at a kink or a jump; and since the integrand is then smooth and 0 at
    both ends, the rule converges fast where the activation is smooth.
    """
    pairs = 64
    wide = NormalDist(0.0, 2.0)
    nodes = np.array([wide.inv_cdf(0.5 + (k + 0.5) / (2 * pairs)) for k in range(pairs)])
    weights = np.exp(-0.5 * nodes**2 * (1.0 - 1.0 / wide.variance))
    weights /= 2.0 * weights.sum()
    return nodes.reshape(-1, _UNROLLED), weights.reshape(-1, _UNROLLED)


def _sum_over_pairs(
    activation: Applied,
    values: Sequence[Any],
    mean: jax.Array,
    deviation: jax.Array,
    nodes: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    total = jnp.zeros_like(mean)
    for node, weight in zip(nodes, weights, strict=True):
        # In pairs, so that for a tiny deviation the two slopes cancel exactly.
        offset = deviation * node
        pair = activation(values, mean + offset) + activation(values, mean - offset)
        total += weight * pair
    return total


def average_draws(
    activation: Applied,
    samples: int,
    values: Sequence[Any],
    key: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
) -> jax.Array:
    """Averages an activation over draws of a normal variable, shared by the batch."""
    deviation = standard_deviation(variance)

    # Nothing but the key and the moments is kept for the gradient. All arrays are
    # arguments, because JAX remembers what a checkpoint closes over: a tracer would leak.
    @functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
    def sum_of_draws(
        chunk: Any,
        size: int,
        values: Sequence[Any],
        key: jax.Array,
        mean: jax.Array,
        deviation: jax.Array,
    ) -> jax.Array:
        shape = (size, *mean.shape[:-2], 1, mean.shape[-1])
        draws = jax.random.normal(jax.random.fold_in(key, chunk), shape, mean.dtype)
        total = jnp.zeros_like(mean)
        for draw in draws:
            total += activation(values, mean + deviation * draw)
        return total

    chunks, rest = divmod(samples, _UNROLLED)
    total = _sum_over_loop(
        lambda chunk: sum_of_draws(chunk, _UNROLLED, values, key, mean, deviation),
        mean,
        jnp.arange(chunks),
    )
    if rest:
        total += sum_of_draws(chunks, rest, values, key, mean, deviation)
    return total * (1.0 / samples)


def _sum_over_loop(
    summand: Callable[[Any], jax.Array], like: jax.Array, xs: Any
) -> jax.Array:
    def body(total: jax.Array, x: Any) -> tuple[jax.Array, None]:
        # The total stays outside of a checkpoint, which would keep it at each step.
        return total + summand(x), None

    total: jax.Array = jax.lax.scan(body, jnp.zeros_like(like), xs)[0]
    return total
