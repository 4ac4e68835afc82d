"""Argument checks of probabilities, arrays and masks, and their errors."""

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def check_probability(p: Any) -> None:
    """Raises unless ``p`` is a static Python number in [0, 1]."""
    if isinstance(p, jax.core.Tracer):
        raise TypeError(
            "`p` must be a static Python number, but it is traced; close over it or "
            "mark it static (`static_argnames`), and build another layer for another `p`."
        )
    if isinstance(p, bool) or not isinstance(p, numbers.Real):
        raise TypeError(
            f"`p` must be a Python number in [0, 1], the probability of being dropped, "
            f"but got {p!r} of type {type(p).__name__}; write for example `p=0.5`."
        )
    if not 0.0 <= float(p) <= 1.0:  # NaN fails both
        raise ValueError(
            f"`p` must be in [0, 1], the probability of being dropped, but got {p}; "
            f"write for example `p=0.5`."
        )


def check_is_array(name: str, x: Any) -> None:
    """Raises unless ``x`` has a shape and a dtype."""
    if not _is_array(x):
        raise TypeError(
            f"`{name}` must be an array, but got {type(x).__name__}; write "
            f"`jnp.asarray({name})`."
        )


def check_is_one_array(name: str, x: Any) -> None:
    """Raises unless the input of a layer is an array, be it that it is a list of them."""
    if isinstance(x, list | tuple) and x and all(map(_is_array, x)):
        steps = "for a list of time steps write `jnp.stack(x_seq)`"
        if name == "x":
            steps = (
                "for a list of time steps call the layer once for each, or use "
                "`step_mode='m'` on `jnp.stack(x)`; for examples write `jnp.stack(x)`"
            )
        raise TypeError(
            f"`{name}` must be an array, but got a {type(x).__name__} of {len(x)}; {steps}."
        )
    check_is_array(name, x)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def check_mask_is_bool(mask: Any) -> None:
    """Raises unless ``mask`` is a bool array."""
    check_is_array("mask", mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"`mask` must be bool (True = kept), but got {mask.dtype}; write "
            f"`mask.astype(bool)`."
        )


def check_mask_fits(mask: Any, shape: Sequence[int]) -> None:
    """Raises unless ``mask`` is bool and broadcasts to ``shape`` without growing it."""
    check_mask_is_bool(mask)
    trailing = tuple(shape)[len(shape) - mask.ndim :]
    fits = mask.ndim <= len(shape) and all(
        m in (1, s) for m, s in zip(mask.shape, trailing, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`mask` must broadcast to the shape of `x`, {tuple(shape)}, but got "
            f"{tuple(mask.shape)}; draw a mask for this input."
        )


def check_countable(shape: Sequence[int], number: Any, where: str) -> None:
    """Raises if a counter of random words would wrap around and repeat them."""
    if isinstance(number, int) and number > 2**32:
        raise ValueError(
            f"`shape` must not need more than 2^32 random words {where}, but its words "
            f"have the shape {tuple(shape)}; draw smaller masks, each from its own key."
        )
