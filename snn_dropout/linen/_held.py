"""The masks of a layer: found in the state, or drawn and stored, or refused."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax.core import Scope, tracers

from snn_dropout._checks import state as _state_checks
from snn_dropout.functional.keys import mask_key
from snn_dropout.linen._surroundings import (
    SIMULATION,
    drawn_in_vain,
    key_and_path,
    note_draw,
    note_find,
    root_of,
    sequences,
    shapes_of_masks,
    single_steps,
    slices_parameters,
    transforms_around,
    varies,
)
from snn_dropout.linen.state import MASK_NAMES, path_name, to_leaves


def held(
    module: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    draw: Callable[[jax.Array], jax.Array],
    *,
    whole_simulation: bool,
    of: str = "input",
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
      of: what the mask has to fit, in words.

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
        known = tuple(stored.shape) in shapes_of_masks(module.scope, name)
        _state_checks.check_stored_mask(where, stored, shape, dtype, known=known, of=of)
        note_find(module.scope, name, tuple(stored.shape))
        return stored
    if module.has_variable(collection, f"{name}_p"):
        _state_checks.refuse_lone_rate(path_of(module, f"{name}_p"), name)

    kept = module.is_mutable_collection(collection)
    if not kept and not whole_simulation:
        around = transforms_around(module.scope)
        simulated = SIMULATION in around
        if simulated:  # what is around the simulation has no part in what its steps keep
            around = around[: around.index(SIMULATION)]
        remedy = _lifted_remedy(module, around)
        _state_checks.refuse_unkept(where, shape, collection, remedy, simulated=simulated)
    if kept:
        check_trace(module.scope, f"The mask {where}")
    _check_stream(module, f"the mask {where}", holds=True)
    if kept and not whole_simulation:
        _check_steps(module, name)
    for other in shapes_of_masks(module.scope, name):
        _state_checks.check_one_shape(where, shape, other)
    key, path = key_and_path(module.scope, module.rng_collection)
    mask = draw(mask_key(key, path, name))
    note_draw(module.scope, name, shape)
    if kept:
        module.put_variable(collection, name, mask)
    return mask


def held_rate(
    module: Any, mask: jax.Array, fill: Callable[[], jax.Array], *, drawn: bool
) -> jax.Array | None:
    """Finds the probability that a mask was drawn with, or stores it: rule 7.

    Args:
      module: a bound layer with ``state_collection``.
      mask: its mask, from :func:`held`.
      fill: makes the leaf ``mask_p`` of the ``p`` of the layer.
      drawn: whether this call drew the mask.

    Returns:
      The stored probability, ``[N, ...]``; None where it is that of the layer, for
      this call drew the mask, or somebody put it there alone.

    Raises:
      ValueError: the stored probability does not fit the mask.
    """
    collection = module.state_collection
    if drawn:
        if module.is_mutable_collection(collection):
            module.put_variable(collection, "mask_p", fill())
        return None
    if not module.has_variable(collection, "mask_p"):
        return None
    stored: jax.Array = module.get_variable(collection, "mask_p")
    _state_checks.check_stored_rate(path_of(module, "mask_p"), stored, mask.shape)
    return stored


def check_single_step(module: Any, shape: tuple[int, ...]) -> None:
    """Raises if what a layer takes for one step seems to be a whole sequence.

    Args:
      module: a bound layer in mode ``'s'`` that draws a mask.
      shape: the shape of its input.

    Raises:
      ValueError: something else in the model ran over all steps of that shape.
    """
    where = path_of(module)
    single_steps(module.scope)[shape] = where
    for (steps, examples), whole in sequences(module.scope).items():
        _state_checks.check_one_step(where, shape, steps, examples, whole)


def note_sequence(module: Any, x_seq: Any) -> None:
    """Notes that a module runs over all steps, for layers in mode ``'s'`` beside it.

    Args:
      module: a bound module.
      x_seq: its input, a pytree of arrays ``[T, N, ...]``.

    Raises:
      ValueError: such a layer took a whole sequence for one step before.
    """
    whole = "/".join((*module.path, type(module).__name__))
    for leaf in jax.tree.leaves(x_seq):
        if jnp.ndim(leaf) < 2:
            continue
        steps, examples = jnp.shape(leaf)[:2]
        sequences(module.scope)[steps, examples] = whole
        for shape, where in single_steps(module.scope).items():
            _state_checks.check_one_step(where, shape, steps, examples, whole)


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
    if root_of(scope).trace_level != tracers.current_trace():
        raise RuntimeError(
            f"{what} must not be written inside a raw JAX transform within a module "
            f"(`jax.lax.scan`, `jax.vmap`, `jax.jit`, ...): it would leak out of it as a "
            f"tracer. Use the lifted transform (`nn.scan`, `nn.vmap`, `nn.jit`) or "
            f"`MultiStep`, or make the state first with `init_state(...)`."
        )


def path_of(module: Any, *names: str) -> str:
    """Returns where a layer keeps its state, in words."""
    return path_name((module.state_collection, *module.path, *names))


def _check_stream(module: Any, purpose: str, *, holds: bool = False) -> None:
    # Flax would fall back to the stream of the parameters.
    stream = module.rng_collection
    if not module.has_rng(stream):
        remedy = _lifted_remedy(module, holds=holds)
        raise errors.InvalidRngError(_state_checks.missing_stream(purpose, stream, remedy))


def _check_steps(module: Any, name: str) -> None:
    """Raises inside a lifted loop that would draw a mask at each step.

    A scan over layers, each with a mask of its own, goes through their parameters.
    """
    scope, around = module.scope, transforms_around(module.scope)
    if _right_below("while_loop", around):
        _state_checks.refuse_redrawn(path_of(module, name), _lifted_remedy(module))
    if not _right_below("scan", around) or slices_parameters(scope):
        return
    key = scope.rngs[module.rng_collection].rng
    # Flax traces a scan twice. What is broadcast is there at the second time. (A key that
    # `nn.vmap` splits looks as if it came from the scan.)
    if (around[0] == "scan" and varies(key)) or drawn_in_vain(scope, name):
        _state_checks.refuse_redrawn(path_of(module, name), _lifted_remedy(module))


def _right_below(transform: str, around: Sequence[str]) -> bool:
    return [name for name in around if name != "vmap"][:1] == [transform]


def _lifted_remedy(
    module: Any, around: Sequence[str] | None = None, *, holds: bool = True
) -> str | None:
    scope, all_around = module.scope, transforms_around(module.scope)
    around = all_around if around is None else around
    sliced = slices_parameters(scope) if _right_below("scan", around) else None
    state = to_leaves(scope.root.variables().get(module.state_collection, {}))
    return _state_checks.lifted_remedy(
        around,
        sliced,
        module.state_collection if holds else None,
        module.rng_collection,
        neurons=any(path[-1] not in MASK_NAMES for path in state),
        simulated=SIMULATION in all_around,
    )
