"""One step of bound linen modules as a pure function of their variables."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import Scope, freeze, unfreeze
from flax.core.scope import CollectionFilter, LazyRng, in_filter

from snn_dropout._checks.time import check_takes_one_step, check_unchanged
from snn_dropout.linen._held import check_trace
from snn_dropout.linen._surroundings import (
    SIMULATION,
    inside,
    is_note,
    naming_what_is_hidden,
)
from snn_dropout.linen.state import Leaves, State, from_leaves, path_name, to_leaves

# The collection that `sow` writes; it grows at each call, so it can not be carried.
SOWN = "intermediates"

# The flag of a scope that is handed one step of a simulation. Flax hands flags down to the
# scopes below, through lifted transforms too, and traces `nn.jit` anew for each.
ONE_STEP = "snn_dropout_one_step"


class PureStep:
    """A function of scopes, run on copies of them with variables of our choice.

    A copy has the path, the keys and the counters of the original, so names and
    random draws are the same; yet it may write what the original may not, and
    what it writes stays with it. A leaf is known by the number of the topmost
    scope that it lies below, its collection and its path.

    Args:
      function: takes a list of scopes, then any arguments.
      scopes: the scopes to copy; one may lie below another.
      one_step: whether the function is handed one step ``[N, ...]``, where layers in
        mode ``'m'`` would take the batch for time.
    """

    def __init__(
        self, function: Callable[..., Any], scopes: list[Scope], *, one_step: bool = True
    ) -> None:
        self._function = function
        self._one_step = one_step
        self._scopes = scopes
        self._tops = topmost(scopes)
        self._counters = [_copied(scope.rng_counters) for scope in scopes]

    @property
    def mutable(self) -> CollectionFilter:
        """The collections that the scopes may write."""
        return self._scopes[0].mutable

    def leaves(self, collections: CollectionFilter) -> Leaves:
        """Returns the leaves that the scopes hold now, of the collections asked for."""
        return _leaves(self._tops, collections)

    def name(self, path: tuple[Any, ...]) -> str:
        """Returns where a leaf is in the whole of the variables, in words."""
        number, collection, *below = path
        return path_name((collection, *self._tops[number].path, *below))

    def __call__(
        self,
        leaves: Leaves,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        mutable: CollectionFilter,
        forgotten: CollectionFilter = SOWN,
        initializing: bool = False,
        time_step: jax.Array | None = None,
    ) -> tuple[Any, Leaves]:
        """Runs the function once.

        Args:
          leaves: replace the leaves that the scopes hold in mutable collections.
          args: the arguments of the function, after the scopes.
          kwargs: its keyword arguments.
          mutable: the collections that the function may write.
          forgotten: the collections that start empty, but for ``leaves``.
          initializing: whether modules are told that ``init`` runs.
          time_step: if given, it is folded into every key.

        Returns:
          The function's result, and the leaves of the mutable collections after it.

        Raises:
          RuntimeError: the function wrote to a scope that it was not given.
        """
        for scope, counters in zip(self._scopes, self._counters, strict=True):
            _restore(scope.rng_counters, counters)
        tops = {
            scope: Scope(
                variables_of(scope, mutable, forgotten) | _below(leaves, index),
                name=scope.name,
                mutable=mutable,
                path=scope.path,
                # What is lifted around a whole simulation has nothing to do with its steps.
                debug_path=inside(SIMULATION, scope.debug_path),
                flags={
                    **scope.flags,
                    "initializing": initializing,
                    ONE_STEP: self._one_step,
                },
            )
            for index, scope in enumerate(self._tops)
        }
        copies = copies_of(self._scopes, tops, time_step)
        outside = self._outside()
        with naming_what_is_hidden(mutable):
            result = self._function(copies, *args, **kwargs)
        check_unchanged(outside, self._outside())
        return result, _leaves(list(tops.values()), mutable)

    def write(self, leaves: Leaves) -> None:
        """Writes leaves to the original scopes, where their collection is mutable.

        Raises:
          RuntimeError: they would leak out of a raw JAX transform.
        """
        for index, scope in enumerate(self._tops):
            for collection, branch in _below(leaves, index).items():
                if scope.is_mutable_collection(collection):
                    check_trace(scope, f"The collection '{collection}'")
                    for name, value in branch.items():
                        scope.put_variable(collection, name, value)

    def _outside(self) -> Leaves:
        return _leaves(dict.fromkeys(scope.root for scope in self._scopes), True)


def in_place(
    one_step: bool,
    function: Callable[..., Any],
    scopes: list[Scope],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls a function of scopes, as it is, but for their flag.

    Args:
      one_step: whether it is handed one step ``[N, ...]``.
      function: takes the scopes, then the arguments.
      scopes: where it reads and writes.
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      The function's result.
    """
    tops = {scope: scope.rewound() for scope in topmost(scopes)}
    for copy in tops.values():
        copy.flags = freeze({**copy.flags, ONE_STEP: one_step})
    with naming_what_is_hidden(scopes[0].mutable):
        return function(copies_of(scopes, tops), *args, **kwargs)


def bind(module: nn.Module, scope: Scope) -> None:
    """Gives a module, and those below it, the scope of the module that it is a field of."""
    # `nn.share_scope` would leave the modules below with the keys of a path that has
    # this field in it: other parameters and masks than those of the bare module.
    before = module.scope
    object.__setattr__(module, "scope", scope)
    fields = [getattr(module, field.name) for field in dataclasses.fields(module)]
    for child in jax.tree.leaves(fields):
        if isinstance(child, nn.Module) and child.scope and child.scope.parent == before:
            assert child.name is not None
            bind(child, scope.push(child.name, reuse=True))


def check_whole(module: Any) -> None:
    """Raises if a module that takes all steps is handed one step of a simulation."""
    if module.scope is not None and module.scope.flags.get(ONE_STEP, False):
        check_takes_one_step(type(module).__name__, module.path)


def variables_of(
    scope: Scope, mutable: CollectionFilter, forgotten: CollectionFilter
) -> dict[str, Any]:
    """Returns the variables of a scope, copies of those that may be written."""
    return {
        name: unfreeze(dict(collection)) if in_filter(mutable, name) else collection
        for name, collection in scope.variables().items()
        if not in_filter(forgotten, name)
    }


def _leaves(scopes: Iterable[Scope], collections: CollectionFilter) -> Leaves:
    return {
        (index, collection, *path): leaf
        for index, scope in enumerate(scopes)
        for collection, branch in scope.variables().items()
        if in_filter(collections, collection)
        for path, leaf in to_leaves(branch).items()
    }


def _below(leaves: Leaves, index: int) -> State:
    return from_leaves(
        {path[1:]: leaf for path, leaf in leaves.items() if path[0] == index}
    )


def topmost(scopes: list[Scope]) -> list[Scope]:
    """Returns the scopes that lie below no other one of them."""
    listed = set(scopes)
    return [
        scope
        for scope in dict.fromkeys(scopes)
        if not any(ancestor in listed for ancestor in _ancestors(scope))
    ]


def copies_of(
    scopes: list[Scope], tops: Mapping[Scope, Scope], time_step: jax.Array | None = None
) -> list[Scope]:
    """Returns copies of scopes: those of the topmost are given, the rest lie below."""
    made = dict(tops)

    def copied(scope: Scope) -> Scope:
        if scope not in made:
            assert scope.parent is not None
            made[scope] = copied(scope.parent).push(scope.name, reuse=True)
        copy = made[scope]
        # A shared scope has keys and counters that are not those of its path.
        copy.rngs = _folded(scope.rngs, time_step)
        copy.rng_counters = scope.rng_counters
        return copy

    return [copied(scope) for scope in scopes]


def _ancestors(scope: Scope) -> Iterator[Scope]:
    while scope.parent is not None:
        scope = scope.parent
        yield scope


def _folded(rngs: Mapping[str, LazyRng], time_step: jax.Array | None) -> dict[str, LazyRng]:
    if time_step is None:
        return dict(rngs)
    return {
        name: LazyRng(jax.random.fold_in(lazy.rng, time_step), lazy.suffix)
        for name, lazy in rngs.items()
    }


def _copied(counters: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        key: _copied(value) if isinstance(value, dict) else value
        for key, value in counters.items()
    }


def _restore(counters: dict[Any, Any], saved: Mapping[Any, Any]) -> None:
    for key, value in counters.items():
        if is_note(key):
            continue
        if isinstance(value, dict):
            _restore(value, saved.get(key, {}))
        else:
            counters[key] = saved.get(key, 0)
