"""Uncertainty of NNX models: whole simulations, each under a mask of its own."""

from typing import Any

import jax
from flax import nnx

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout._checks.connections import check_count
from snn_dropout._checks.layers import check_flag, check_step_mode
from snn_dropout._checks.time import check_time_axis
from snn_dropout.functional._uncertainty import (
    Scores,
    Uncertainty,
    time_average,
    uncertainty,
)
from snn_dropout.nnx._held import held_by, layers_of, names_of
from snn_dropout.nnx.time import simulate, simulation


def monte_carlo(
    model: nnx.Module,
    x_seq: Any,
    *args: Any,
    key: jax.Array,
    samples: int,
    step_mode: str = "s",
    scores: Scores = time_average,
    entropies: bool = True,
    at_once: int = 8,
    **kwargs: Any,
) -> Uncertainty:
    """Simulates in inference, but for the masks: drawn anew for each sample, and held.

    ``p = mean_s softmax(z_s)``;   ``H(p) = -sum_k p_k log p_k``;
    ``I = H(p) - mean_s H(softmax(z_s))``

    for the scores ``z_s`` of sample ``s``. Each sample runs on a copy, put into inference
    by ``eval()``: its normalisations and ``nnx.Dropout`` stay there, and the layers of this
    package drop all the same, whatever ``deterministic`` says to them. The model itself is
    not changed; its neurons start from what they are in every sample. One output is no
    distribution over classes, see ``snn_dropout.monte_carlo``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import snn_dropout.nnx as sdn
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), sdn.Dropout(0.5))
      >>> x_seq = jnp.ones((5, 2, 4))                                 # [T, N, I]
      >>> result = sdn.monte_carlo(model, x_seq, key=jax.random.key(1), samples=20)
      >>> result.mean.shape, result.predictive_entropy.shape
      ((2, 3), (2,))

    Args:
      model: an NNX model: of single steps where ``step_mode`` is ``'s'``, of whole
        sequences where it is ``'m'``. Held masks are the same in both, bit for bit.
      x_seq: the input ``[T, N, ...]``, or a pytree of such arrays.
      *args: further arguments of the model, those of inference.
      key: the key; each sample's is made of it with ``fold_in``.
      samples: how many simulations, ``S``.
      step_mode: what the model takes, ``'s'`` or ``'m'``.
      scores: makes class scores (logits) ``[N, K]`` of what the model returns; without,
        its average over time. A model of whole sequences that returns ``[N, K]``
        already needs ``scores=lambda y: y``.
      entropies: whether the last axis of the scores is the classes. Without, the scores
        may be any floats, and the entropies are None.
      at_once: how many simulations run together.
      **kwargs: further keyword arguments of the model, those of inference.

    Returns:
      Mean and variance of the scores, predictive entropy and mutual information.

    Raises:
      TypeError, ValueError: ``samples`` or ``at_once`` is no whole number of 1 or more,
        the model holds a mask, there is no time to average over, the scores are no
        array of floats with a last axis of two classes or more, or a message of
        ``simulate``.

    Source: Gal and Ghahramani 2016 (Monte-Carlo dropout); Smith and Gal 2018 (mutual
    information).
    """
    _nnx_checks.check_model(model, nnx.Module)
    _nnx_checks.check_key("key", key)
    check_step_mode(step_mode)
    check_time_axis(x_seq)
    check_flag("entropies", entropies, "whether the scores are of classes")
    check_count("samples", samples)
    check_count("at_once", at_once)
    _nnx_checks.check_holds_none(
        [
            "/".join((*names_of(model, path), name))
            for path, layer in layers_of(model).items()
            for name, _ in held_by(layer)
        ]
    )
    graphdef, state = nnx.split(model)

    def outputs(number: jax.Array) -> Any:
        copy = nnx.merge(graphdef, state, copy=True)
        copy.eval()
        for layer in layers_of(copy).values():
            layer._always_drops = True
        # What is new at each step is new in each sample, too.
        keys = nnx.state(copy, nnx.RngKey)
        nnx.update(copy, jax.tree.map(lambda key: jax.random.fold_in(key, number), keys))
        one = jax.random.fold_in(key, number)
        if step_mode == "s":
            return simulate(copy, x_seq, *args, key=one, **kwargs)
        with simulation(copy, x_seq, *args, key=one, **kwargs):
            return copy(x_seq, *args, **kwargs)

    whole = x_seq if step_mode == "m" else None
    return uncertainty(outputs, scores, whole, samples, at_once, entropies)
