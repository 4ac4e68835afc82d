"""The state of a simulation: who creates, reads, replaces and drops a mask.

Masks live in the collection ``"state"``, beside the neurons' membranes:

=============== ===================================================== =============
leaf            dtype and shape                                       of
=============== ===================================================== =============
``mask``        bool, one step's input with the shared axes 1         the dropouts
``kernel_mask`` uint32, one bit a connection, ``[N, ...]``            DropConnect
``bias_mask``   bool ``[N, O]``                                       DropConnect
=============== ===================================================== =============

1. ``init`` makes parameters and the neurons' first state, and no mask; a
   dropout layer is then the identity and needs no stream. So the state that
   ``init`` returns can be the start of every simulation.
2. The first training call draws the mask and stores it; later calls read it.
   It is never written again.
3. A new simulation starts from the first state, or from :func:`reset_masks`
   where neurons run on, with a new key; single examples with
   :func:`reset_rows`.
4. A hand-written ``lax.scan`` starts from :func:`init_state`, which draws every
   missing mask and leaves every leaf that exists alone.
5. Inference is the identity, needs no stream and touches no state.
6. A call that is the whole simulation (mode ``'m'``, ``MultiStep``,
   ``simulate``) runs on a state of its own where the state is not mutable; in
   mode ``'s'`` that would be a new mask at every step, and raises.
7. A stored mask that does not fit the input raises.
8. A mask belongs to (key, module path, shape of one step), so every way of
   running a simulation gives the same masks.
9. A mask is never born inside a raw JAX transform within a module: that raises
   (behind a lifted transform inside the raw one it can not be seen).
10. Neurons are other people's: any collection can be carried, see
    ``MultiStep`` and ``simulate``, also one that is made in the first call only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors, traverse_util
from flax.core import DenyList, Scope, apply, tracers
from flax.core.scope import CollectionFilter, LazyRng

from snn_dropout import _checks, _time_checks

MASK_NAMES = ("mask", "kernel_mask", "bias_mask")

State = dict[str, Any]
Leaves = dict[tuple[Any, ...], Any]


def init_state(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Any,
    *args: Any,
    rngs: Any,
    state_collection: str = "state",
    **kwargs: Any,
) -> State:
    """Makes the state of a new simulation: what ``init`` made, plus every mask.

    A hand-written ``jax.lax.scan``, or ``nn.scan`` with
    ``variable_carry='state'``, starts from it, because the structure of a carry
    is fixed. Leaves that ``variables`` already has are left alone; a neuron's
    leaf that is missing is what ``init`` makes under the same arguments. The
    forward passes that this takes are dead code under ``jit`` (effects such as
    ``jax.debug.print`` are not). A leaf that is left alone is the caller's own
    buffer: do not donate the state where that one is needed again.

    Example::

      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> model = nn.Sequential([nn.Dense(3), sd.Dropout(0.5, deterministic=False)])
      >>> x_seq = jnp.ones((5, 2, 4))                                 # [T, N, I]
      >>> variables = model.init(jax.random.key(0), x_seq[0])
      >>> rngs = {'dropout': jax.random.key(1)}
      >>> state = sd.init_state(model, variables, x_seq[0], rngs=rngs)
      >>> jax.tree.map(jnp.shape, state)
      {'layers_1': {'mask': (2, 3)}}
      >>> def step(state, x):
      ...   y, updated = model.apply(
      ...     {'params': variables['params'], 'state': state}, x,
      ...     rngs=rngs, mutable=['state'])
      ...   return updated['state'], y
      >>> state, y_seq = jax.lax.scan(step, state, x_seq)
      >>> y_seq.shape
      (5, 2, 3)

    Args:
      model: a single-step linen module.
      variables: its parameters and, where there is one, the state to complete.
      x: the input of one step, ``[N, ...]``.
      *args: further arguments of the model.
      rngs: the keys of the simulation, as for ``apply``.
      state_collection: the collection to return, as the field of the layers.
      **kwargs: further keyword arguments of the model.

    Returns:
      The collection ``"state"``: pass it as ``{'params': ..., 'state': state}``.

    Raises:
      flax.errors.InvalidRngError: a mask is to be drawn and its stream is missing.
      ValueError: a stored mask does not fit ``x``, or the model makes a leaf of its
        state only in its first call, so that no carry can hold it before.
    """
    _time_checks.check_module("model", model, nn.Module)

    def step(leaves: Leaves, *, initializing: bool) -> Leaves:
        def call(scope: Any, *args: Any, **kwargs: Any) -> Any:
            return model.clone(parent=scope, _deep_clone=True)(*args, **kwargs)

        by_init = written_by_init("params" in variables)
        mutable = by_init if initializing else DenyList("params")
        stepped = apply(call, mutable=mutable, flags={"initializing": initializing})
        given = {**variables, **from_leaves(leaves)}
        _, mutated = stepped(given, x, *args, rngs=rngs, **kwargs)
        return state_of(mutated)

    def state_of(collections: Mapping[str, Any]) -> Leaves:
        return to_leaves({state_collection: collections.get(state_collection, {})})

    first, late = first_state(step, state_of(variables))
    _time_checks.check_none_late([name_of(path) for path in late])
    state: State = from_leaves(first)
    found: State = state.get(state_collection, {})
    return found


def first_state(step: Callable[..., Leaves], given: Leaves) -> tuple[Leaves, Leaves]:
    """Completes a state so that one step leaves its structure unchanged, if it can be.

    Args:
      step: takes leaves and ``initializing``, runs one step and returns the
        leaves after it.
      given: the leaves that exist; they are returned as they are.

    Returns:
      The given leaves, those that ``init`` makes, and every mask; and the leaves that
      only the first step makes, as they are after it: their first value is not known.

    Raises:
      ValueError: a leaf changes its shape.
    """
    start = step(given, initializing=True) | given
    ahead = step(start, initializing=False)
    for path, leaf in start.items():
        _time_checks.check_carried(name_of(path), leaf, ahead.get(path, leaf))
    # What this step changed has already moved: only what it drew is kept.
    new = {path: leaf for path, leaf in ahead.items() if path not in start}
    drawn = {path: leaf for path, leaf in new.items() if path[-1] in MASK_NAMES}
    late = {path: leaf for path, leaf in new.items() if path not in drawn}
    return start | drawn, late


def written_by_init(has_params: bool) -> CollectionFilter:
    """Returns what a step that is told that ``init`` runs may write, for the first state.

    Some modules (``nn.WeightNorm``) write their parameters when ``init`` runs. Where
    there are no parameters at all, Flax's own error about them is the clearest.
    """
    return True if has_params else DenyList("params")


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
    _checks.check_state(state)
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
    _checks.check_rows(done)
    ours: Any = jax.tree.structure(state)
    theirs: Any = jax.tree.structure(fresh)
    if ours != theirs:
        raise ValueError(
            f"`state` and `fresh` must have the same structure, but have {ours} and "
            f"{theirs}; make both with `init_state`, which draws every mask."
        )

    def choose(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        _checks.check_row_leaf(jax.tree_util.keystr(path), old, new, done.shape[0])
        return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)

    return jax.tree_util.tree_map_with_path(choose, state, fresh)


def held(
    module: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    draw: Callable[[jax.Array], jax.Array],
    *,
    whole_simulation: bool,
) -> jax.Array:
    """Finds the mask of a layer, or draws and stores it: rules 2, 6, 7 and 9.

    Args:
      module: a bound layer with ``rng_collection`` and ``state_collection``.
      name: the name of the leaf.
      shape: the shape that fits the input.
      dtype: the dtype of the leaf.
      draw: makes the mask from a key.
      whole_simulation: the call covers all time steps, so that the mask need
        not outlive it.

    Returns:
      The mask.

    Raises:
      ValueError: the stored mask does not fit.
      RuntimeError: the mask can not be kept where it would have to be, or would
        leak out of a raw JAX transform.
      flax.errors.InvalidRngError: the stream is missing.
    """
    collection = module.state_collection
    where = path_of(module, name)
    if module.has_variable(collection, name):
        stored: jax.Array = module.get_variable(collection, name)
        _checks.check_stored_mask(where, stored, shape, dtype)
        return stored

    kept = module.is_mutable_collection(collection)
    if not kept and not whole_simulation:
        raise RuntimeError(
            f"The collection '{collection}' must be mutable or hold a mask at {where}: a "
            f"single step that can not keep its mask would draw another one at every "
            f"step. Call `apply(..., mutable=['{collection}'])` and pass the returned "
            f"state on, or start from `init_state(...)`; for inference, "
            f"`deterministic=True`."
        )
    if kept:
        check_trace(module.scope, f"The mask {where}")
    _check_stream(module, f"the mask {where}")
    # The key has the leaf's name in it and no counter: a mask does not depend on what
    # else was drawn, nor on how often a transform traced the layer.
    lazy_key = LazyRng.create(module.scope.rngs[module.rng_collection], name)
    mask = draw(lazy_key.as_jax_rng())
    if kept:
        module.put_variable(collection, name, mask)
    return mask


def fresh_key(module: Any, purpose: str) -> jax.Array:
    """Takes a new key from the stream of a layer at each call.

    Args:
      module: a bound layer with ``rng_collection``.
      purpose: what the key is for, in words.

    Returns:
      The key.

    Raises:
      flax.errors.InvalidRngError: the stream is missing.
    """
    _check_stream(module, purpose)
    key: jax.Array = module.make_rng(module.rng_collection)
    return key


def check_trace(scope: Scope, what: str) -> None:
    """Raises inside a raw JAX transform within a module: what is written would leak."""
    if scope.root.trace_level != tracers.current_trace():
        raise RuntimeError(
            f"{what} must not be written inside a raw JAX transform within a module "
            f"(`jax.lax.scan`, `jax.vmap`, `jax.jit`, ...): it would leak out of it as a "
            f"tracer. Use the lifted transform (`nn.scan`, `nn.vmap`, `nn.jit`) or "
            f"`MultiStep`, or make the state first with `init_state(...)`."
        )


def path_of(module: Any, *names: str) -> str:
    """Returns where a layer keeps its state, in words."""
    return name_of((module.state_collection, *module.path, *names))


def to_leaves(collection: Mapping[str, Any]) -> Leaves:
    """Flattens a collection to its leaves by path; empty branches vanish."""
    leaves: Leaves = traverse_util.flatten_dict(collection)
    return leaves


def from_leaves(leaves: Leaves) -> State:
    """Undoes :func:`to_leaves`."""
    state: State = traverse_util.unflatten_dict(leaves)
    return state


def _check_stream(module: Any, purpose: str) -> None:
    # Flax would fall back to the stream of the parameters.
    stream = module.rng_collection
    if not module.has_rng(stream):
        raise errors.InvalidRngError(
            f"Drawing {purpose} needs the stream '{stream}', but `rngs` has none of that "
            f"name; call `apply(..., rngs={{'{stream}': key}})`."
        )


def name_of(path: tuple[Any, ...]) -> str:
    """Returns a path in words."""
    # The number of a scope, in front of a path, says nothing to a reader.
    return "/".join(part for part in path if isinstance(part, str))
