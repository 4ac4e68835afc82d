"""Argument checks of Monte-Carlo dropout, and their errors.

Every message names the argument, the rule, what was given and what
to type instead. Nothing here knows Flax.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def check_no_stored_mask(paths: Sequence[str]) -> None:
    """Raises if there are masks where each simulation has to draw its own."""
    if paths:
        raise ValueError(
            f"`variables` must hold no mask, for each sample draws its own, but there is "
            f"one at {', '.join(paths)}; leave the state out, or pass "
            f"`reset_masks(state)`."
        )


def not_of_whole_sequences(error: str) -> str:
    """Returns the error about what a model in mode 'm' may not write, or does not find."""
    return (
        f"In mode 'm' the model is called once, on all steps [T, N, ...]: it must find in "
        f"`variables` what it reads, and write only what `mutable` names. If it is a model "
        f"of single steps with neurons, leave `step_mode` out; if it runs over the steps "
        f"itself, with `nn.RNN` say, name the collection, `mutable=['state']`. Flax says: "
        f"{error}"
    )


def check_averages_time(y_seq: Any, x_seq: Any) -> None:
    """Raises unless the first axis of what a model of whole sequences returns is time.

    Args:
      y_seq: its output, of which the average over the first axis is taken.
      x_seq: its input, a pytree of arrays [T, N, ...].
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x_seq)]
    steps, examples = shapes[0][0], {shape[1] for shape in shapes if len(shape) > 1}
    shape = tuple(jnp.shape(y_seq))
    second_is_batch = len(shape) > 1 and shape[1] in examples
    if second_is_batch and len(shape) > 2:
        has_time = True  # of as many steps, or of other ones: [N, N, ...] is rare without
    elif shape[:1] == (steps,):
        has_time = steps not in examples
    else:
        has_time = second_is_batch and shape[0] not in examples
    if not has_time:
        batch = " or ".join(sorted(map(str, examples)))
        given = f"T = {steps}" + (f" and N = {batch}" if batch else "")
        raise ValueError(
            f"`scores` averages over time where it is not given, so that the model must "
            f"return [T, N, ...], with {given} of `x_seq`, but it returned shape {shape}. "
            f"If that is [N, K] already, without time: `scores=lambda y: y`. If its first "
            f"axis is time all the same, `scores=lambda y_seq: y_seq.mean(0)`."
        )


def check_scores(scores: Any, entropies: bool, *, averaged: bool) -> None:
    """Raises unless the scores are floats, and of classes where entropies are asked for.

    Args:
      scores: what `scores` returns.
      entropies: whether the last axis is the classes.
      averaged: whether that is the average over time, for no `scores` was given.
    """
    if not isinstance(scores, jax.ShapeDtypeStruct | jax.Array) or not jnp.issubdtype(
        scores.dtype, jnp.floating
    ):
        raise TypeError(
            f"`scores` must return one array of floats, [N, K] for K classes, but "
            f"returned {scores}; write for example `scores=lambda y_seq: y_seq.mean(0)` "
            f"for outputs [T, N, K], and `.astype(jnp.float32)` behind what is no float."
        )
    shape = tuple(scores.shape)
    if entropies and (len(shape) < 2 or shape[-1] < 2):
        z = "y_seq.mean(0)" if averaged else "z"
        z += "[:, None]" if len(shape) == 1 else ""
        logits = f"jnp.insert({z}, 0, 0.0, axis=-1)"
        remedy = f"`scores=lambda y_seq: {logits}`" if averaged else f"`{logits}` of the z"
        if not averaged:
            remedy += " that it returns now"
        raise ValueError(
            f"`scores` must return an array whose last axis is the classes, [N, K] for two "
            f"or more, but returned shape {shape}, which is no distribution over classes. "
            f"For one logit, yes or no, put a 0 beside it, {remedy}; where only mean and "
            f"variance make sense, as in a regression, write `entropies=False`."
        )
