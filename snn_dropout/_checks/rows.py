"""Checks of what restarts single examples, and their errors."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snn_dropout._checks.masks import check_is_array


def check_rows(done: Any) -> None:
    """Raises unless ``done`` is a bool vector."""
    check_is_array("done", done)
    if done.dtype != jnp.bool_ or done.ndim != 1:
        raise ValueError(
            f"`done` must be a bool array [N], one element an example, but got "
            f"{done.dtype}{list(done.shape)}; write for example `done = t >= length`, and "
            f"`done[None]` for one example, whose state keeps a batch axis of 1."
        )


def check_alike(where: str, old: Any, new: Any) -> None:
    """Raises unless ``old`` and ``new`` are arrays of one shape and dtype."""
    check_is_array(f"state{where}", old)
    check_is_array(f"fresh{where}", new)
    if old.shape != new.shape or old.dtype != new.dtype:
        raise ValueError(
            f"`state` and `fresh` must agree at {where}, but have {old.dtype}"
            f"{list(old.shape)} and {new.dtype}{list(new.shape)}; make `fresh` with "
            f"`init_state` for the same batch."
        )


def check_axes(axis: Any, state: Any) -> list[int | None]:
    """Returns the batch axis of each leaf of ``state``, None where none is given.

    Raises unless ``axis`` is None, a whole number, or a tree of them that fits.
    """
    try:
        given = jax.tree.leaves(
            jax.tree.broadcast(axis, state, is_leaf=_is_none), is_leaf=_is_none
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"`axis` must be a whole number, or a tree of them that is a prefix of "
            f"`state`, one for each branch, but got {axis!r} for branches "
            f"{_branches(state)}; write for example `axis=1`, or "
            f"`axis={{'blocks': 1, 'last': 0}}`."
        ) from error
    for one in given:
        if isinstance(one, bool) or not isinstance(one, int | None):
            raise TypeError(
                f"`axis` must be a whole number, or a tree of them, but got {one!r}; write "
                f"for example `axis=1`."
            )
    return given


def check_batch_axis(where: str, shape: Sequence[Any], rows: Any, given: int | None) -> int:
    """Returns the batch axis of a leaf, or raises unless it is one, and certain.

    Args:
      where: the leaf.
      shape: its shape.
      rows: the number of examples.
      given: the axis that the caller named; None if the caller did not.
    """
    possible = [axis for axis, length in enumerate(shape) if length == rows]
    axis = 0 if given is None else given
    if not -len(shape) <= axis < len(shape) or axis % len(shape) not in possible:
        remedy = (
            "pass `done` for the whole batch, and leave leaves without a batch axis out of "
            "`state`."
        )
        if possible:
            other = possible[0]
            remedy = (
                f"its axis {other} has as many. Write `axis={other}`, or one for each "
                f"branch, `axis={{'blocks': {other}, 'last': 0}}`: blocks that `nn.scan` "
                f"stacks over depth are [L, N, ...]."
            )
        raise ValueError(
            f"`done` chooses rows of the batch axis {axis}, but the leaf at {where} has "
            f"shape {tuple(shape)} where `done` has {rows} elements; {remedy}"
        )
    certain = given is not None or len(possible) == 1 or rows == 1
    if not certain:
        raise ValueError(
            f"The batch axis must be certain, but the leaf at {where} has shape "
            f"{tuple(shape)} where `done` has {rows} elements: it could be any of "
            f"{possible}. Write `axis=0` if examples come first, [N, ...], `axis=1` for "
            f"blocks that `nn.scan` stacks over depth, [L, N, ...], or one for each "
            f"branch, `axis={{'blocks': 1, 'last': 0}}`."
        )
    return axis % len(shape)


def check_row_is_own(
    where: str, shape: Sequence[Any], rows: Any, given: int | None
) -> None:
    """Raises if a mask, or its probability, is one row for all examples.

    Args: as for :func:`check_batch_axis`.
    """
    axis = 0 if given is None else given
    if rows == 1 or not -len(shape) <= axis < len(shape) or shape[axis] != 1:
        return
    remedy = "Leave its branch out of `state` and `fresh`, and put it back into the result."
    if axis == 0:
        remedy = (
            "Keep it for all, and restart the others: `jax.tree.map(lambda old, new: old "
            "if not old.ndim or 1 == len(old) < len(done) else reset_rows(done, old, new, "
            "axis=0), state, fresh)`."
        )
        if rows in shape[1:2]:
            remedy += (
                " If the state is one of blocks that `nn.scan` stacks over depth, [L, N, "
                "...], write `axis=1`."
            )
    raise ValueError(
        f"The leaf at {where} has shape {tuple(shape)} where `done` has {rows} elements: a "
        f"mask that all examples share (`broadcast_dims`, `DropConnect`) can not be "
        f"restarted row by row. {remedy}"
    )


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _branches(state: Any) -> Any:
    return sorted(state) if isinstance(state, Mapping) else jax.tree.structure(state)
