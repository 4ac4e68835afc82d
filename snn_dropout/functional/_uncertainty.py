"""What many samples of class scores say of the uncertainty of their mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snn_dropout._checks.uncertainty import check_averages_time, check_scores

Scores = Callable[[Any], jax.Array]


class Uncertainty(NamedTuple):
    """What the samples of a simulation say of the class scores of each example.

    Attributes:
      mean: the mean of the scores over the samples, ``[N, K]`` for ``K`` classes.
      variance: their variance, ``[N, K]``.
      predictive_entropy: of the mean probabilities, ``[N]``, in nats: all uncertainty.
      mutual_information: of class and mask, ``[N]``, in nats: the part of it that is
        due to the masks, and not to inputs that no mask is sure of.

    The last two are None where no entropies were asked for.
    """

    mean: jax.Array
    variance: jax.Array
    predictive_entropy: jax.Array | None
    mutual_information: jax.Array | None


def time_average(y_seq: jax.Array) -> jax.Array:
    """Averages the outputs ``[T, N, K]`` over time."""
    return y_seq.mean(0)


def uncertainty(
    outputs: Callable[[jax.Array], Any],
    scores: Scores,
    whole: Any,
    samples: int,
    at_once: int,
    entropies: bool,
) -> Uncertainty:
    """Takes many samples of class scores, some of them at once, and sums them up.

    Args:
      outputs: makes the outputs of all steps of one sample from its number.
      scores: makes scores ``[N, K]`` of them.
      whole: the input of a model that is called on all steps, which may return
        something without time; None where each step has an output.
      samples: how many there are.
      at_once: how many are made together.
      entropies: whether the last axis of the scores is the classes.

    Returns:
      Mean and variance of the scores, predictive entropy and mutual information.
    """
    at_once = min(at_once, samples)
    chunks = -(-samples // at_once)
    averaged = scores is time_average

    def sample(number: jax.Array) -> jax.Array:
        y_seq = outputs(number)
        if averaged and whole is not None:
            check_averages_time(y_seq, whole)
        return scores(y_seq)

    def add(total: _Total, numbers: jax.Array) -> tuple[_Total, None]:
        # The last chunk may run more samples than are asked for: they weigh nothing.
        weights = (numbers < samples).astype(jnp.float32)
        return _join(total, _total(jax.vmap(sample)(numbers), weights, entropies)), None

    numbers = jnp.arange(chunks * at_once).reshape(chunks, at_once)
    shape = jax.eval_shape(sample, numbers[0, 0])
    check_scores(shape, entropies, averaged=averaged)
    zero = _total(jnp.zeros((1, *shape.shape)), jnp.zeros(1), entropies)
    total, _ = jax.lax.scan(add, zero, numbers)
    if total.classes is None:
        return Uncertainty(total.mean, total.squares / samples, None, None)
    entropy = _entropy(total.classes.probabilities / samples)
    return Uncertainty(
        mean=total.mean,
        variance=total.squares / samples,
        predictive_entropy=entropy,
        # Rounding must not make it negative where all samples agree.
        mutual_information=jnp.maximum(entropy - total.classes.entropies / samples, 0.0),
    )


class _Classes(NamedTuple):
    probabilities: jax.Array
    entropies: jax.Array


class _Total(NamedTuple):
    samples: jax.Array
    mean: jax.Array
    squares: jax.Array  # of the distances from the mean
    classes: _Classes | None


def _total(scores: jax.Array, weights: jax.Array, entropies: bool) -> _Total:
    def summed(values: jax.Array) -> jax.Array:
        return jnp.tensordot(weights, values, 1)

    scores = scores.astype(jnp.float32)
    samples = weights.sum()
    mean = summed(scores) / jnp.maximum(samples, 1.0)
    probabilities = jax.nn.softmax(scores) if entropies else None
    squares = summed((scores - mean[None]) ** 2)
    if probabilities is None:
        return _Total(samples, mean, squares, None)
    classes = _Classes(summed(probabilities), summed(_entropy(probabilities)))
    return _Total(samples, mean, squares, classes)


def _join(a: _Total, b: _Total) -> _Total:
    # Chan et al. 1983: sums of squares that do not cancel, as squares of sums would.
    samples, apart = a.samples + b.samples, b.mean - a.mean
    share = b.samples / samples
    return _Total(
        samples,
        a.mean + share * apart,
        a.squares + b.squares + a.samples * share * apart**2,
        jax.tree.map(jnp.add, a.classes, b.classes),
    )


def _entropy(probabilities: jax.Array) -> jax.Array:
    return jax.scipy.special.entr(probabilities).sum(-1)
