"""The engine below ``MultiStep``: one step of bound modules, scanned over time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import Scope
from flax.core.scope import CollectionFilter, in_filter, subtract_filters, union_filters
from flax.linen.transforms import decorator_lift_transform

from snn_dropout._scopes import SOWN, PureStep
from snn_dropout._time_checks import check_carried, check_time_axis
from snn_dropout.state import (
    Leaves,
    State,
    first_state,
    from_leaves,
    to_leaves,
    written_ahead,
)


def over_time(
    state_collections: tuple[str, ...],
    two_time_scales: bool,
    first_time_step: int | jax.Array,
    function: Callable[..., Any],
    scopes: list[Scope],
    x_seq: Any,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Runs a step over time; the first axis of ``x_seq`` is time.

    Args:
      state_collections: carried even where the scopes may not write them.
      two_time_scales: whether each step is a whole sequence of its own.
      first_time_step: the number of the first step, which is folded into its keys.
      function: takes the scopes, one step of ``x_seq``, and the rest.
      scopes: where the state is found, and left if it may be written.
      x_seq: the inputs of all steps, a pytree.
      *args: the same at every step.
      **kwargs: the same at every step.

    Returns:
      The results of all steps.
    """
    pure_step = PureStep(function, scopes, one_step=not two_time_scales)
    carried = _carried(pure_step, state_collections)
    written = union_filters(carried, SOWN if in_filter(pure_step.mutable, SOWN) else False)

    def ahead(leaves: Leaves, *, initializing: bool) -> Leaves:
        mutable = written_ahead(initializing, bool(pure_step.leaves("params")))
        first = (first_step(x_seq), *args)
        _, after = pure_step(
            leaves, first, kwargs, mutable=mutable, initializing=initializing
        )
        return _only(after, carried)

    def step(leaves: Leaves, inputs: tuple[jax.Array, Any]) -> tuple[Leaves, Any]:
        time_step, x = inputs
        y, after = pure_step(
            leaves, (x, *args), kwargs, mutable=written, time_step=time_step
        )
        return _only(after, carried), (y, _only(after, SOWN))

    start = first_state(ahead, pure_step.leaves(carried))
    time_steps = _numbers(first_time_step, check_time_axis(x_seq))
    last, (y_seq, sown) = jax.lax.scan(step, start, (time_steps, x_seq))
    pure_step.write(last | _appended(pure_step.leaves(SOWN), sown))
    return y_seq


def first_samples(
    state_collections: tuple[str, ...],
    function: Callable[..., Any],
    scopes: list[Scope],
    z: jax.Array,
    samples: int,
    /,
) -> State:
    """Makes the first state of the copies that :func:`sampled_over_time` runs.

    Args:
      state_collections: carried even where the scopes may not write them.
      function: takes the scopes and ``[N, O]``.
      scopes: where the function finds what is no state.
      z: the input of one step, ``[N, O]``; neurons read its shape.
      samples: the number of copies, ``S``.

    Returns:
      The state that is found, else what ``init`` makes, ``S`` times: leaves
      ``[N, S, ...]``.

    Raises:
      ValueError: the state that is found is of another batch.
    """
    pure_step = PureStep(function, scopes)
    mutable = _carried(pure_step, state_collections)
    first, anew = (
        pure_step({}, (z,), {}, mutable=mutable, forgotten=forgotten, initializing=True)[1]
        for forgotten in (SOWN, mutable)
    )
    for path, leaf in first.items():
        check_carried("/".join(path[1:]), leaf, anew[path])
    return _from_leaves({path: _repeated(leaf, samples) for path, leaf in first.items()})


def sampled_over_time(
    state_collections: tuple[str, ...],
    function: Callable[..., Any],
    scopes: list[Scope],
    state: State,
    key: jax.Array,
    mean_seq: jax.Array,
    deviation_seq: jax.Array,
    samples: int,
    /,
) -> tuple[State, jax.Array]:
    """Runs one copy of a step a sample over time, on normal inputs, and averages.

    Args:
      state_collections: carried even where the scopes may not write them.
      function: takes the scopes and ``[N, O]``, the input of one step and sample.
      scopes: where the function finds what is no state.
      state: the state of all copies, from :func:`first_samples` or this function.
      key: makes the standard normals, which the examples share.
      mean_seq: the means of the inputs, ``[T, N, O]``.
      deviation_seq: their standard deviations, of the same shape.
      samples: the number of copies, ``S``.

    Returns:
      The state, whose leaves are ``[N, S, ...]``, and the averages ``[T, N, O]``.
    """
    pure_step = PureStep(function, scopes)
    mutable = _carried(pure_step, state_collections)
    start = {(int(path[0]), *path[1:]): leaf for path, leaf in to_leaves(state).items()}
    axes = {path: _sample_axis(leaf.ndim - 1) for path, leaf in start.items()}

    def sample(leaves: Leaves, fold: jax.Array, z: jax.Array) -> tuple[Leaves, jax.Array]:
        y, after = pure_step(leaves, (z,), {}, mutable=mutable, time_step=fold)
        return after, y

    def step(leaves: Leaves, inputs: Any) -> tuple[Leaves, jax.Array]:
        time_step, key, mean, deviation = inputs
        normals = jax.random.normal(key, (samples, 1, mean.shape[-1]), mean.dtype)
        folds = time_step * samples + jnp.arange(samples)
        leaves, y = jax.vmap(sample, in_axes=(axes, 0, 0), out_axes=(axes, 0))(
            leaves, folds, mean[None] + deviation[None] * normals
        )
        return leaves, y.mean(0)

    steps = len(mean_seq)
    inputs = (jnp.arange(steps), jax.random.split(key, steps), mean_seq, deviation_seq)
    last, y_seq = jax.lax.scan(step, start, inputs)
    return _from_leaves(last), y_seq


def lift(transform: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a transform of a function of scopes act on a function of a bound module.

    Args:
      transform: takes a function of scopes, the scopes, and the arguments.
      function: takes the module and the arguments of one call.

    Returns:
      A function of the module and the arguments of the transform.
    """
    lifted: Callable[..., Any] = decorator_lift_transform(
        lambda core: partial(transform, core), function
    )
    return lifted


def _numbers(first: int | jax.Array, steps: Any) -> jax.Array:
    numbers = jnp.arange(steps)
    if isinstance(first, int) and first == 0:
        return numbers
    return numbers + jnp.asarray(first, numbers.dtype)


def _carried(pure_step: PureStep, state_collections: tuple[str, ...]) -> CollectionFilter:
    mutable = subtract_filters(pure_step.mutable, "params")
    return subtract_filters(union_filters(mutable, state_collections), SOWN)


def _from_leaves(leaves: Leaves) -> State:
    # Names in a state are strings, for checkpoints.
    return from_leaves({(str(path[0]), *path[1:]): leaf for path, leaf in leaves.items()})


def _appended(before: Leaves, sown: Leaves) -> Leaves:
    # `sow` appends to a tuple, unless it is told to reduce in another way.
    return {
        path: before.get(path, ()) + leaf if isinstance(leaf, tuple) else leaf
        for path, leaf in sown.items()
    }


def _sample_axis(ndim: int) -> int:
    # Behind the batch, so that every leaf of the state has the batch first.
    return min(ndim, 1)


def _repeated(leaf: jax.Array, samples: int) -> jax.Array:
    axis = _sample_axis(jnp.ndim(leaf))
    return jnp.repeat(jnp.expand_dims(leaf, axis), samples, axis)


def _only(leaves: Leaves, collections: CollectionFilter) -> Leaves:
    return {path: leaf for path, leaf in leaves.items() if in_filter(collections, path[1])}


def first_step(x_seq: Any) -> Any:
    """Returns the input of the first step, zeros where there is no step."""

    def first(x: jax.Array) -> jax.Array:
        # A simulation of no steps still has a step's shape.
        steps = x.shape[0]
        if isinstance(steps, int) and steps == 0:
            return jnp.zeros(x.shape[1:], x.dtype)
        one: jax.Array = jax.lax.dynamic_index_in_dim(x, 0, keepdims=False)
        return one

    return jax.tree.map(first, x_seq)
