"""Checks of what a state holds and of what is given to change it, and their errors.

Every message names the argument, the rule, what was given and what
to type instead, and nothing here knows Flax.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp


def check_stored_mask(
    where: str,
    stored: Any,
    shape: Sequence[int],
    dtype: Any,
    *,
    known: bool,
    of: str,
) -> None:
    """Raises unless the stored mask has exactly the shape and dtype that are needed.

    Args:
      where: its path.
      stored: the mask.
      shape: the shape that the input needs.
      dtype: the dtype of such masks.
      known: whether the layer had a mask of that shape in this very call of the model.
      of: what needs the mask, in words.
    """
    if known:
        check_one_shape(where, shape, tuple(stored.shape))
    if tuple(stored.shape) != tuple(shape) or stored.dtype != dtype:
        raise ValueError(
            f"The mask stored at {where} must fit the {of}: it has shape "
            f"{tuple(stored.shape)} and dtype {stored.dtype}, but this {of} needs shape "
            f"{tuple(shape)} and dtype {jnp.dtype(dtype)}. A mask belongs to one "
            f"simulation: start the next one from the first state, or from "
            f"`reset_masks(state)`."
        )


def check_one_shape(where: str, shape: Sequence[int], other: Sequence[int]) -> None:
    """Raises if one layer needs masks of two shapes in one call of a model."""
    if tuple(shape) != tuple(other):
        raise ValueError(
            f"A layer must have one mask in a simulation, but that at {where} was called "
            f"with inputs that need shape {tuple(other)} and shape {tuple(shape)}. Make a "
            f"second layer for the second input, `self.second = Dropout(...)`, say; inputs "
            f"of two batches can also be joined into one, `jnp.concatenate([x, x2])`."
        )


def check_stored_rate(where: str, stored: Any, mask_shape: Sequence[int]) -> None:
    """Raises unless the stored probability has a row for each example of its mask."""
    shape = tuple(mask_shape)
    if not is_rate_of(stored, shape):
        rows = shape[:1] + (1,) * (len(shape) - 1)
        raise ValueError(
            f"The probability stored at {where} must fit its mask: it has shape "
            f"{tuple(stored.shape)} and dtype {stored.dtype}, but the mask needs shape "
            f"{rows}, or longer axes up to {shape}, and dtype float32. Both belong to one "
            f"simulation: save, restore and drop them together, or start from "
            f"`reset_masks(state)`."
        )


def is_rate_of(stored: Any, shape: Sequence[int]) -> bool:
    """Returns whether an array is float32 and has a row for each example of a mask."""
    fits = len(stored.shape) == len(shape) and all(
        length == most or (axis > 0 and length == 1)
        for axis, (length, most) in enumerate(zip(stored.shape, shape, strict=True))
    )
    return fits and bool(stored.dtype == jnp.float32)


def refuse_lone_rate(where: str, mask: str) -> None:
    """Raises where a probability is stored and the mask that was drawn with it is not."""
    raise ValueError(
        f"The probability stored at {where} must stand beside the mask that was drawn "
        f"with it, but there is no `{mask}`; drop both, `reset_masks(state)`, or neither."
    )


def check_state(state: Any) -> None:
    """Raises unless ``state`` is a collection."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"`state` must be the collection 'state', a dict of leaves, but got "
            f"{type(state).__name__}; write for example `updated['state']`."
        )


def refuse_unkept(
    where: str,
    shape: Sequence[int],
    collection: str,
    lifted: str | None,
    *,
    simulated: bool,
) -> None:
    """Raises where a single step can not keep its mask.

    Args:
      where: its path.
      shape: its shape.
      collection: the collection that it would be in.
      lifted: what to type where lifted transforms are around the layer.
      simulated: whether `simulate` or `MultiStep` runs the step.
    """
    rule = (
        f"The collection '{collection}' must be mutable or hold a mask at {where}: a "
        f"single step that can not keep its mask, of shape {tuple(shape)}, would draw "
        f"another one at every step."
    )
    own = "" if collection == "state" else f", state_collection='{collection}'"
    remedy = (
        f"If `x` holds all steps, [T, N, ...], use `step_mode='m'`. For one step, call "
        f"`apply(..., mutable=['{collection}'])` and pass the returned state on, or start "
        f"from `init_state(...{own})`; for inference, `deterministic=True`."
    )
    if simulated:
        remedy = f"{_carried([collection])} For inference, `deterministic=True`."
    raise RuntimeError(f"{rule} {lifted or remedy}")


def check_one_step(
    where: str, shape: Sequence[int], steps: Any, examples: Any, whole: str
) -> None:
    """Raises if an input is one step by its layer and all steps by another module.

    Args:
      where: the layer in mode ``'s'``.
      shape: the shape of its input.
      steps: the number of steps that the other module runs over, ``T``.
      examples: its number of examples, ``N``.
      whole: the other module.
    """
    if not all(isinstance(n, int) for n in (*shape, steps, examples)) or steps < 2:
        return  # unknown until a program is exported, or no sequence
    flat = tuple(shape[:1]) == (steps * examples,)
    if not flat and (len(shape) < 3 or tuple(shape[:2]) != (steps, examples)):
        return
    found = "T * N examples" if flat else "[T, N, ...]"
    remedy = "reshape it to [T, N, ...] and use" if flat else "use"
    raise ValueError(
        f"A layer in mode 's' takes one step, [N, ...], but the one at {where} got shape "
        f"{tuple(shape)} where {whole} runs over T = {steps} steps of N = {examples} "
        f"examples. It seems to hold all steps, {found}, and each would have a mask of its "
        f"own: {remedy} `step_mode='m'`. If it is one step all the same, use "
        f"`step_mode='m'` on `x[None]`, and take `[0]` of the result."
    )


def refuse_redrawn(where: str, lifted: str | None) -> None:
    """Raises where a lifted scan over time would draw a mask at each step."""
    raise RuntimeError(
        f"The mask {where} must be drawn once for all steps, but the transform around the "
        f"layer would draw or keep another one at every step. {lifted}"
    )


def missing_stream(purpose: str, stream: str, lifted: str | None) -> str:
    """Returns the error about a stream that a layer does not find."""
    reason = "`rngs` has none of that name;"
    if lifted:
        reason = "the transform around the layer does not hand it on."
    remedy = lifted or f"call `apply(..., rngs={{'{stream}': key}})`."
    return f"Drawing {purpose} needs the stream '{stream}', but {reason} {remedy}"


def lifted_remedy(
    transforms: Sequence[str],
    sliced: bool | None,
    collection: str | None,
    stream: str,
    *,
    neurons: bool,
    simulated: bool,
) -> str | None:
    """Returns what to type where lifted transforms are around a layer.

    Args:
      transforms: their names, as Flax has them.
      sliced: whether the innermost scan goes through parameters; None if unknown.
      collection: that of the masks, or None for what is random anew at each call.
      stream: the RNG stream.
      neurons: whether the collection holds what changes at each step.
      simulated: whether `simulate` or `MultiStep` runs what the layer is in.

    Returns:
      None where no such transform is known.
    """
    remedies = []
    if "scan" in transforms:
        if not sliced:
            remedies.append(_over_time(collection, stream, neurons))
        if sliced is not False:
            remedies.append(_over_layers(collection, stream))
    if "while_loop" in transforms and collection:
        remedies.append(
            f"`nn.while_loop` can not draw a mask: call the layer once before it, and give "
            f"it `broadcast_variables=('params', '{collection}')`."
        )
    if "vmap" in transforms:
        axes = f"`'{collection}': 0` to its `variable_axes` and " if collection else ""
        remedies.append(f"For `nn.vmap`, add {axes}`'{stream}': True` to its `split_rngs`.")
    if "map_variables" in transforms and collection:
        remedies.append(
            f"`nn.WeightNorm` (`nn.map_variables`) hands '{collection}' on to be read "
            f"only: put it around the weights alone, `nn.WeightNorm(nn.Dense(...))`, and "
            f"call dropout outside of it; a layer that has both takes whole sequences, "
            f"`step_mode='m'`."
        )
    if not remedies:
        return None
    if collection:
        mutable = (
            [collection, "masks"] if neurons and "scan" in transforms else [collection]
        )
        if not simulated:
            remedies.append(
                f"Then call `y, updated = model.apply(..., mutable={mutable})`."
            )
        elif mutable != ["state"]:  # which a simulation carries anyway
            remedies.append(_carried(mutable))
    return " ".join(remedies)


def _carried(collections: Sequence[str]) -> str:
    """Says how a simulation is told to carry collections."""
    all_of_them = tuple(dict.fromkeys(("state", *collections)))
    return (
        f"Let the simulation carry it from step to step: `simulate(..., "
        f"mutable={list(collections)})`, and so `monte_carlo`; or `MultiStep(module, "
        f"state_collections={all_of_them})`."
    )


def _over_time(collection: str | None, stream: str, neurons: bool) -> str:
    if collection is None:
        return (
            f"Over time, give `nn.scan` or `nn.RNN` "
            f"`split_rngs={{'params': False, '{stream}': True}}`."
        )
    rngs = f"split_rngs={{'params': False, '{stream}': False}}"
    if not neurons:
        return (
            f"Over time, give `nn.scan` or `nn.RNN` "
            f"`variable_broadcast=('params', '{collection}'), {rngs}`."
        )
    return (
        f"Over time, neurons carry '{collection}' and masks are only read: give the layer "
        f"a collection of its own, `state_collection='masks'`, and `nn.scan` or `nn.RNN` "
        f"`variable_broadcast=('params', 'masks'), variable_carry='{collection}', {rngs}`; "
        f"or let `MultiStep` run the steps."
    )


def _over_layers(collection: str | None, stream: str) -> str:
    axes = f"variable_axes={{'params': 0, '{collection}': 0}}, " if collection else ""
    return (
        f"Over layers, which have parameters of their own, give `nn.scan` "
        f"`{axes}split_rngs={{'params': True, '{stream}': True}}`."
    )
