"""The engine below ``simulate``: a call is tried once, and then scanned over time."""

import contextlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout.functional._sequences import first_step
from snn_dropout.functional.keys import mask_key
from snn_dropout.nnx._calls import (
    Held,
    PureCall,
    any_traced,
    holding,
    in_place,
    lie_on_mesh,
)
from snn_dropout.nnx._held import (
    MASKS,
    SAMPLES,
    VARIABLES,
    Book,
    HoldingLayer,
    Path,
    held_by,
    layers_of,
    names_of,
)


class Dry(NamedTuple):
    """What one call of a model would do.

    Attributes:
      y: the shape of the output.
      start: the values of the Variables before a first step, of their shape after it.
      moves: which of them a call changes.
      settled: whether it changes nothing but values.
      book: what layers would hold.
    """

    y: Any
    start: list[Any]
    moves: list[bool]
    settled: bool
    book: Book


def dry_run(pure: PureCall, x: Any, *, one_step: bool) -> Dry:
    """Finds out what a call would do, and does not do it."""
    book, found = Book(), []

    def call() -> tuple[Any, list[Any]]:
        y, after, _, settled = pure(pure.values, x, one_step=one_step, book=book)
        moves = [new is not old for new, old in zip(after, pure.values)]  # noqa: B905
        found.append((moves, settled))
        return y, after

    leaves = jax.tree.leaves(x)
    # On automatic axes of a mesh only values know where they lie, and no types.
    eager = lie_on_mesh(leaves) or (pure.on_mesh and not any_traced(leaves))
    y, after = call() if eager else jax.eval_shape(call)
    moves, settled = found[-1]
    start = pure.values
    if settled:
        start = [_started(old, new) for old, new in zip(start, after, strict=True)]
        for name, old, new in zip(pure.names, start, after, strict=True):
            _nnx_checks.check_carried(name, old, new)
        if one_step:
            _check_batch(pure, x, y, start, moves)
    return Dry(y, start, moves, settled, book)


def make_held(model: Any, book: Book, key: Any, *, again: bool = False) -> Held:
    """Makes what the layers of a model would hold, and do not yet.

    Args:
      model: the model.
      book: what a dry run found.
      key: the key of the simulation, or None where nothing is to be drawn.
      again: whether also what is held already.
    """
    layers = layers_of(model)
    if key is not None and not again:
        for path, layer in layers.items():
            if any(name != SAMPLES for name, _ in held_by(layer)):
                _nnx_checks.refuse_held("/".join(map(str, path)) or type(layer).__name__)
    made: Held = {}
    taken: dict[tuple[str, ...], Path] = {}
    for (path, kind), wish in book.wishes.items():
        layer, names = layers[path], names_of(model, path)
        where = "/".join(names) or type(layer).__name__
        if taken.setdefault(names, path) != path:
            _nnx_checks.refuse_one_name(where, path, taken[names])
        holds = any((name == SAMPLES) == (kind == SAMPLES) for name, _ in held_by(layer))
        if holds and not again:
            continue
        if key is None and kind == MASKS:
            _nnx_checks.refuse_no_key(where)
        made[path, kind] = wish.make(layer, partial(mask_key, key, names))
    return made


def over_time(
    pure: PureCall, x_seq: Any, dry: Dry, held: Held, *, settles: bool = True
) -> Any:
    """Runs a call over time by ``jax.lax.scan``, and updates the model in place.

    Args:
      pure: the call.
      x_seq: the inputs of all steps, a pytree.
      dry: what a dry run found of the first step.
      held: what layers hold in this simulation, beside that which is in the model.
      settles: whether the first step may make attributes and Variables.

    Returns:
      The outputs of all steps.
    """
    steps = jax.tree.leaves(x_seq)[0].shape[0]
    if isinstance(steps, int) and steps == 0:
        return jax.tree.map(lambda y: jnp.zeros((0, *y.shape), y.dtype), dry.y)
    if not dry.settled:
        if not settles:
            _nnx_checks.refuse_unsettled()
        return _first_by_itself(pure, x_seq, held)
    masks = {place: values for place, values in held.items() if place[1] == MASKS}
    copies = {place: values for place, values in held.items() if place[1] == SAMPLES}

    def step(carry: tuple[list[Any], Held], x: Any) -> tuple[tuple[list[Any], Held], Any]:
        carried, copies = carry
        values = list(dry.start)
        for place, value in zip(places, carried, strict=True):
            values[place] = value
        y, after, copies, settled = pure(values, x, {**masks, **copies})
        if not settled or any(
            new is not old
            for n, (old, new) in enumerate(zip(values, after, strict=True))
            if n not in places
        ):
            _nnx_checks.refuse_unsettled()
        return ([after[place] for place in places], copies), y

    # What no step changes is the same for all of them, and stays as it is.
    places = [n for n, moves in enumerate(dry.moves) if moves]
    start = [dry.start[place] for place in places]
    (last, _), y_seq = jax.lax.scan(step, (start, copies), x_seq)
    values = list(pure.values)
    for place, value in zip(places, last, strict=True):
        values[place] = value
    pure.write(values)
    return y_seq


def call_over_time(module: Any, z_seq: Any) -> Any:
    """Runs a module that is part of a layer over time, and updates it in place."""
    pure = PureCall(module)
    return over_time(pure, z_seq, dry_run(pure, first_step(z_seq), one_step=True), {})


def put(model: Any, held: Held) -> None:
    """Puts what is held into a model, in place: into the Variables that are there."""
    layers = layers_of(model)
    with in_place():
        for (path, kind), values in held.items():
            for name, value in values.items():
                variable = getattr(layers[path], name, None)
                if isinstance(variable, nnx.Variable):
                    variable.set_value(value)
                else:
                    setattr(layers[path], name, VARIABLES[kind](value))


def drop(layer: HoldingLayer) -> None:
    """Takes away all that a layer holds."""
    with in_place():
        for name, _ in list(held_by(layer)):
            setattr(layer, name, nnx.data(None))


def _first_by_itself(pure: PureCall, x_seq: Any, held: Held) -> Any:
    """Runs the step that makes Variables outside of the scan, whose carry is fixed."""
    with holding(pure.model, held):
        first = pure.in_place(first_step(x_seq))
        rest = jax.tree.map(lambda x: x[1:], x_seq)
        behind = pure.again()
        dry = dry_run(behind, first_step(rest), one_step=True)
        y_seq = over_time(behind, rest, dry, {}, settles=False)
    return jax.tree.map(
        lambda one, others: jnp.concatenate([jnp.expand_dims(one, 0), others]), first, y_seq
    )


def _check_batch(
    pure: PureCall, x: Any, y: Any, start: list[Any], moves: list[bool]
) -> None:
    """Raises where one example meets neurons of a larger batch, which would broadcast it.

    They are those that lead the output as they do, and that keep a batch of 1 if they are
    given one: a running average takes the shape of the features again.
    """
    leading = {shape[0] for leaf in jax.tree.leaves(x) if (shape := jnp.shape(leaf))}
    batches = {shape[0] for leaf in jax.tree.leaves(y) if (shape := jnp.shape(leaf))}
    places = [
        n
        for n, (value, moving) in enumerate(zip(start, moves, strict=True))
        if moving and jnp.ndim(value) and value.shape[0] != 1 and value.shape[0] in batches
    ]
    if leading != {1} or not places:
        return

    def one(value: Any) -> Any:
        return jax.ShapeDtypeStruct((1, *value.shape[1:]), value.dtype)

    def step(parts: list[Any]) -> list[Any]:
        values = list(start)
        for place, part in zip(places, parts, strict=True):
            values[place] = part
        _, after, _, _ = pure(values, x, one_step=True, book=Book())
        return [after[place] for place in places]

    parts, after = [one(start[place]) for place in places], []
    # A model that can not run so has neurons of its own size.
    with contextlib.suppress(Exception):
        after = jax.eval_shape(step, parts)
    for place, part, new in zip(places, parts, after, strict=False):
        if new.shape == part.shape:
            _nnx_checks.refuse_other_batch(pure.names[place], start[place].shape[0])


def _started(old: Any, new: Any) -> Any:
    # A membrane may start as a number and take the shape of its first input.
    if jnp.ndim(old) == 0 and jnp.ndim(new) > 0:
        return jnp.broadcast_to(old, new.shape)
    return old
