"""What a layer can see of where it is called: lifted transforms, and other calls.

Flax documents none of what is read here, so all of it is in this file, and looked for
when the package is imported (CONTRIBUTING.md lists it beside what other files use):

* ``Scope.rngs`` holds the key of a stream beside the path of the scope;
* ``Scope.debug_path`` names the lifted transforms around a scope, ``'scan(cell)'``;
* a lifted scope holds the variables and keys of the transform, as tracers of it or,
  where they are the same for all, as they were outside;
* a tracer knows its trace, and one of ``vmap`` the value that it maps over;
* ``Scope.rng_counters`` is one dict for a layer in all of one ``apply``, whatever
  transforms it is called through, and however often they trace it;
* its root is another scope in each trace, and the same for all modules in one: notes
  on it are shared by the layers of a model that are called together;
* ``nn.jit`` hashes the fields of a module, and asks it first for ``__fn_or_cls__``.
"""

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax
import jax
from flax import errors
from flax.core import Scope
from flax.core.scope import CollectionFilter, LazyRng, in_filter
from jax.extend import core

from snn_dropout._checks.layers import check_hashed
from snn_dropout._checks.time import hidden_collection

SIMULATION = "simulation"

_MASK = "snn_dropout mask"
_DRAWN, _FOUND = 1, 2
_SEQUENCES = "snn_dropout sequences"
_STEPS = "snn_dropout steps"
_WRAPPERS = "snn_dropout wrappers"
_ORIGINAL = "snn_dropout original"


def check_flax() -> None:
    """Raises unless Flax has what this package reads of its inside.

    Raises:
      ImportError: it has not: here, and not in somebody's training loop.
    """
    of_scope = (
        "debug_path flags mutable name parent path push put_variable rewound rng_counters "
        "rngs root trace_level variables"
    )
    wanted = {
        "flax.core.Scope": (of_scope, dir(Scope({}))),
        "flax.core.Scope(...)": (
            "variables rngs name mutable path debug_path flags",
            inspect.signature(Scope).parameters,
        ),
        "flax.core.scope.LazyRng": ("rng suffix", LazyRng.__annotations__),
    }
    for where, (names, there) in wanted.items():
        if missing := [name for name in names.split() if name not in there]:
            raise ImportError(
                f"snn_dropout reads {', '.join(missing)} of `{where}`, which Flax "
                f"{flax.__version__} does not have; install a version of Flax that this "
                f"one was tested with, or a newer snn_dropout."
            )


class SaysWhatIsNotHashed:
    """A module whose ``p`` may be an array, which ``nn.jit`` has no words for."""

    def __getattr__(self, name: str) -> Any:
        if name == "__fn_or_cls__":
            check_hashed(type(self).__name__, self.__dict__.get("p"))
        above: Any = super()
        return above.__getattr__(name)


def transforms_around(scope: Scope) -> tuple[str, ...]:
    """Returns the names of the lifted transforms around a scope, the innermost first."""
    names = []
    for part in reversed(scope.debug_path):
        while match := re.fullmatch(r"(\w+)\((.*)\)", part):
            names.append(match[1])
            part = match[2]
    return tuple(names)


@contextlib.contextmanager
def naming_what_is_hidden(mutable: CollectionFilter) -> Iterator[None]:
    """Says of Flax's errors about a collection that may be written who hides it.

    Raises:
      RuntimeError: a lifted transform does not hand it on.
    """
    try:
        yield
    except (
        errors.ScopeCollectionNotFound,
        errors.ScopeVariableNotFoundError,
        errors.ModifyScopeVariableError,
    ) as error:
        collection, transform = _hidden(str(error))
        if transform is None or not in_filter(mutable, collection):
            raise
        message = hidden_collection(collection, transform, str(error))
        raise RuntimeError(message) from error


def inside(transform: str, debug_path: Sequence[str]) -> tuple[str, ...]:
    """Returns the ``debug_path`` of a scope that a transform makes of another one."""
    *above, last = debug_path or ("",)
    return (*above, f"{transform}({last})")


def varies(value: Any) -> bool:
    """Returns whether a value is one of those that the innermost transform goes through.

    A ``vmap`` inside of that transform is looked through.
    """
    with core.take_current_trace() as current:
        trace: Any = current
    while hasattr(trace, "axis_data"):
        trace = trace.parent_trace
    while hasattr(value, "batch_dim"):
        value = value.val
    return getattr(value, "_trace", None) is trace


def slices_parameters(scope: Scope) -> bool | None:
    """Returns whether a lifted scan goes through parameters: layers, and no time steps.

    Args:
      scope: one right below the scan, but for ``nn.vmap``.

    Returns:
      None where there are no parameters.
    """
    leaves = jax.tree.leaves(root_of(scope).variables().get("params", {}))
    return any(map(varies, leaves)) if leaves else None


def key_and_path(scope: Scope, stream: str) -> tuple[jax.Array, tuple[str, ...]]:
    """Returns the key of a stream, and the names that are to be folded into it."""
    lazy = scope.rngs[stream]
    return lazy.rng, tuple(map(str, lazy.suffix))


def note_draw(scope: Scope, name: str, shape: tuple[int, ...]) -> None:
    """Notes that the layer of a scope drew a mask in this ``apply``."""
    _counters(scope)[_MASK, name, shape] = _DRAWN
    _drawn_here(scope).add((scope.path, name))


def note_find(scope: Scope, name: str, shape: tuple[int, ...]) -> None:
    """Notes that a mask was there, be it that another trace of the layer drew it."""
    if (scope.path, name) not in _drawn_here(scope):
        _counters(scope)[_MASK, name, shape] = _FOUND


def shapes_of_masks(scope: Scope, name: str) -> list[tuple[int, ...]]:
    """Returns the shapes of the masks that the layer of a scope had in this ``apply``."""
    return [key[2] for key in _counters(scope) if is_note(key) and key[1] == name]


def drawn_in_vain(scope: Scope, name: str) -> bool:
    """Returns whether the layer of a scope drew a mask that no later trace found."""
    counters = _counters(scope)
    return any(counters[_MASK, name, s] == _DRAWN for s in shapes_of_masks(scope, name))


def is_note(key: Any) -> bool:
    """Returns whether a key of ``rng_counters`` is of this file."""
    return isinstance(key, tuple) and key[0] == _MASK


def sequences(scope: Scope) -> dict[tuple[int, int], str]:
    """Returns who ran over whole sequences beside a scope, by their ``(T, N)``."""
    found: dict[tuple[int, int], str] = vars(root_of(scope)).setdefault(_SEQUENCES, {})
    return found


def single_steps(scope: Scope) -> dict[tuple[int, ...], str]:
    """Returns who drew masks for single steps beside a scope, by the shapes of those."""
    found: dict[tuple[int, ...], str] = vars(root_of(scope)).setdefault(_STEPS, {})
    return found


def wrappers(scope: Scope) -> list[tuple[Any, str]]:
    """Returns the modules that lose connections in this call of a model, and where."""
    found: list[tuple[Any, str]] = vars(root_of(scope)).setdefault(_WRAPPERS, [])
    return found


def stand_in(copy: Scope, scope: Scope) -> Scope:
    """Marks a scope as a copy, so that notes are made beside the original."""
    vars(copy)[_ORIGINAL] = scope
    return copy


def root_of(scope: Scope) -> Scope:
    """Returns the root of a scope, or that of the scope which its root stands for."""
    root = scope.root
    while _ORIGINAL in vars(root):
        root = vars(root)[_ORIGINAL].root
    return root


def _counters(scope: Scope) -> dict[Any, int]:
    # With numbers for values, as Flax expects, and keys that hash alike in each `apply`.
    counters: dict[Any, Any] = scope.rng_counters
    return counters


def _drawn_here(scope: Scope) -> set[Any]:
    # A transform makes a root of its own each time that it traces its function.
    here: set[Any] = vars(root_of(scope)).setdefault(_MASK, set())
    return here


def _hidden(error: str) -> tuple[str, str | None]:
    """Reads the collection, and the lifted transform that hides it, in words of Flax.

    Only those inside of a simulation count, and those that hand on what they are told.
    """
    collection = re.search(r'collection "([^"]+)"', error)
    path = re.search(r'in "(/[^"]*)"', error)
    transforms: list[str] = []
    for part in path[1].split("/") if path else ():
        names = re.findall(r"(\w+)\(", part)
        if SIMULATION in names:
            transforms, names = [], names[: names.index(SIMULATION)]
        transforms += names
    hiding = [name for name in transforms if name in ("scan", "vmap")]
    return collection[1] if collection else "", hiding[-1] if hiding else None


check_flax()
