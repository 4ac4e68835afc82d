"""Argument checks that the layers share, and their errors."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from snn_dropout._checks.masks import check_is_one_array

STEP_MODES = ("s", "m")


def check_step_mode(step_mode: Any) -> None:
    """Raises unless ``step_mode`` is one of the two modes."""
    if step_mode not in STEP_MODES:
        raise ValueError(
            f"`step_mode` must be 's' (one step, [N, ...]) or 'm' (all steps, "
            f"[T, N, ...]), but got {step_mode!r}; write `step_mode='s'` or "
            f"`step_mode='m'`."
        )


def check_channel_axis(channel_axis: Any, ndim: int) -> None:
    """Raises unless ``channel_axis`` is an axis of one step other than the batch."""
    is_integer = isinstance(channel_axis, int) and not isinstance(channel_axis, bool)
    if not is_integer or not (-ndim < channel_axis < ndim) or channel_axis == 0:
        raise ValueError(
            f"`channel_axis` must be an axis of one step's input of {ndim} axes, other "
            f"than the batch axis 0, but got {channel_axis!r}; write -1 for "
            f"[N, *space, C] or 1 for [N, C, *space]."
        )


def check_broadcast_dims(broadcast_dims: Any) -> tuple[int, ...]:
    """Returns the axes as a tuple, or raises unless they are whole numbers."""
    listed = isinstance(broadcast_dims, Sequence) and not isinstance(broadcast_dims, str)
    whole = listed and all(
        isinstance(axis, int | np.integer) and not isinstance(axis, bool)
        for axis in broadcast_dims
    )
    if not whole:
        raise TypeError(
            f"`broadcast_dims` must be a tuple of whole numbers, the axes of one step's "
            f"input [N, ...] that share one mask element, but got {broadcast_dims!r}; "
            f"write for example `broadcast_dims=(1,)`."
        )
    return tuple(map(int, broadcast_dims))


def check_shared_axes(
    broadcast_dims: Sequence[int], step_shape: Sequence[int]
) -> tuple[int, ...]:
    """Returns the axes counted from the front, or raises unless each is there once."""
    ndim = len(step_shape)
    rule = (
        f"`broadcast_dims` must be axes of one step's input, without T, which here has "
        f"shape {tuple(step_shape)}"
    )
    for axis in broadcast_dims:
        if not -ndim <= axis < ndim:
            known = f"axes from {-ndim} to {ndim - 1}" if ndim else "no axis to share"
            raise ValueError(
                f"{rule}, but got {tuple(broadcast_dims)}; there are {known}. Write for "
                f"example `broadcast_dims=({'-1,' if ndim else ''})`."
            )
    shared = tuple(axis % ndim for axis in broadcast_dims)
    if len(set(shared)) < len(shared):
        once = tuple(sorted(set(shared)))
        raise ValueError(
            f"{rule}, each once, but got {tuple(broadcast_dims)}; write "
            f"`broadcast_dims={once}`."
        )
    return shared


def check_flag(name: str, flag: Any, meaning: str) -> None:
    """Raises unless a flag is a static bool."""
    if not isinstance(flag, bool):
        raise TypeError(
            f"`{name}` must be True or False, {meaning}, but got {flag!r}; write one of "
            f"the two, or leave it out."
        )


def check_deterministic(deterministic: Any) -> None:
    """Raises unless the flag is None or a static bool: it chooses between programs."""
    if isinstance(deterministic, jax.core.Tracer):
        raise TypeError(
            "`deterministic` must be a static Python bool, but it is traced; mark it "
            "static (`static_argnames='deterministic'`) or close over it."
        )
    if deterministic is not None and not isinstance(deterministic, (bool, np.bool_)):
        raise TypeError(
            f"`deterministic` must be True (inference) or False (training), but got "
            f"{deterministic!r}; write for example `deterministic=not train`."
        )


def merge_deterministic(layer: str, field: Any, argument: Any) -> bool:
    """Returns the flag of a layer, or raises unless field or argument give it, not both."""
    check_deterministic(argument)
    if field is None and argument is None:
        raise ValueError(
            f"`deterministic` must be given to {layer}, True (inference) or False "
            f"(training), but was not; write for example "
            f"`{layer}(...)(x, deterministic=not train)`."
        )
    if field is not None and argument is not None:
        raise ValueError(
            f"`deterministic` must be given to {layer} once, but got {field} as its field "
            f"and {argument} in the call; leave one of the two out."
        )
    return bool(field if argument is None else argument)


def check_bound(layer: str, scope: Any) -> None:
    """Raises if a module is called that has no scope."""
    if scope is None:
        raise RuntimeError(
            f"{layer} must be called by `apply` or inside of another linen module, for it "
            f"holds no parameters, keys or masks itself, but it was called alone; write "
            f"`y = layer.apply(variables, x, ...)`, with `variables` from `layer.init`. In "
            f"a model of NNX use the layers of `snn_dropout.nnx`."
        )


def check_hashed(layer: str, p: Any) -> None:
    """Raises if a field of a module that ``nn.jit`` is given has no hash.

    Flax hashes the numbers of a NumPy array with axes one by one.
    """
    if isinstance(p, jax.Array) or (isinstance(p, np.ndarray) and p.ndim == 0):
        raise TypeError(
            f"`p` of {layer} must be a static number where `nn.jit` is given the layer, or "
            f"a module that has it as a field, for fields are part of what is compiled; "
            f"but got an array of shape {tuple(p.shape)}. Hand it to the call and build "
            f"the layer in there, `{layer}(p)(x)` in `def __call__(self, x, p)`, or use "
            f"`jax.jit` around `apply`."
        )


def check_rank(
    layer: str, x: Any, step_mode: str, step_axes: str, fewest: int, most: float
) -> None:
    """Raises unless ``x`` has a rank that the layer takes in ``step_mode``.

    Args:
      layer: the name of the layer.
      x: its input.
      step_mode: the mode of the call.
      step_axes: the axes of one step in words, such as "N, H, W, C".
      fewest: the smallest rank of one step that is taken.
      most: the largest.
    """
    name = "x" if step_mode == "s" else "x_seq"
    check_is_one_array(name, x)
    time = 1 if step_mode == "m" else 0
    if fewest <= x.ndim - time <= most:
        return
    remedies = [_other_layer(layer, x.ndim - time, step_mode, step_axes)]
    if x.ndim - time == fewest - 1:
        axis = "x_seq[:, None]" if time else "x[None]"
        remedies.append(
            f"If it is one example (under `jax.vmap`, say), keep a batch axis of 1, "
            f"`{axis}`, and give each example a key of its own."
        )
    if fewest <= x.ndim - (1 - time) <= most:
        axes = f"[{step_axes}], one step" if time else f"[T, {step_axes}], all steps"
        other = "s" if time else "m"
        remedies.append(f"If it rather looks like {axes}, use `step_mode='{other}'`.")
    wanted = f"[T, {step_axes}]" if time else f"[{step_axes}]"
    raise ValueError(
        f"`{name}` of {layer} must be {wanted} in step_mode='{step_mode}', but got shape "
        f"{tuple(x.shape)}; {' '.join(remedies)}"
    )


# What drops channels, by the number of axes of one step: the layer, and the axes of space.
_CHANNEL_LAYERS = {
    2: ("Dropout", []),
    3: ("Dropout1d", ["L"]),
    4: ("Dropout2d", ["H", "W"]),
    5: ("Dropout3d", ["D", "H", "W"]),
}


def _other_layer(layer: str, rank: int, step_mode: str, step_axes: str) -> str:
    """Returns what takes one step of another rank than a layer does, in words."""
    time = ["T"] if step_mode == "m" else []
    if "C" not in step_axes or rank not in _CHANNEL_LAYERS:
        return "reshape it."
    other, space = _CHANNEL_LAYERS[rank]
    first = space and step_axes.startswith("N, C,")
    axes = ", ".join([*time, "N", *(["C", *space] if first else [*space, "C"])])
    fields = ["..."]
    fields += ["channel_axis=1"] if first else []
    fields += ["step_mode='m'"] if time else []
    return f"for [{axes}] use `{other}({', '.join(fields)})`, or reshape it."


def check_has_examples(layer: str, x: Any, step_mode: str) -> None:
    """Raises if one axis would be taken for the examples that may be their features."""
    time = 1 if step_mode == "m" else 0
    if x.ndim - time != 1:
        return
    name, axes = ("x_seq", "[T, N, ...]") if time else ("x", "[N, ...]")
    one, scalars = (
        ("x_seq[:, None]", "x_seq[..., None]") if time else ("x[None]", "x[:, None]")
    )
    raise ValueError(
        f"`{name}` of {layer} must be {axes} with something behind the examples, but got "
        f"shape {tuple(x.shape)}, which may be one example without its batch axis: its "
        f"features would be dropped one by one. For one example (under `jax.vmap`, say), "
        f"use `{one}` and give each example a key of its own; for a batch of scalars, "
        f"`{scalars}`."
    )
