"""Argument checks of probabilities, arrays and masks, and their errors."""

import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np


def check_probability(p: Any) -> None:
    """Raises unless ``p`` is a static Python number in [0, 1]."""
    if isinstance(p, jax.core.Tracer):
        raise TypeError(
            "`p` must be a static Python number where connections are lost, but it is "
            "traced; close over it or mark it static (`static_argnames`), and build "
            "another layer for another `p`. Dropout of units, channels and paths takes an "
            "array."
        )
    if is_array(p):
        raise TypeError(
            f"`p` must be a Python number in [0, 1] where connections are lost, but got an "
            f"array of shape {tuple(p.shape)}; write for example `p=0.5`. Dropout of "
            f"units, channels and paths takes an array."
        )
    _check_number(p, "a Python number")


def check_rate(p: Any) -> None:
    """Raises unless ``p`` is a static number in [0, 1], or an array of such floats.

    What an array holds can not be seen while it is traced.
    """
    if not is_array(p):
        _check_number(p, "a Python number or an array of floats")
        return
    traced = isinstance(p, jax.core.Tracer)
    whole = jnp.issubdtype(p.dtype, jnp.integer) and not traced
    if not (whole or jnp.issubdtype(p.dtype, jnp.floating)):
        remedy = "p.real" if jnp.issubdtype(p.dtype, jnp.complexfloating) else "p"
        raise TypeError(
            f"`p` must be a Python number or an array of floats in [0, 1], the probability "
            f"of being dropped, but got {'a traced' if traced else 'an'} array of dtype "
            f"{p.dtype}; write `{remedy}.astype(jnp.float32)`."
        )
    if traced or not getattr(p, "is_fully_addressable", True):
        return
    values = np.asarray(jax.device_get(p)).astype(np.float64)
    out = values[~((values >= 0) & (values <= 1))]
    if out.size:
        raise ValueError(
            f"`p` must be in [0, 1], the probability of being dropped, but got an array "
            f"with {out.flat[0]}; write for example `jnp.clip(p, 0, 1)`."
        )


def check_rates_fit(p: Any, shape: Sequence[int]) -> None:
    """Raises unless ``p`` broadcasts to the shape of its mask without growing it."""
    if not is_array(p) or _fits(p.shape, shape):
        return
    remedy = "give it as many axes, each of the length of the mask or of 1"
    alike = [axis for axis, length in enumerate(shape) if (length,) == tuple(p.shape)]
    if alike:
        axes = ["1"] * len(shape)
        axes[alike[-1]] = "-1"
        remedy = f"write `p.reshape({', '.join(axes)})` for axis {alike[-1]} of it"
    raise ValueError(
        f"`p` must be one number or broadcast to the mask, of shape {tuple(shape)}, but "
        f"got an array of shape {tuple(p.shape)}; {remedy}."
    )


def _check_number(p: Any, kind: str) -> None:
    if isinstance(p, bool) or not isinstance(p, numbers.Real):
        raise TypeError(
            f"`p` must be {kind} in [0, 1], the probability of being dropped, "
            f"but got {p!r} of type {type(p).__name__}; write for example `p=0.5`."
        )
    if not 0.0 <= float(p) <= 1.0:  # NaN fails both
        raise ValueError(
            f"`p` must be in [0, 1], the probability of being dropped, but got {p}; "
            f"write for example `p=0.5`."
        )


def is_array(p: Any) -> TypeGuard[jax.Array]:
    """Returns whether ``p`` is an array, and no number that is known to the program."""
    return isinstance(p, jax.Array | np.ndarray)


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
    if not _fits(mask.shape, shape):
        raise ValueError(
            f"`mask` must broadcast to the shape of `x`, {tuple(shape)}, but got "
            f"{tuple(mask.shape)}; draw a mask for this input."
        )


def _fits(small: Sequence[int], shape: Sequence[int]) -> bool:
    trailing = tuple(shape)[len(shape) - len(small) :]
    return len(small) <= len(shape) and all(
        m in (1, s) for m, s in zip(small, trailing, strict=True)
    )


def check_countable(shape: Sequence[int], number: Any, where: str) -> None:
    """Raises if a counter of random words would wrap around and repeat them."""
    if isinstance(number, int) and number > 2**32:
        raise ValueError(
            f"`shape` must not need more than 2^32 random words {where}, but its words "
            f"have the shape {tuple(shape)}; draw smaller masks, each from its own key."
        )
