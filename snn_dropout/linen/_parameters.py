"""Bound linen modules, called with other parameters than their own."""

from collections.abc import Callable
from typing import Any

import jax
from flax.core import Scope
from flax.core.scope import subtract_filters

from snn_dropout.linen._held import check_trace
from snn_dropout.linen._scopes import copies_of, topmost, variables_of
from snn_dropout.linen._surroundings import stand_in
from snn_dropout.linen.state import Leaves, from_leaves, to_leaves

# The flag of a scope that names the parameters, by their paths, which have lost
# connections already. Flax hands flags down to the scopes below.
LOST = "snn_dropout_lost"

Change = Callable[[list[Scope]], tuple[Leaves, frozenset[tuple[str, ...]]]]


def with_parameters(
    change: Change,
    function: Callable[..., Any],
    scopes: list[Scope],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls a function of scopes with other parameters than those that they hold.

    Everything else is theirs: keys and their counters, names, and what is written to
    other collections, which is left in the scopes.

    Args:
      change: takes the topmost scopes, and returns all of their parameters, changed, as
        :func:`parameters_of` does; and the paths of those that lost connections.
      function: takes scopes, then the arguments.
      scopes: where it reads and writes.
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      The function's result.
    """
    tops = topmost(scopes)
    parameters, lost = change(tops)
    copies = {
        top: stand_in(
            Scope(
                variables_of(top, top.mutable, False)
                | {"params": from_leaves(_below(parameters, number))},
                name=top.name,
                mutable=subtract_filters(top.mutable, "params"),
                path=top.path,
                debug_path=top.debug_path,
                flags={**top.flags, LOST: top.flags.get(LOST, frozenset()) | lost},
            ),
            top,
        )
        for number, top in enumerate(tops)
    }
    result = function(copies_of(scopes, copies), *args, **kwargs)
    for top, copy in copies.items():
        _write(top, copy)
    return result


def look(
    see: Callable[[list[Scope]], Any],
    _: Callable[..., Any],
    scopes: list[Scope],
    /,
) -> None:
    """Shows the topmost scopes, and calls nothing."""
    see(topmost(scopes))


def parameters_of(tops: list[Scope]) -> Leaves:
    """Returns the parameters of scopes, by the number of the scope and their path."""
    return {
        (number, *path): leaf
        for number, top in enumerate(tops)
        for path, leaf in to_leaves(top.variables().get("params", {})).items()
    }


def _below(leaves: Leaves, number: int) -> Leaves:
    return {path[1:]: leaf for path, leaf in leaves.items() if path[0] == number}


def _write(scope: Scope, copy: Scope) -> None:
    for collection, branch in copy.variables().items():
        if not copy.is_mutable_collection(collection):
            continue
        before = scope.variables().get(collection, {})
        for name, value in branch.items():
            if name not in before or not _same(before[name], value):
                check_trace(scope, f"The collection '{collection}'")
                scope.put_variable(collection, name, value)


def _same(before: Any, after: Any) -> bool:
    structures: list[Any] = list(map(jax.tree.structure, (before, after)))
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=False)
    return structures[0] == structures[1] and all(old is new for old, new in pairs)
