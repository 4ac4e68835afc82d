"""The state of a simulation: who creates, reads, replaces and drops a mask.

Masks live in the collection ``"state"``, beside the neurons' membranes:

=============== ===================================================== =============
leaf            dtype and shape                                       of
=============== ===================================================== =============
``mask``        bool, one step's input with the shared axes 1         the dropouts
``mask_p``      float32 ``[N, 1, ...]``, the ``p`` it was drawn with  the dropouts
                (longer axes where that is an array of several)
``kernel_mask`` uint32, one bit a connection, ``[N, ...]``            DropConnect
``bias_mask``   bool ``[N, O]``                                       DropConnect
=============== ===================================================== =============

(The last two are of ``DropConnectLinear``. The wrapper ``DropConnect`` keeps ``mask``,
uint32 of one bit a connection, and ``mask_p`` for each parameter ``a/kernel``, in the
branch ``a/kernel_mask``; their first axis is 1, for the batch that shares them.)

1. ``init`` makes parameters and the neurons' first state, and no mask; a
   dropout layer is then the identity and needs no stream. So the state that
   ``init`` returns can be the start of every simulation.
2. The first training call draws the mask and stores it; later calls read it.
   It is never written again.
3. A new simulation starts from the first state, or from ``reset_masks`` where
   neurons run on, with a new key; single examples with ``reset_rows``, but for
   masks that all examples share (``broadcast_dims``).
4. A hand-written ``lax.scan`` starts from :func:`init_state`, which draws every
   missing mask and leaves every leaf that exists alone.
5. Inference is the identity, needs no stream and touches no state.
6. A call that is the whole simulation (mode ``'m'``, ``MultiStep``,
   ``simulate``) runs on a state of its own where the state is not mutable; in
   mode ``'s'`` that would be a new mask at every step, and raises. So it does in
   ``nn.scan`` and ``nn.RNN`` over time, unless they broadcast the state under one
   key (behind ``nn.remat`` or ``nn.jit`` inside of them it can not be seen).
7. A stored mask that does not fit the input raises, and so does a layer that is
   called with inputs of two widths: each needs its own. A simulation keeps the masks
   and the probability that it started with: another ``p`` counts from the next
   simulation on, but for a static 0, which drops nothing and reads nothing.
8. A mask belongs to (key, module path, shape of one step), so every way of
   running a simulation gives the same masks.
9. A mask is never born inside a raw JAX transform within a module: that raises
   (behind a lifted transform inside the raw one it can not be seen).
10. Neurons are other people's: any collection can be carried, see
    ``MultiStep`` and ``simulate``, also one that is made in the first call only.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
from flax import traverse_util
from flax.core import DenyList, apply
from flax.core.scope import CollectionFilter

from snn_dropout._checks import time as _time_checks
from snn_dropout._checks.modules import check_module
from snn_dropout.functional._sequences import with_axes_in_front
from snn_dropout.linen._surroundings import naming_what_is_hidden

MASK_NAMES = ("mask", "mask_p", "kernel_mask", "bias_mask")

State = dict[str, Any]
Leaves = dict[tuple[Any, ...], Any]
Naming = Callable[[tuple[Any, ...]], str]
Axes = tuple[Any, ...]  # lengths of axes in front of those of one step's input


class Run(Protocol):
    """Takes leaves, calls the model on one step and returns the leaves after it."""

    def __call__(self, leaves: Leaves, axes: Axes = ()) -> Leaves:
        """Calls it, if ``axes`` are given on a step with those in front."""
        ...


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

    Call it as the steps will call the model: in training, ``train=True`` say, or
    ``deterministic=False``. In inference nothing is drawn, and the state has no masks.

    Example::

      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> model = nn.Sequential([nn.Dense(3), sd.Dropout(0.5, deterministic=False)])
      >>> x_seq = jnp.ones((5, 2, 4))                                 # [T, N, I]
      >>> variables = model.init(jax.random.key(0), x_seq[0])
      >>> rngs = {'dropout': jax.random.key(1)}
      >>> state = sd.init_state(model, variables, x_seq[0], rngs=rngs)
      >>> jax.tree.map(jnp.shape, state)
      {'layers_1': {'mask': (2, 3), 'mask_p': (2, 1)}}
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
      **kwargs: further keyword arguments of the model, ``train=True`` among them.

    Returns:
      The collection ``"state"``: pass it as ``{'params': ..., 'state': state}``.

    Raises:
      flax.errors.InvalidRngError: a mask is to be drawn and its stream is missing.
      ValueError: a stored mask does not fit ``x``, a leaf is of another batch or of a
        whole sequence, or the model makes a leaf of its state only in its first call, so
        that no carry can hold it before.
    """
    check_module("model", model, nn.Module)

    def run(
        leaves: Leaves, axes: Axes, initializing: bool, mutable: CollectionFilter
    ) -> Leaves:
        def call(scope: Any, *args: Any, **kwargs: Any) -> Any:
            return model.clone(parent=scope, _deep_clone=True)(*args, **kwargs)

        others = {name: variables[name] for name in variables if name != state_collection}
        stepped = apply(call, mutable=mutable, flags={"initializing": initializing})
        given, inputs = {**others, **from_leaves(leaves)}, with_axes_in_front(axes, x)
        with naming_what_is_hidden(mutable):
            _, mutated = stepped(given, inputs, *args, rngs=rngs, **kwargs)
        return state_of(mutated)

    def init(leaves: Leaves, axes: Axes = ()) -> Leaves:
        return run(leaves, axes, True, written_by_init("params" in variables))

    def step(leaves: Leaves, axes: Axes = ()) -> Leaves:
        return run(leaves, axes, False, DenyList("params"))

    def state_of(collections: Mapping[str, Any]) -> Leaves:
        return to_leaves({state_collection: collections.get(state_collection, {})})

    first, late = first_state(init, step, state_of(variables), path_name)
    _time_checks.check_none_late([path_name(path) for path in late])
    state: State = from_leaves(first)
    found: State = state.get(state_collection, {})
    return found


def first_state(init: Run, step: Run, given: Leaves, name: Naming) -> tuple[Leaves, Leaves]:
    """Completes a state so that one step leaves its structure unchanged, if it can be.

    Args:
      init: takes leaves, and returns them with those that ``init`` makes.
      step: takes leaves, runs one step and returns the leaves after it.
      given: the leaves that exist; they are returned as they are.
      name: says where a leaf is, in words.

    Returns:
      The given leaves, those that ``init`` makes, and every mask; and the leaves that
      only the first step makes, as they are after it: their first value is not known.

    Raises:
      ValueError: a given leaf is of another batch or of a whole sequence, or a leaf
        changes its shape.
    """
    made = made_by_init(init, given, name)
    _check_late(init, step, made, given, name)
    start = made | given
    ahead = step(start)
    for path, leaf in start.items():
        _time_checks.check_carried(name(path), leaf, ahead.get(path, leaf))
    # What this step changed has already moved: only what it drew is kept.
    new = {path: leaf for path, leaf in ahead.items() if path not in start}
    drawn = {path: leaf for path, leaf in new.items() if path[-1] in MASK_NAMES}
    late = {path: leaf for path, leaf in new.items() if path not in drawn}
    return start | drawn, late


def made_by_init(init: Run, given: Leaves, name: Naming) -> Leaves:
    """Returns what ``init`` makes, whatever is given, and checks what is given by it.

    Raises:
      ValueError: a given leaf is of another batch, or of a whole sequence.
    """
    try:
        made = init({})
    except Exception:
        if not given:
            raise
        made = None
    if made is None:
        return init(given)  # a module that reads what only its user makes
    _check_batch(given, made, name, lambda axes: init({}, axes))
    return made


def _check_late(init: Run, step: Run, made: Leaves, given: Leaves, name: Naming) -> None:
    # What only the first step makes is held against that of a simulation from nothing,
    # where there is one.
    others = {path: leaf for path, leaf in given.items() if path not in made}
    masks = {path: leaf for path, leaf in others.items() if path[-1] in MASK_NAMES}
    if len(others) == len(masks):
        return
    fresh: Leaves = {}
    with contextlib.suppress(Exception):
        fresh = jax.eval_shape(lambda: step(made | masks))
    _check_batch(others, fresh, name, lambda axes: step(init({}, axes), axes))


def _check_batch(
    given: Leaves, made: Leaves, name: Naming, of_sequence: Callable[[Axes], Leaves]
) -> None:
    for path, leaf in given.items():
        one = made.get(path, leaf)
        _time_checks.check_batch(name(path), leaf, one)
        # A user may give a leaf axes of its own; a sequence gives it those of time.
        if axes := _time_checks.more_axes(leaf, one):
            whole: Leaves = {}
            with contextlib.suppress(Exception):
                whole = jax.eval_shape(lambda axes=axes: of_sequence(axes))
            _time_checks.check_no_sequence(name(path), leaf, one, whole.get(path))


def written_by_init(has_params: bool) -> CollectionFilter:
    """Returns what a step that is told that ``init`` runs may write, for the first state.

    Some modules (``nn.WeightNorm``) write their parameters when ``init`` runs. Where
    there are no parameters at all, Flax's own error about them is the clearest.
    """
    return True if has_params else DenyList("params")


def to_leaves(collection: Mapping[str, Any]) -> Leaves:
    """Flattens a collection to its leaves by path; empty branches vanish."""
    leaves: Leaves = traverse_util.flatten_dict(collection)
    return leaves


def from_leaves(leaves: Leaves) -> State:
    """Undoes :func:`to_leaves`."""
    state: State = traverse_util.unflatten_dict(leaves)
    return state


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the path of a leaf in words."""
    return "/".join(path)
