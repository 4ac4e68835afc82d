"""What a layer holds over a simulation, and how a dry run learns what that would be.

A layer knows nothing of the model around it. Whoever runs a simulation marks the layers
of a copy of the model, by attributes that only copies have: a dry run gives each a
``Recorder``, steps of a simulation say that they are single steps.
"""

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout._checks.attributes import CHECKS
from snn_dropout._checks.state import check_one_shape, check_one_step
from snn_dropout.functional._sharding import sharding_of

Path = tuple[str | int, ...]
KeyOf = Callable[[str], jax.Array]
Values = dict[str, Any]
Make = Callable[[Any, KeyOf], Values]

MASKS, SAMPLES = "masks", "samples"
MASK_NAMES = ("mask", "mask_p", "kernel_mask", "bias_mask")


class HeldMask(nnx.Variable[jax.Array]):
    """A mask that is held over a simulation, or the probability that it was drawn with.

    ``y[t] = where(mask, x[t], 0) / (1 - mask_p)``

    No ``nnx.Param``: nothing differentiates or optimizes it. The layers hold ``mask``
    (bool ``[N, ...]``) and ``mask_p`` (float32 ``[N, 1, ...]``, with the lengths of a ``p``
    that is one a unit), or ``kernel_mask`` (uint32, one bit a connection, ``[N, ...]``) and
    ``bias_mask`` (bool ``[N, O]``); each attribute is None where there is none.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.Dropout(0.5)
      >>> sdn.init_masks(layer, jnp.ones((2, 3)), key=jax.random.key(0))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer, sdn.HeldMask)))
      {'mask': (2, 3), 'mask_p': (2, 1)}

    Args:
      value: the array.
      **metadata: as for ``nnx.Variable``.
    """


class NeuronCopies(nnx.Variable[Any]):
    """The state of the neurons in sampled inference, a copy a sample: ``[N, S, ...]``."""


VARIABLES: Mapping[str, type[nnx.Variable[Any]]] = {MASKS: HeldMask, SAMPLES: NeuronCopies}


class HoldingLayer(nnx.Module):
    """What the layers share: checked attributes, and the marks that copies of them get."""

    _recorder: "Recorder | None" = None
    _one_step: bool = False
    _always_drops: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, checked as the argument is, also by ``set_attributes``."""
        if name in CHECKS:
            CHECKS[name](value)
        super().__setattr__(name, value)

    def _find(self, kind: str, names: tuple[str, ...], shape: Any, make: Make) -> Values:
        """Returns what is held; in a dry run what would be; nothing where there is none."""
        if self._recorder is not None:
            return self._recorder.wish(self, kind, shape, make)
        # An attribute may have been popped.
        variables = {name: getattr(self, name, None) for name in names}
        return {
            name: variable.get_value()
            for name, variable in variables.items()
            if variable is not None
        }

    @abc.abstractmethod
    def _renewed(self, key_of: KeyOf) -> Values:
        """Returns other values for all that the layer holds."""

    def _check_whole(self) -> None:
        if self._one_step:
            _nnx_checks.refuse_sequence(type(self).__name__)

    def _note(self, x: jax.Array, step_mode: str) -> None:
        if self._recorder is not None:
            self._recorder.note(self, x.shape, step_mode)

    def _set_view(self, deterministic: Any) -> None:
        if deterministic is not None:
            self.deterministic = deterministic


@dataclass(frozen=True)
class Wish:
    """What a layer would hold: its shape, and the function that makes it.

    The function is given the layer anew: the copy that a dry run called is full of tracers.
    """

    shape: tuple[int, ...]
    make: Make


@dataclass
class Book:
    """What a dry run found, by the path of the layer and the kind of what it holds."""

    wishes: dict[tuple[Path, str], Wish] = field(default_factory=dict)
    sequences: dict[tuple[int, int], str] = field(default_factory=dict)
    single_steps: dict[tuple[int, ...], str] = field(default_factory=dict)


class Recorder:
    """Writes down for one layer what it would hold.

    Each dry run has its own: a transform inside of the model traces anew for it.
    """

    def __init__(self, book: Book, path: Path, layer: HoldingLayer) -> None:
        self._book, self._path = book, path
        self._axes = _stream_axes(layer)

    def wish(self, layer: HoldingLayer, kind: str, shape: Any, make: Make) -> Values:
        """Notes what a layer would hold, and returns something of that shape."""
        if _stream_axes(layer) != self._axes:
            _nnx_checks.refuse_mapped(self._where(layer))
        known = self._book.wishes.setdefault((self._path, kind), Wish(tuple(shape), make))
        check_one_shape(self._where(layer), tuple(shape), known.shape)
        return make(layer, lambda name: jax.random.key(0))

    def note(self, layer: HoldingLayer, shape: tuple[int, ...], step_mode: str) -> None:
        """Notes what a layer is given, and raises where steps and sequences are mixed."""
        book = self._book
        if step_mode == "m":
            book.sequences[shape[0], shape[1] if len(shape) > 1 else 0] = self._where(layer)
        else:
            book.single_steps[shape] = self._where(layer)
        for step, where in book.single_steps.items():
            for (steps, examples), whole in book.sequences.items():
                check_one_step(where, step, steps, examples, whole)

    def _where(self, layer: HoldingLayer) -> str:
        return "/".join(map(str, self._path)) or type(layer).__name__


def layers_of(model: Any) -> dict[Path, HoldingLayer]:
    """Returns the layers of this package in a model, by their path."""
    modules: Iterator[tuple[Any, Any]] = nnx.iter_modules(model)
    return {path: module for path, module in modules if isinstance(module, HoldingLayer)}


def names_of(model: Any, path: Path) -> tuple[str, ...]:
    """Returns the names in a path as linen has them: ``blocks_0`` is an item of a list."""
    names: list[str] = []
    node = model
    for part in path:
        contained = isinstance(node, (nnx.List, nnx.Dict, list, tuple, dict))
        if contained and names:
            names[-1] = f"{names[-1]}_{part}"
        else:
            names.append(str(part))
        node = node[part] if contained else getattr(node, str(part), None)
    return tuple(names)


def held_by(layer: HoldingLayer) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """Yields what a layer holds, by the name of the attribute."""
    for name in (*MASK_NAMES, SAMPLES):
        variable = getattr(layer, name, None)
        if isinstance(variable, nnx.Variable):
            yield name, variable


def like(x: jax.Array) -> Any:
    """Returns the shape and the sharding of an array, without the array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x))


def fresh_key(layer: Any, rngs: Any, purpose: str) -> jax.Array:
    """Takes a key from what a call was given, else from the stream of the layer.

    Raises:
      TypeError, ValueError: there is neither.
    """
    source = layer.rngs if rngs is None else rngs
    if isinstance(source, nnx.Rngs):
        source = source[layer.rng_collection]
    if isinstance(source, nnx.RngStream):
        key: jax.Array = source()
        return key
    if source is None:
        _nnx_checks.refuse_no_stream(type(layer).__name__, purpose)
    _nnx_checks.check_key("rngs", source)
    given: jax.Array = source
    return given


def _stream_axes(layer: HoldingLayer) -> tuple[int, ...] | None:
    stream = getattr(layer, "rngs", None)
    return None if stream is None else tuple(stream.key.get_value().shape)
