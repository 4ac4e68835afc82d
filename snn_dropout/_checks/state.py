"""Checks of what a state holds and of what is given to change it, and their errors.

Every message names the argument, the rule, what was given and what
to type instead, and nothing here knows Flax.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snn_dropout._checks.masks import check_is_array


def check_stored_mask(
    where: str, stored: Any, shape: Sequence[int], dtype: Any, *, known: bool
) -> None:
    """Raises unless the stored mask has exactly the shape and dtype of this input's.

    Args:
      where: its path.
      stored: the mask.
      shape: the shape that the input needs.
      dtype: the dtype of such masks.
      known: whether the layer had a mask of that shape in this very call of the model.
    """
    if known:
        check_one_shape(where, shape, tuple(stored.shape))
    if tuple(stored.shape) != tuple(shape) or stored.dtype != dtype:
        raise ValueError(
            f"The mask stored at {where} must fit the input: it has shape "
            f"{tuple(stored.shape)} and dtype {stored.dtype}, but this input needs shape "
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


def check_stored_rate(where: str, stored: Any, shape: Sequence[int]) -> None:
    """Raises unless the stored probability is one number for each example of its mask."""
    if tuple(stored.shape) != tuple(shape) or stored.dtype != jnp.float32:
        raise ValueError(
            f"The probability stored at {where} must fit its mask: it has shape "
            f"{tuple(stored.shape)} and dtype {stored.dtype}, but the mask needs shape "
            f"{tuple(shape)} and dtype float32. Both belong to one simulation: save, "
            f"restore and drop them together, or start from `reset_masks(state)`."
        )


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


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _branches(state: Any) -> Any:
    return sorted(state) if isinstance(state, Mapping) else jax.tree.structure(state)


def refuse_unkept(
    where: str, shape: Sequence[int], collection: str, lifted: str | None
) -> None:
    """Raises where a single step can not keep its mask."""
    rule = (
        f"The collection '{collection}' must be mutable or hold a mask at {where}: a "
        f"single step that can not keep its mask, of shape {tuple(shape)}, would draw "
        f"another one at every step."
    )
    remedy = lifted or (
        f"If `x` holds all steps, [T, N, ...], use `step_mode='m'`. For one step, call "
        f"`apply(..., mutable=['{collection}'])` and pass the returned state on, or start "
        f"from `init_state(...)`; for inference, `deterministic=True`."
    )
    raise RuntimeError(f"{rule} {remedy}")


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
) -> str | None:
    """Returns what to type where lifted transforms are around a layer.

    Args:
      transforms: their names, as Flax has them.
      sliced: whether the innermost scan goes through parameters; None if unknown.
      collection: that of the masks, or None for what is random anew at each call.
      stream: the RNG stream.
      neurons: whether the collection holds what changes at each step.

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
        remedies.append(f"Then call `y, updated = model.apply(..., mutable={mutable})`.")
    return " ".join(remedies)


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
