"""The engine below ``MultiStep``: one step of bound modules, scanned over time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import Scope
from flax.core.scope import CollectionFilter, in_filter, subtract_filters, union_filters
from flax.linen.transforms import decorator_lift_transform

from snn_dropout._checks.time import (
    check_carried,
    check_settled,
    check_shape,
    check_time_axis,
)
from snn_dropout.functional._sequences import first_step, with_axes_in_front
from snn_dropout.linen._scopes import SOWN, PureStep
from snn_dropout.linen.state import (
    Axes,
    Leaves,
    Naming,
    State,
    first_state,
    from_leaves,
    made_by_init,
    path_name,
    to_leaves,
    written_by_init,
)

Step = Callable[[Leaves, Any], tuple[Leaves, Any]]


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

    first = first_step(x_seq)

    # Ahead of the simulation only those leaves are there that are handed over.
    forgotten = union_filters(carried, SOWN)

    def init(leaves: Leaves, axes: Axes = ()) -> Leaves:
        _, made = pure_step(
            leaves,
            (with_axes_in_front(axes, first), *args),
            kwargs,
            mutable=written_by_init(bool(pure_step.leaves("params"))),
            forgotten=forgotten,
            initializing=True,
        )
        return _only(made, carried)

    def ahead(leaves: Leaves, axes: Axes = ()) -> Leaves:
        inputs = (with_axes_in_front(axes, first), *args)
        _, after = pure_step(leaves, inputs, kwargs, mutable=written, forgotten=forgotten)
        return _only(after, carried)

    def step(leaves: Leaves, inputs: tuple[jax.Array, Any]) -> tuple[Leaves, Any]:
        time_step, x = inputs
        y, after = pure_step(
            leaves, (x, *args), kwargs, mutable=written, time_step=time_step
        )
        return _only(after, carried), (y, _only(after, SOWN))

    start, late = first_state(init, ahead, pure_step.leaves(carried), pure_step.name)
    steps = check_time_axis(x_seq)
    inputs = (_numbers(first_time_step, steps), x_seq)
    last, (y_seq, sown) = _scan(step, start, late, steps, inputs, pure_step.name)
    pure_step.write(last | _appended(pure_step.leaves(SOWN), sown))
    return y_seq


def first_samples(
    state_collections: tuple[str, ...],
    found: State | None,
    where: str,
    function: Callable[..., Any],
    scopes: list[Scope],
    z: jax.Array,
    samples: int,
    /,
) -> State:
    """Makes the first state of the copies that :func:`sampled_over_time` runs.

    Args:
      state_collections: carried even where the scopes may not write them.
      found: the state of the copies that is there already, or None.
      where: where that is, in words.
      function: takes the scopes and ``[N, ..., O]``.
      scopes: where the function finds what is no state.
      z: the input of one step, ``[N, ..., O]``; neurons read its shape.
      samples: the number of copies, ``S``.

    Returns:
      What was found, else the state of one copy, else what ``init`` makes, ``S`` times:
      leaves ``[N, S, ...]``.

    Raises:
      ValueError: the state that is found is of another batch or number of copies.
    """
    pure_step = PureStep(function, scopes)
    mutable = _carried(pure_step, state_collections)

    def init(leaves: Leaves, axes: Axes = ()) -> Leaves:
        nothing = union_filters(mutable, SOWN)
        inputs = (with_axes_in_front(axes, z),)
        return pure_step(
            leaves, inputs, {}, mutable=mutable, forgotten=nothing, initializing=True
        )[1]

    given = pure_step.leaves(mutable)
    first = made_by_init(init, given, pure_step.name) | given
    fresh = _from_leaves(_repeated(first, samples))
    if found is None:
        return fresh

    def after() -> State:
        _, leaves = pure_step(first, (z,), {}, mutable=mutable)
        return _from_leaves(_repeated(leaves, samples))

    made = to_leaves(fresh)
    given, allowed = to_leaves(found), to_leaves(jax.eval_shape(after)) | made
    for path in {**made, **given}:
        name = f"{where}/{path_name(path)}"
        check_shape(name, given.get(path, ()), allowed.get(path, ()))
    return found


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
      function: takes the scopes and ``[N, ..., O]``, the input of one step and sample.
      scopes: where the function finds what is no state.
      state: the state of all copies, from :func:`first_samples` or this function.
      key: makes the standard normals, which the examples share.
      mean_seq: the means of the inputs, ``[T, N, ..., O]``.
      deviation_seq: their standard deviations, of the same shape.
      samples: the number of copies, ``S``.

    Returns:
      The state, whose leaves are ``[N, S, ...]``, and the averages ``[T, N, ..., O]``.
    """
    pure_step = PureStep(function, scopes)
    mutable = _carried(pure_step, state_collections)
    start = {(int(path[0]), *path[1:]): leaf for path, leaf in to_leaves(state).items()}

    def sample(leaves: Leaves, fold: jax.Array, z: jax.Array) -> tuple[Leaves, jax.Array]:
        y, after = pure_step(leaves, (z,), {}, mutable=mutable, time_step=fold)
        return after, y

    one = jax.tree.map(_without_samples, start)
    z = jax.ShapeDtypeStruct(mean_seq.shape[1:], mean_seq.dtype)
    made, _ = jax.eval_shape(sample, one, jax.ShapeDtypeStruct((), jnp.int32), z)
    for path, leaf in one.items():
        check_carried(pure_step.name(path), leaf, made.get(path, leaf))
    after = jax.tree.map(_sample_axis, made)
    late = {path: leaf for path, leaf in made.items() if path not in one}

    def step(leaves: Leaves, inputs: Any) -> tuple[Leaves, jax.Array]:
        time_step, key, mean, deviation = inputs
        shape = (samples, *(1,) * (mean.ndim - 1), mean.shape[-1])
        normals = jax.random.normal(key, shape, mean.dtype)
        folds = time_step * samples + jnp.arange(samples)
        before = {path: after[path] for path in leaves}
        leaves, y = jax.vmap(sample, in_axes=(before, 0, 0), out_axes=(after, 0))(
            leaves, folds, mean[None] + deviation[None] * normals
        )
        return leaves, y.mean(0)

    steps = len(mean_seq)
    inputs = (jnp.arange(steps), jax.random.split(key, steps), mean_seq, deviation_seq)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), late)
    last, y_seq = _scan(
        step, start, _repeated(blank, samples), steps, inputs, pure_step.name
    )
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


def _scan(
    step: Step, start: Leaves, late: Leaves, steps: Any, inputs: Any, name: Naming
) -> Any:
    """Runs ``jax.lax.scan``, but for the first step where it is what makes some leaves.

    The structure of a carry is fixed; neurons that start at rest when there is no state
    have all of it only behind their first call.
    """
    if not late:
        return jax.lax.scan(step, start, inputs)
    if isinstance(steps, int) and steps == 0:
        last, outputs = jax.lax.scan(step, start | late, inputs)
        return {path: last[path] for path in start}, outputs

    def steady(leaves: Leaves, inputs: Any) -> tuple[Leaves, Any]:
        after, outputs = step(leaves, inputs)
        check_settled([name(path) for path in after if path not in leaves])
        for path, leaf in leaves.items():
            check_carried(name(path), leaf, after[path])
        return after, outputs

    behind, first = step(start, first_step(inputs))
    last, rest = jax.lax.scan(steady, behind, jax.tree.map(lambda x: x[1:], inputs))
    return last, jax.tree.map(_prepended, first, rest)


def _prepended(first: Any, rest: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.expand_dims(first, 0), rest])


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


def _sample_axis(leaf: Any) -> int:
    # Behind the batch, so that every leaf of the state has the batch first.
    return min(jnp.ndim(leaf), 1)


def _repeated(leaves: Leaves, samples: int) -> Leaves:
    def repeated(leaf: jax.Array) -> jax.Array:
        axis = _sample_axis(leaf)
        return jnp.repeat(jnp.expand_dims(leaf, axis), samples, axis)

    made: Leaves = jax.tree.map(repeated, leaves)
    return made


def _without_samples(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    axis = min(leaf.ndim - 1, 1)
    return jax.ShapeDtypeStruct(leaf.shape[:axis] + leaf.shape[axis + 1 :], leaf.dtype)


def _only(leaves: Leaves, collections: CollectionFilter) -> Leaves:
    return {path: leaf for path, leaf in leaves.items() if in_filter(collections, path[1])}
