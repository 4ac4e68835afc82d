"""Checks of what a state holds and of what is given to change it, and their errors.

As in ``_checks``, every message names the argument, the rule, what was given and what
to type instead, and nothing here knows Flax.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from snn_dropout._checks import check_is_array


def check_stored_mask(where: str, stored: Any, shape: Sequence[int], dtype: Any) -> None:
    """Raises unless the stored mask has exactly the shape and dtype of this input's."""
    if tuple(stored.shape) != tuple(shape) or stored.dtype != dtype:
        raise ValueError(
            f"The mask stored at {where} must fit the input: it has shape "
            f"{tuple(stored.shape)} and dtype {stored.dtype}, but this input needs shape "
            f"{tuple(shape)} and dtype {jnp.dtype(dtype)}. A mask belongs to one "
            f"simulation: start the next one from the first state, or from "
            f"`reset_masks(state)`."
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
            f"{done.dtype}{list(done.shape)}; write for example `done = t >= length`."
        )


def check_row_leaf(where: str, old: Any, new: Any, rows: int) -> None:
    """Raises unless ``old`` and ``new`` are alike and have ``rows`` rows."""
    check_is_array(f"state{where}", old)
    check_is_array(f"fresh{where}", new)
    if old.shape != new.shape or old.dtype != new.dtype:
        raise ValueError(
            f"`state` and `fresh` must agree at {where}, but have {old.dtype}"
            f"{list(old.shape)} and {new.dtype}{list(new.shape)}; make `fresh` with "
            f"`init_state` for the same batch."
        )
    if len(old.shape) == 0 or old.shape[0] != rows:
        raise ValueError(
            f"`done` chooses rows of the batch axis 0, but the leaf at {where} has shape "
            f"{tuple(old.shape)} where `done` has {rows} elements; pass `done` for the "
            f"whole batch, and leave leaves without a batch axis out of `state`."
        )
