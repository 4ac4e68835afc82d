"""Uncertainty by Monte-Carlo dropout: whole simulations, each under a mask of its own."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from snn_dropout._checks.connections import check_count
from snn_dropout._checks.layers import check_flag, check_step_mode
from snn_dropout._checks.time import (
    check_module,
    check_mutable,
    check_no_stored_mask,
    check_scores,
    check_time_axis,
)
from snn_dropout.linen.layers import DropConnectLinear
from snn_dropout.linen.layers._held_dropout import HeldDropout
from snn_dropout.linen.state import MASK_NAMES, to_leaves
from snn_dropout.linen.time import simulate

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


def monte_carlo(
    model: nn.Module,
    variables: Mapping[str, Any],
    x_seq: Any,
    *args: Any,
    rngs: Any,
    samples: int,
    step_mode: str = "s",
    scores: Scores = time_average,
    entropies: bool = True,
    at_once: int = 8,
    mutable: str | Iterable[str] = (),
    **kwargs: Any,
) -> Uncertainty:
    """Simulates in inference, but for the masks: drawn anew for each sample, and held.

    ``p = mean_s softmax(z_s)``;   ``H(p) = -sum_k p_k log p_k``;
    ``I = H(p) - mean_s H(softmax(z_s))``

    for the scores ``z_s`` of sample ``s``. The model is called as in inference: its
    normalisations stay there, and the layers of this package drop all the same, whatever
    ``deterministic`` says to them. ``DropConnectLinear`` loses connections as in
    training. A model without such layers has a variance of 0, also one with
    ``nn.Dropout``. Samples run ``at_once`` together, so memory does not grow with their
    number.

    One output is no distribution over classes, and raises. For the one logit ``z`` of a
    yes or no, let ``scores`` return the two classes ``[0, z]``, whose softmax is
    ``sigmoid(z)``: ``jnp.insert(y_seq.mean(0), 0, 0.0, axis=-1)`` of ``[T, N, 1]``. For
    ``K`` independent labels return ``[N, K, 2]``. Outputs of a regression have a mean and
    a variance alone: ``entropies=False``.

    Example::

      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> model = nn.Sequential([nn.Dense(3), sd.Dropout(0.5, deterministic=True)])
      >>> x_seq = jnp.ones((5, 2, 4))                                 # [T, N, I]
      >>> variables = model.init(jax.random.key(0), x_seq[0])
      >>> result = sd.monte_carlo(
      ...   model, variables, x_seq, rngs={'dropout': jax.random.key(1)}, samples=20)
      >>> result.mean.shape, result.predictive_entropy.shape
      ((2, 3), (2,))

    Args:
      model: a linen module: of single steps where ``step_mode`` is ``'s'``, which
        :func:`simulate` runs; of whole sequences where it is ``'m'`` (layers in mode
        ``'m'``, neurons in ``MultiStep``), which ``apply`` calls once for each sample.
        Held masks are the same in both, bit for bit.
      variables: its variables, as for :func:`simulate`.
      x_seq: the input ``[T, N, ...]``, or a pytree of such arrays.
      *args: further arguments of the model, those of inference.
      rngs: the keys; each sample's are made of them with ``fold_in``.
      samples: how many simulations, ``S``.
      step_mode: what the model takes, ``'s'`` or ``'m'``.
      scores: makes class scores (logits) ``[N, K]`` of the outputs of all steps.
      entropies: whether the last axis of the scores is the classes. Without, the scores
        may be any floats, and the entropies are None.
      at_once: how many simulations run together.
      mutable: further collections that are carried, as for :func:`simulate`; in mode
        ``'m'`` all that the model may write, as for ``apply``: ``'state'`` for one that
        steps layers in mode ``'s'`` itself, with ``nn.RNN`` say.
      **kwargs: further keyword arguments of the model, those of inference.

    Returns:
      Mean and variance of the scores, predictive entropy and mutual information.

    Raises:
      TypeError, ValueError: ``samples`` or ``at_once`` is no whole number of 1 or more,
        the variables hold a mask, the scores are no array of floats with a last axis of
        two classes or more, or a message of :func:`simulate`.
      flax.errors.InvalidRngError: the stream of a layer is missing.

    Source: Gal and Ghahramani 2016 (Monte-Carlo dropout); Smith and Gal 2018 (mutual
    information).
    """
    check_module("model", model, nn.Module)
    check_step_mode(step_mode)
    check_time_axis(x_seq)
    written = check_mutable(mutable)
    check_flag("entropies", entropies, "whether the scores are of classes")
    check_count("samples", samples)
    check_count("at_once", at_once)
    check_no_stored_mask(_stored_masks(variables))
    if rngs is not None and not isinstance(rngs, Mapping):
        rngs = {"params": rngs}  # as `apply` takes a single key
    # A stream that nobody reads: `nn.jit` would reuse here what it traced for a call that
    # drops nothing, and there what it traces here, were they called alike.
    streams = {**(rngs or {}), "monte_carlo": jax.random.key(0)}
    at_once = min(at_once, samples)
    chunks = -(-samples // at_once)

    def sample(number: jax.Array) -> jax.Array:
        keys = jax.tree.map(lambda key: jax.random.fold_in(key, number), streams)
        run = model.apply if step_mode == "m" else partial(simulate, model)
        given = {"rngs": keys, "mutable": list(written), **kwargs}
        with nn.intercept_methods(_drop_all_the_same):
            y_seq, _ = run(variables, x_seq, *args, **given)
        return scores(y_seq)

    def add(total: _Total, numbers: jax.Array) -> tuple[_Total, None]:
        # The last chunk may run more samples than are asked for: they weigh nothing.
        weights = (numbers < samples).astype(jnp.float32)
        return _join(total, _total(jax.vmap(sample)(numbers), weights, entropies)), None

    numbers = jnp.arange(chunks * at_once).reshape(chunks, at_once)
    shape = jax.eval_shape(sample, numbers[0, 0])
    check_scores(shape, entropies)
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


def _drop_all_the_same(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    result = call(*args, **kwargs)
    ours = isinstance(context.module, (HeldDropout, DropConnectLinear))
    return False if ours and context.method_name == "_merge_deterministic" else result


def _stored_masks(variables: Mapping[str, Any]) -> list[str]:
    return [
        "/".join(map(str, path))
        for path in to_leaves(variables)
        if path[0] != "params" and path[-1] in MASK_NAMES
    ]
