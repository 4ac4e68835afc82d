"""Tokens, the axes between batch and features: averages of what they share."""

from collections.abc import Callable

import jax

from snn_dropout.functional.expectation import sampled_activation


def sample_tokens(
    key: jax.Array,
    activation: Callable[[jax.Array], jax.Array] | None,
    mean: jax.Array,
    variance: jax.Array,
    samples: int,
) -> jax.Array:
    """Averages an activation over draws that the examples of a step share, and tokens too.

    Args:
      key: makes the standard normals.
      activation: a callable on arrays, or None.
      mean: ``[T, N, ..., O]``.
      variance: of the same shape.
      samples: the number of draws.

    Returns:
      An array of the shape of ``mean``.
    """
    if mean.ndim == 3:
        return sampled_activation(key, activation, mean, variance, samples)
    rows = (mean.shape[0], -1, mean.shape[-1])
    y_seq = sampled_activation(
        key, activation, mean.reshape(rows), variance.reshape(rows), samples
    )
    return y_seq.reshape(*mean.shape[:-1], y_seq.shape[-1])
