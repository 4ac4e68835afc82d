"""Argument checks of whole simulations, and their errors.

Every message names the argument, the rule, what was given and what
to type instead. Nothing here knows Flax.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snn_dropout._checks.masks import check_is_array


def check_takes_one_step(kind: str, path: Sequence[str]) -> None:
    """Raises: a module that takes all steps is handed one step of a simulation."""
    where = f"{kind} at {'/'.join(path)}" if path else kind
    takes = "runs over all steps" if kind == "MultiStep" else "is in mode 'm', all steps"
    remedy = "no `MultiStep`" if kind == "MultiStep" else "`step_mode='s'`"
    raise ValueError(
        f"{where} {takes} [T, N, ...], but inside of a simulation it is handed one step "
        f"[N, ...] and would take the batch for time. Use {remedy} in what `simulate`, "
        f"`MultiStep`, `monte_carlo` or an activation runs; call a model of whole "
        f"sequences by itself, `model.apply(variables, x_seq, ...)` or `monte_carlo(..., "
        f"step_mode='m')`; if each step is a sequence of its own, [T1, T2, N, ...], say "
        f"so, `MultiStep(module, two_time_scales=True)`."
    )


def check_first_time_step(first: Any) -> None:
    """Raises unless ``first`` is the number of a time step, static or traced."""
    example = "write for example `first_time_step=steps_so_far`, or leave it out for 0"
    is_array = hasattr(first, "dtype") and hasattr(first, "shape")
    is_number = isinstance(first, numbers.Integral) and not isinstance(first, bool)
    if not is_number and not (
        is_array and first.shape == () and jnp.issubdtype(first.dtype, jnp.integer)
    ):
        given = f"{first.dtype}{list(first.shape)}" if is_array else repr(first)
        raise TypeError(
            f"`first_time_step` must be one integer, the number of the first step of "
            f"`x_seq` in the simulation, but got {given}; {example}."
        )
    if is_number and not 0 <= first < 2**31:
        raise ValueError(
            f"`first_time_step` must be in [0, 2^31), the number of the first step of "
            f"`x_seq` in the simulation, but got {first}; {example}."
        )


def check_time_axis(x_seq: Any) -> Any:
    """Returns the number of time steps of ``x_seq``, or raises if it has none."""
    leaves = jax.tree.leaves(x_seq)
    if not leaves:
        raise ValueError(
            "`x_seq` must hold at least one array [T, N, ...], but got none; pass the "
            "input of all time steps."
        )
    for leaf in leaves:
        check_is_array("x_seq", leaf)
        if len(leaf.shape) == 0:
            raise ValueError(
                "`x_seq` must have a time axis first, [T, N, ...], but got a scalar; add "
                "one with `x_seq[None]`."
            )
    if isinstance(x_seq, list):
        raise TypeError(
            f"`x_seq` must be an array [T, N, ...], or a tuple or dict of such arrays for "
            f"several inputs, but got a list of {len(x_seq)}; for a list of time steps "
            f"write `jnp.stack(x_seq)`, for several inputs `tuple(x_seq)`."
        )
    steps = {leaf.shape[0] for leaf in leaves}
    if len(steps) > 1:
        raise ValueError(
            f"The arrays of `x_seq` must have the same number of time steps, but got "
            f"{', '.join(sorted(map(str, steps)))}; what is the same at every step is "
            f"another argument."
        )
    return steps.pop()  # an integer, or a symbolic dimension during an export


def check_mutable(mutable: Any) -> tuple[str, ...]:
    """Returns the names of ``mutable``, or raises unless they are collections to carry."""
    names = (mutable,) if isinstance(mutable, str) else mutable
    check_collections("mutable", names)
    return tuple(names)


def check_collections(name: str, collections: Any) -> None:
    """Raises unless ``collections`` are names of collections that can be carried."""
    if not isinstance(collections, (list, tuple, set, frozenset)) or not all(
        isinstance(collection, str) for collection in collections
    ):
        raise TypeError(
            f"`{name}` must name the collections to carry, but got {collections!r}; write "
            f"for example `{name}=('batch_stats',)`."
        )
    if "params" in collections:
        raise ValueError(
            f"`{name}` must not hold 'params', which is the same at every step, but got "
            f"{collections!r}; leave it out."
        )


def check_no_method(kwargs: Any) -> None:
    """Raises if ``method`` is given, which ``apply`` takes and a simulation does not."""
    if "method" in kwargs:
        raise TypeError(
            f"`simulate` calls the model itself and takes no `method`, but got "
            f"{kwargs['method']!r}; wrap the method in a module with a `__call__`."
        )


def check_batch(where: str, given: Any, made: Any) -> None:
    """Raises unless a leaf of the state is of the batch of the leaf that this input makes.

    One of another rank or structure is not: it grows, or its user put it there.
    """
    ranks = [jax.tree.map(jnp.ndim, leaf) for leaf in (given, made)]
    if ranks[0] == ranks[1] and _shapes(given) != _shapes(made):
        collection = where.split("/")[0]
        raise ValueError(
            f"The leaf {where} must keep its shape, but it has {_shapes(given)} where this "
            f"input makes {_shapes(made)}: it is of another batch; start from the first "
            f"state of this one. Pass the variables without '{collection}', for example "
            f"`{{'params': variables['params']}}`, or with what `init` makes for it. (A "
            f"sequence has time first: where it has not, `jnp.swapaxes(x_seq, 0, 1)`.)"
        )


def more_axes(given: Any, made: Any) -> tuple[Any, ...]:
    """Returns the axes that a leaf of the state has beside those that it should have.

    They are in front, or behind the layers of blocks that are stacked over depth.
    """
    structures: list[Any] = list(map(jax.tree.structure, (given, made)))
    if structures[0] != structures[1]:
        return ()
    for leaf, one in zip(jax.tree.leaves(given), jax.tree.leaves(made), strict=True):
        shape, more = tuple(jnp.shape(leaf)), jnp.ndim(leaf) - jnp.ndim(one)
        for at in range(jnp.ndim(one) + 1 if more > 0 else 0):
            if shape[:at] + shape[at + more :] == tuple(jnp.shape(one)):
                return shape[at : at + more]
    return ()


def check_no_sequence(where: str, given: Any, made: Any, of_sequence: Any) -> None:
    """Raises if a leaf of the state is what a whole sequence makes, taken for one step.

    Args:
      where: the leaf.
      given: what it holds.
      made: what one step makes.
      of_sequence: what a whole sequence makes, of the axes that the leaf has more.
    """
    if _shapes(given) == _shapes(of_sequence):
        collection = where.split("/")[0]
        raise ValueError(
            f"The leaf {where} must be of one step, but it has {_shapes(given)} where this "
            f"input makes {_shapes(made)}: it looks as if a model of single steps was "
            f"given a whole sequence, in `init` most likely. Give it one step, `variables "
            f"= model.init(key, x_seq[0])`, or pass the variables without '{collection}', "
            f"for example `{{'params': variables['params']}}`."
        )


def check_shape(where: str, before: Any, after: Any) -> None:
    """Raises unless a leaf of the state has the structure and shape of another one."""
    if _shapes(before) != _shapes(after):
        raise ValueError(
            f"The leaf {where} must keep its shape from step to step, but it has "
            f"{_shapes(before)} where this input makes {_shapes(after)}; start from the "
            f"first state of this batch, and let `sow` write to 'intermediates'."
        )


def check_carried(where: str, before: Any, after: Any) -> None:
    """Raises unless a leaf of the state keeps its structure, shape and dtype in a step."""
    check_shape(where, before, after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        was, becomes = _dtype(old), _dtype(new)
        if was == becomes or _may_become(old, becomes):
            continue
        wide = jnp.promote_types(was, becomes)
        raise ValueError(
            f"The leaf {where} must keep its dtype from step to step, but is {was} before "
            f"a step and {becomes} after it. Let the neuron make it of the dtype that it "
            f"computes in, whatever its input, `jnp.zeros_like(x, jnp.{wide})` for "
            f"example; or cast the input, `x_seq.astype(jnp.{wide})`, for `init` too."
        )


def _shapes(leaf: Any) -> Any:
    return jax.tree.map(jnp.shape, leaf)


def _dtype(leaf: Any) -> Any:
    # As JAX takes it: one of NumPy may be wider.
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # that of keys
        return dtype
    return jax.dtypes.canonicalize_dtype(dtype)


def _may_become(leaf: Any, dtype: Any) -> bool:
    """Returns whether a leaf without a dtype of its own may start a carry of that one."""
    if not getattr(leaf, "weak_type", not hasattr(leaf, "dtype")):
        return False
    number = _dtype(leaf).type(0).item()
    return bool(jnp.result_type(number, dtype) == dtype)


def check_none_late(paths: Sequence[str]) -> None:
    """Raises if there are leaves that no state can have before the first step."""
    if paths:
        raise ValueError(
            f"The state must have all of its leaves before the first step, but {paths[0]} "
            f"is made by the first call and not by `init`, so its first value is not "
            f"known. Run that step by itself, `y, updated = model.apply(variables, "
            f"x_seq[0], ..., mutable=['state'])`, and the scan over `x_seq[1:]` from "
            f"`updated['state']`; or use `simulate` or `MultiStep`, which do so."
        )


def check_settled(paths: Sequence[str]) -> None:
    """Raises if there are leaves that a step after the first one makes."""
    if paths:
        raise ValueError(
            f"A neuron must make all of its state in its first call, but {paths[0]} "
            f"appeared in a later one; let the neuron make it at once."
        )


def hidden_collection(collection: str, lifted: str, error: str) -> str:
    """Returns the error about a collection that a lifted transform does not hand on."""
    axes = "'params': None" if lifted == "vmap" else "'params': 0"
    remedy = (
        f"Where each layer or row has a state of its own, give it `variable_axes={{{axes}, "
        f"'{collection}': 0}}`"
    )
    if lifted == "scan":
        remedy += f"; over time, `variable_carry='{collection}'`, or let `MultiStep` run it"
    return (
        f"The collection '{collection}' must be handed on by `nn.{lifted}` to the modules "
        f"inside of it, but is not, or to be read only. {remedy}. Flax says: {error}"
    )


def check_unchanged(before: Any, after: Any) -> None:
    """Raises unless both mappings hold the same leaves."""
    changed = [path for path in after if after[path] is not before.get(path)]
    if changed:
        where = "/".join(map(str, changed[0][1:]))
        raise RuntimeError(
            f"A step must only change the state of the module that is run over time, but "
            f"it changed {where} outside of it; make the module that it calls an attribute "
            f"of it instead of closing over it."
        )
