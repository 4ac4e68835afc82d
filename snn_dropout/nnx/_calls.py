"""One call of a model as a pure function of what such a call may change."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import errors, nnx
from jax.sharding import NamedSharding

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout.nnx._held import (
    SAMPLES,
    VARIABLES,
    Book,
    HeldMask,
    HoldingLayer,
    Path,
    Recorder,
    layers_of,
)

# What a simulation holds: the values of a layer, by its path and their kind.
Held = dict[tuple[Path, str], dict[str, Any]]
_NOTHING: Mapping[tuple[Path, str], dict[str, Any]] = {}


class PureCall:
    """One call of a model as a pure function of the Variables that such a call may change.

    Those are all but the parameters and the masks, of the model and of what is handed to
    it beside its input, an ``nnx.Rngs`` for example.

    Args:
      model: the model.
      args: its arguments behind the input.
      kwargs: its keyword arguments.
    """

    def __init__(
        self,
        model: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._leaves, self._tree = jax.tree.flatten((args, kwargs or {}), is_leaf=_is_node)
        self._places = [n for n, leaf in enumerate(self._leaves) if _is_node(leaf)]
        self.model, self._args, self._kwargs = model, args, dict(kwargs or {})
        self._nodes = (model, *(self._leaves[place] for place in self._places))
        self._graphdef, self._fixed, moving = _split(self._nodes)
        self.values, self._values_tree = jax.tree.flatten(moving)
        paths = jax.tree_util.tree_leaves_with_path(moving)
        self.names = [_name(path) for path, _ in paths]

    def __call__(
        self,
        values: list[Any],
        x: Any,
        held: Mapping[tuple[Path, str], dict[str, Any]] = _NOTHING,
        *,
        one_step: bool = True,
        book: Book | None = None,
    ) -> tuple[Any, list[Any], Held, bool]:
        """Calls a copy of the model.

        Args:
          values: those of the Variables.
          x: the input.
          held: what layers hold beside that which is in the model.
          one_step: whether the input is one step, where mode ``'m'`` has no place.
          book: where layers write what they would hold, in a dry run.

        Returns:
          The output; the values after the call; the neurons' copies in ``held`` after it;
          and whether nothing but values changed.
        """
        moving = jax.tree.unflatten(self._values_tree, values)
        model, *nodes = nnx.merge(self._graphdef, self._fixed, moving, copy=True)
        leaves = list(self._leaves)
        for place, node in zip(self._places, nodes, strict=True):
            leaves[place] = node
        args, kwargs = jax.tree.unflatten(self._tree, leaves)
        layers = layers_of(model)
        with _marked(layers, one_step, book), _holding(layers, held):
            y = model(x, *args, **kwargs)
            copies = {
                (path, kind): {SAMPLES: _value(layers[path], SAMPLES)}
                for path, kind in held
                if kind == SAMPLES
            }
        graphdef, _, after = _split((model, *nodes))
        made, tree = jax.tree.flatten(after)
        return y, made, copies, (graphdef, tree) == (self._graphdef, self._values_tree)

    def write(self, values: list[Any]) -> None:
        """Updates the model in place, where a value is another one."""
        if any(new is not old for new, old in zip(values, self.values, strict=True)):
            nnx.update(self._nodes, jax.tree.unflatten(self._values_tree, values))

    def in_place(self, x: Any) -> Any:
        """Calls the model itself."""
        return self.model(x, *self._args, **self._kwargs)

    def again(self) -> "PureCall":
        """Returns the call as the model is now."""
        return PureCall(self.model, self._args, self._kwargs)

    @property
    def on_mesh(self) -> bool:
        """Whether arrays of the model lie on several devices, and none is traced."""
        return lie_on_mesh([*jax.tree.leaves(self._fixed), *self.values])


@contextlib.contextmanager
def holding(model: Any, held: Held) -> Iterator[None]:
    """Puts what is held into a model, in place, and takes it away in the end."""
    with _holding(layers_of(model), held):
        yield


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Says what to do where a model of another trace would be changed."""
    try:
        yield
    except errors.TraceContextError as error:
        _nnx_checks.refuse_trace(error)


def lie_on_mesh(leaves: list[Any]) -> bool:
    """Returns whether some arrays lie on several devices, and none is traced."""
    shardings = [getattr(x, "sharding", None) for x in leaves if isinstance(x, jax.Array)]
    return not any_traced(leaves) and any(
        isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
        for sharding in shardings
    )


def any_traced(leaves: list[Any]) -> bool:
    """Returns whether a transform traces some of the arrays."""
    return any(isinstance(x, jax.core.Tracer) for x in leaves)


def _value(layer: HoldingLayer, name: str) -> Any:
    return getattr(layer, name).get_value()


def _split(nodes: Any) -> Any:
    return nnx.split(nodes, (nnx.Param, HeldMask), ...)


def _is_node(leaf: Any) -> bool:
    return isinstance(leaf, (nnx.Pytree, nnx.Variable))


def _name(path: Any) -> str:
    names = [str(getattr(part, "key", getattr(part, "idx", ""))) for part in path]
    return "/".join(name for name in names[1:] if name)


@contextlib.contextmanager
def _marked(
    layers: Mapping[Path, HoldingLayer], one_step: bool, book: Book | None
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for path, layer in layers.items():
            marks: dict[str, Any] = {"_one_step": one_step}
            if book is not None:
                marks["_recorder"] = Recorder(book, path, layer)
            stack.enter_context(_attributes(layer, marks))
        yield


@contextlib.contextmanager
def _holding(
    layers: Mapping[Path, HoldingLayer],
    held: Mapping[tuple[Path, str], dict[str, Any]],
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for (path, kind), values in held.items():
            variables = {name: VARIABLES[kind](value) for name, value in values.items()}
            stack.enter_context(_attributes(layers[path], variables))
        yield


@contextlib.contextmanager
def _attributes(layer: HoldingLayer, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Sets attributes of a layer, and leaves it as it was."""
    before = {name: vars(layer)[name] for name in attributes if name in vars(layer)}
    with in_place():
        for name, value in attributes.items():
            setattr(layer, name, value)
    try:
        yield
    finally:
        with in_place():
            for name in attributes:
                if name in before:
                    value = before[name]
                    setattr(layer, name, nnx.data(None) if value is None else value)
                elif name in vars(layer):
                    delattr(layer, name)
