"""What ends a simulation in the middle of a program: new masks, and single examples."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from snn_dropout import _state_checks
from snn_dropout.state import MASK_NAMES, State, from_leaves, to_leaves


def reset_masks(state: Mapping[str, Any]) -> State:
    """Drops the masks of a state: the next training call draws new ones.

    Membranes and all other leaves stay, as SpikingJelly's ``reset`` would not
    leave them: to restart the neurons too, start from the first state.

    Example::

      >>> import jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> state = {'lif': {'v': jnp.zeros(2)}, 'drop': {'mask': jnp.ones(2, bool)}}
      >>> sd.reset_masks(state)
      {'lif': {'v': Array([0., 0.], dtype=float32)}}

    Args:
      state: the collection ``"state"``; it is not changed.

    Returns:
      The state without the leaves ``mask``, ``kernel_mask`` and ``bias_mask``.

    Raises:
      TypeError: the state is no collection.
    """
    _state_checks.check_state(state)
    leaves = to_leaves(state).items()
    return from_leaves({path: leaf for path, leaf in leaves if path[-1] not in MASK_NAMES})


def reset_rows(done: jax.Array, state: Any, fresh: Any) -> Any:
    """Restarts single examples: row ``n`` is ``fresh`` where ``done[n]``.

    ``new[n] = fresh[n] if done[n] else state[n]``, for every leaf

    Example::

      >>> import jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> state, fresh = {'v': jnp.array([5., 7.])}, {'v': jnp.zeros(2)}
      >>> sd.reset_rows(jnp.array([True, False]), state, fresh)
      {'v': Array([0., 7.], dtype=float32)}

    Args:
      done: bool ``[N]``, the examples to restart.
      state: the running state; every leaf is ``[N, ...]``.
      fresh: a state of the same structure, from :func:`init_state` with a new key.

    Returns:
      A state of the same structure.

    Raises:
      ValueError: the structures, shapes or dtypes differ, or a leaf has no
        batch axis of the length of ``done``.
    """
    _state_checks.check_rows(done)
    ours: Any = jax.tree.structure(state)
    theirs: Any = jax.tree.structure(fresh)
    if ours != theirs:
        raise ValueError(
            f"`state` and `fresh` must have the same structure, but have {ours} and "
            f"{theirs}; make both with `init_state`, which draws every mask."
        )

    def choose(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        _state_checks.check_row_leaf(jax.tree_util.keystr(path), old, new, done.shape[0])
        return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)

    return jax.tree_util.tree_map_with_path(choose, state, fresh)
