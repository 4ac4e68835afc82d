"""Argument checks of parameters that lose connections, and their errors."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

_EXAMPLE = "`filter=lambda path: path[-1] == 'kernel'`"


def check_filter(choose: Any) -> None:
    """Raises unless the filter is a function."""
    if isinstance(choose, type) or not callable(choose):
        raise TypeError(
            f"`filter` must be a function of the path of a parameter, a tuple of names, "
            f"but got {choose!r}; write for example {_EXAMPLE}."
        )


def check_choice(path: Sequence[str], choice: Any) -> None:
    """Raises unless the filter answered yes or no."""
    if not isinstance(choice, bool | np.bool_):
        raise TypeError(
            f"`filter` must return True or False for the path of a parameter, but "
            f"returned {choice!r} for {tuple(path)}; write for example {_EXAMPLE}."
        )


def check_any_chosen(chosen: bool, paths: Sequence[Sequence[str]]) -> None:
    """Raises if a filter chose nothing."""
    if chosen:
        return
    if not paths:
        raise ValueError(
            "`filter` must choose a parameter of the module, but the module has none "
            "here; wrap one that has, and pass its variables, `{'params': ...}`, as "
            "`init` makes them."
        )
    there = ", ".join("/".join(path) for path in paths)
    raise ValueError(
        f"`filter` must choose a parameter of the module, but chose none of {there}; it "
        f"is given each path as a tuple of names: write for example `filter=lambda path: "
        f"path == {tuple(paths[0])!r}`."
    )


def check_is_float(path: Sequence[str], parameter: Any) -> None:
    """Raises unless a parameter that was chosen has connections to lose."""
    if not jnp.issubdtype(parameter.dtype, jnp.inexact):
        raise TypeError(
            f"`filter` must choose parameters of real or complex numbers, which are "
            f"scaled by 1 / (1 - p), but chose {'/'.join(path)} of {parameter.dtype}; "
            f"leave it out, `filter=lambda path: ... and path != {tuple(path)!r}`."
        )


def check_place(where: str, found: Any, collection: str) -> None:
    """Raises if something else lies where the mask of a parameter would."""
    if found is not None and not hasattr(found, "keys"):
        raise ValueError(
            f"The place {where} must be free for the mask of DropConnect, but there is a "
            f"leaf of something else; give DropConnect a collection of its own, "
            f"`state_collection='masks'`, say, in place of '{collection}'."
        )


def refuse_inner_layer(kind: str) -> None:
    """Raises: a module that loses connections itself is to lose them again."""
    remedy = (
        "of two probabilities p and q, write `p=1 - (1 - p) * (1 - q)`"
        if kind == "DropConnect"
        else "wrap `nn.Dense(out_features)`, whose parameters are the same"
    )
    raise TypeError(
        f"`module` must not lose connections itself, but got a {kind}: they would be lost "
        f"twice; use one of the two, or {remedy}."
    )


def refuse_second_wrapper(where: str, other: str) -> None:
    """Raises: one module lies in two wrappers."""
    raise ValueError(
        f"A module must lie in one DropConnect, but that of {where} is also that of "
        f"{other}: its parameters would have one mask and two probabilities. Make one "
        f"wrapper and call it in both places, or wrap a module of its own in each."
    )


def check_not_lost(where: str, paths: Sequence[Sequence[str]], lost: Any) -> None:
    """Raises if parameters that lose connections have lost some already.

    Args:
      where: who is to lose them.
      paths: the paths of the parameters.
      lost: the paths of all that have lost connections.
    """
    twice = [path for path in paths if tuple(path) in lost]
    if twice:
        raise ValueError(
            f"A parameter must lose connections once, but {'/'.join(twice[0])} of {where} "
            f"has lost some already to a DropConnect around it; leave it out of the "
            f"`filter` of one of the two, `filter=lambda path: ... and path[-1] != "
            f"{twice[0][-1]!r}`, or use one alone."
        )
