"""What ends a simulation in the middle of a program: new masks, and single examples."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from snn_dropout._checks import rows as _row_checks
from snn_dropout._checks import state as _state_checks
from snn_dropout.linen.state import MASK_NAMES, State, from_leaves, to_leaves


def reset_masks(state: Mapping[str, Any]) -> State:
    """Drops the masks of a state: the next training call draws new ones.

    Membranes and all other leaves stay, as SpikingJelly's ``reset`` would not
    leave them: to restart the neurons too, start from the first state.

    The names ``mask``, ``mask_p``, ``kernel_mask`` and ``bias_mask`` belong to masks,
    wherever they are in the state: a neuron's own leaf needs another one,
    ``refractory_mask`` say, or it is dropped too.

    Example::

      >>> import jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> state = {'lif': {'v': jnp.zeros(2)}, 'drop': {'mask': jnp.ones(2, bool)}}
      >>> sd.reset_masks(state)
      {'lif': {'v': Array([0., 0.], dtype=float32)}}

    Args:
      state: the collection ``"state"``; it is not changed.

    Returns:
      The state without the leaves of these four names.

    Raises:
      TypeError: the state is no collection.
    """
    _state_checks.check_state(state)
    leaves = to_leaves(state).items()
    return from_leaves({path: leaf for path, leaf in leaves if path[-1] not in MASK_NAMES})


def reset_rows(done: jax.Array, state: Any, fresh: Any, *, axis: Any = None) -> Any:
    """Restarts single examples: row ``n`` is ``fresh`` where ``done[n]``.

    ``new[n] = fresh[n] if done[n] else state[n]``, for every leaf

    Blocks that ``nn.scan`` stacks over depth have leaves ``[L, N, ...]``: say
    ``axis=1``, or name the axis of each branch where there are other leaves too. Without
    ``axis`` it is the first one, and a leaf that has the length of ``done`` in another
    axis as well raises: it could be of either kind. A mask that all examples share
    (``broadcast_dims`` with the batch axis 0) has no rows, and raises: keep it for all by
    hand, as the error says.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> state, fresh = {'v': jnp.array([5., 7.])}, {'v': jnp.zeros(2)}
      >>> done = jnp.array([True, False])
      >>> sd.reset_rows(done, state, fresh)
      {'v': Array([0., 7.], dtype=float32)}
      >>> state = {'blocks': {'v': jnp.ones((3, 2))}, 'last': state}
      >>> fresh = jax.tree.map(jnp.zeros_like, state)
      >>> sd.reset_rows(done, state, fresh, axis={'blocks': 1, 'last': 0})['blocks']
      {'v': Array([[0., 1.],
             [0., 1.],
             [0., 1.]], dtype=float32)}

    Args:
      done: bool ``[N]``, the examples to restart.
      state: the running state.
      fresh: a state of the same structure, from :func:`init_state` with a new key.
      axis: the batch axis of all leaves, or of each branch as ``in_axes`` of
        ``jax.vmap`` has it: a tree of whole numbers that is a prefix of ``state``.

    Returns:
      A state of the same structure.

    Raises:
      TypeError: ``axis`` is no whole number, nor a tree of them.
      ValueError: the structures, shapes or dtypes differ, ``axis`` is no prefix of
        ``state``, a leaf has no batch axis of the length of ``done``, or without
        ``axis`` more than one, or a mask is shared by all examples.
    """
    _row_checks.check_rows(done)
    ours: Any = jax.tree.structure(state)
    theirs: Any = jax.tree.structure(fresh)
    if ours != theirs:
        raise ValueError(
            f"`state` and `fresh` must have the same structure, but have {ours} and "
            f"{theirs}; make both with `init_state`, which draws every mask where the "
            f"model is called as in training, with `train=True` or `deterministic=False`."
        )
    axes = _row_checks.check_axes(axis, state)

    def choose(path: Any, old: jax.Array, new: jax.Array, given: Any) -> jax.Array:
        where = jax.tree_util.keystr(path)
        _row_checks.check_alike(where, old, new)
        if getattr(path[-1] if path else None, "key", None) in MASK_NAMES:
            _row_checks.check_row_is_own(where, old.shape, done.shape[0], given)
        rows = _row_checks.check_batch_axis(where, old.shape, done.shape[0], given)
        others = [axis for axis in range(old.ndim) if axis != rows]
        return jnp.where(jnp.expand_dims(done, others), new, old)

    leaves = jax.tree_util.tree_leaves_with_path(state)
    chosen = [
        choose(path, old, new, given)
        for (path, old), new, given in zip(
            leaves, jax.tree.leaves(fresh), axes, strict=True
        )
    ]
    return jax.tree.unflatten(ours, chosen)
