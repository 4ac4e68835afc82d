"""Uncertainty by Monte-Carlo dropout: whole simulations, each under a mask of its own."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax import errors

from snn_dropout._checks.connections import check_count
from snn_dropout._checks.layers import check_flag, check_step_mode
from snn_dropout._checks.modules import check_module
from snn_dropout._checks.time import check_mutable, check_time_axis
from snn_dropout._checks.uncertainty import check_no_stored_mask, not_of_whole_sequences
from snn_dropout.functional._uncertainty import (
    Scores,
    Uncertainty,
    time_average,
    uncertainty,
)
from snn_dropout.linen.layers import DropConnect, DropConnectLinear
from snn_dropout.linen.layers._held_dropout import HeldDropout
from snn_dropout.linen.state import MASK_NAMES, to_leaves
from snn_dropout.linen.time import simulate


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
      scores: makes class scores (logits) ``[N, K]`` of what the model returns; without,
        its average over time. A model of whole sequences that returns ``[N, K]``
        already needs ``scores=lambda y: y``.
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
        the variables hold a mask, there is no time to average over, the scores are no
        array of floats with a last axis of two classes or more, or a message of
        :func:`simulate`.
      RuntimeError: in mode ``'m'`` the model writes what ``mutable`` does not name.
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

    def outputs(number: jax.Array) -> Any:
        keys = jax.tree.map(lambda key: jax.random.fold_in(key, number), streams)
        run = partial(_call_once if step_mode == "m" else simulate, model)
        given = {"rngs": keys, "mutable": list(written), **kwargs}
        with nn.intercept_methods(_drop_all_the_same):
            y_seq, _ = run(variables, x_seq, *args, **given)
        return y_seq

    whole = x_seq if step_mode == "m" else None
    return uncertainty(outputs, scores, whole, samples, at_once, entropies)


def _call_once(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    try:
        return model.apply(*args, **kwargs)
    except (
        errors.ScopeCollectionNotFound,
        errors.ScopeVariableNotFoundError,
        errors.ModifyScopeVariableError,
    ) as error:
        if any(f'"{name}"' in str(error) for name in ("params", "batch_stats")):
            raise  # no state of neurons
        raise RuntimeError(not_of_whole_sequences(str(error))) from error


def _drop_all_the_same(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    result = call(*args, **kwargs)
    ours = isinstance(context.module, (HeldDropout, DropConnect, DropConnectLinear))
    return False if ours and context.method_name == "_merge_deterministic" else result


def _stored_masks(variables: Mapping[str, Any]) -> list[str]:
    return [
        "/".join(map(str, path))
        for path in to_leaves(variables)
        if path[0] != "params" and path[-1] in MASK_NAMES
    ]
