"""Whole simulations: any single-step linen module over time, on ``jax.lax.scan``."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from snn_dropout._checks.layers import check_bound, check_flag
from snn_dropout._checks.modules import check_module
from snn_dropout._checks.time import (
    check_collections,
    check_first_time_step,
    check_mutable,
    check_no_method,
    check_time_axis,
)
from snn_dropout.functional._sequences import first_step
from snn_dropout.linen._held import note_sequence
from snn_dropout.linen._scopes import bind, check_whole, in_place
from snn_dropout.linen._simulation import lift, over_time


class MultiStep(nn.Module):
    """Runs a single-step module over all time steps with ``jax.lax.scan``.

    ``s[0], y[0] = step(s_first, x[0])``;   ``s[t], y[t] = step(s[t-1], x[t])``

    It is transparent: it has the parameter and state tree of the module it
    wraps, and the same masks for the same key. (A module made inline in a compact
    method keeps its own name: name that one, not ``MultiStep``.)

    Where ``"state"`` is mutable it starts from the state it finds and leaves the
    last one; where it is not, it runs on a state of its own and leaves nothing
    behind. A leaf that is missing
    is what ``init`` makes, a mask that is missing is drawn before the first
    step. Where neurons make a leaf only in their first call, that step runs before
    the scan. What is random anew at each step draws from ``fold_in(key, t)``, where ``t``
    goes on from ``first_time_step``.

    Every mutable collection but ``params`` is carried from step to step. What
    ``sow`` puts into ``intermediates`` is stacked over time instead.

    Example::

      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> model = sd.MultiStep(nn.Sequential([
      ...   nn.Dense(3), sd.Dropout(0.5, deterministic=False)]))
      >>> x_seq = jnp.ones((5, 2, 4))                                 # [T, N, I]
      >>> variables = model.init(jax.random.key(0), x_seq)
      >>> y_seq = model.apply(variables, x_seq, rngs={'dropout': jax.random.key(1)})
      >>> y_seq.shape
      (5, 2, 3)

    Attributes:
      module: the single-step module, in a class, inline or shared.
      state_collections: collections that are carried even where they are not
        mutable, for neurons that keep their state under another name.
      two_time_scales: whether each step of ``x_seq`` is a sequence of its own,
        ``[T1, T2, N, ...]``, and the module one of whole sequences. Otherwise layers in
        mode ``'m'`` and another ``MultiStep`` raise inside of this one, for they would
        take the batch for time.
    """

    module: nn.Module
    state_collections: tuple[str, ...] = ("state",)
    two_time_scales: bool = False

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_module("module", self.module, nn.Module)
        check_collections("state_collections", self.state_collections)
        meaning = "whether each step of `x_seq` is a sequence of its own"
        check_flag("two_time_scales", self.two_time_scales, meaning)
        super().__post_init__()

    def setup(self) -> None:
        """Gives a module that came from outside this module's own scope."""
        module, scope = self.module, self.scope
        assert scope is not None
        assert module.scope is not None
        if module.scope.parent == scope:
            bind(module, scope.rewound())

    def __call__(
        self,
        x_seq: Any,
        *args: Any,
        first_time_step: int | jax.Array = 0,
        **kwargs: Any,
    ) -> Any:
        """Runs the module once for each time step.

        Args:
          x_seq: the input ``[T, N, ...]``, or a pytree of such arrays; the module
            is called with ``x_seq[t]``. Batch first, ``[N, T, ...]`` as ``nn.RNN`` has
            it by default, can not be seen: turn it by ``jnp.swapaxes(x_seq, 0, 1)``.
          *args: passed on, the same at every step.
          first_time_step: the number of the first step of ``x_seq``, where it is a chunk
            of a longer simulation, as for :func:`simulate`.
          **kwargs: passed on, the same at every step.

        Returns:
          The outputs of all steps, ``[T, ...]``; during ``init`` the first one,
          ``T`` times.

        Raises:
          TypeError, ValueError: ``x_seq`` has no time axis, a leaf of the state is of
            another batch or of a whole sequence, or changes from step to step, or
            something that takes all steps is inside of what runs one step.
          RuntimeError: it is called alone, not by ``apply`` or in another module.
        """
        check_bound("MultiStep", self.scope)
        check_whole(self)
        steps = check_time_axis(x_seq)
        note_sequence(self, x_seq)
        check_first_time_step(first_time_step)
        if self.is_initializing():
            first = lift(partial(in_place, not self.two_time_scales), _step)
            y = first(self, first_step(x_seq), *args, **kwargs)
            return jax.tree.map(lambda y: jnp.broadcast_to(y, (steps, *jnp.shape(y))), y)

        settings = self.state_collections, self.two_time_scales, first_time_step
        run = lift(partial(over_time, *settings), _step)
        return run(self, x_seq, *args, **kwargs)


def simulate(
    model: nn.Module,
    variables: Mapping[str, Any],
    x_seq: Any,
    *args: Any,
    rngs: Any = None,
    mutable: str | Iterable[str] = (),
    first_time_step: int | jax.Array = 0,
    **kwargs: Any,
) -> tuple[Any, dict[str, Any]]:
    """Runs a whole simulation: ``model.apply`` over time with ``jax.lax.scan``.

    It is this loop, with the same masks bit for bit and outputs that differ by no
    more than a compiler rounds, and compiles one step instead of ``T``. Outside of
    ``jax.jit`` it compiles that step at every call: jit the simulation, or all of the
    training step::

      state = init_state(model, variables, x_seq[0], rngs={'dropout': key})
      for t, x in enumerate(x_seq, first_time_step):
        y, updated = model.apply(
          {**variables, 'state': state}, x,
          rngs={'dropout': fold_in(key, t)}, mutable=['state'])
        state = updated['state']

    A chunk of a longer simulation starts from the state that the last chunk returned,
    under the same key; ``first_time_step`` is the number of steps before it. Then the
    chunks are the whole, what is fresh at every step included. (A layer in mode ``'m'``
    numbers its own steps: there each chunk needs a key of its own, ``fold_in(key,
    chunk)``. Masks that are held are in the state already.)

    Example::

      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> model = nn.Sequential([nn.Dense(3), sd.Dropout(0.5, deterministic=False)])
      >>> x_seq = jnp.ones((5, 2, 4))                                 # [T, N, I]
      >>> variables = model.init(jax.random.key(0), x_seq[0])
      >>> y_seq, updated = sd.simulate(
      ...   model, variables, x_seq, rngs={'dropout': jax.random.key(1)})
      >>> y_seq.shape, updated['state']['layers_1']['mask'].shape
      ((5, 2, 3), (2, 3))

    Args:
      model: a single-step linen module.
      variables: its parameters and, where there is one, the state to start from;
        what is missing is what ``init`` makes.
      x_seq: the input ``[T, N, ...]``, or a pytree of such arrays. Batch first,
        ``[N, T, ...]`` as ``nn.RNN`` has it by default, can not be seen: turn it by
        ``jnp.swapaxes(x_seq, 0, 1)``.
      *args: further arguments of the model, the same at every step.
      rngs: the keys of the simulation, as for ``apply``.
      mutable: further collections that are carried from step to step and
        returned, such as ``batch_stats``; ``intermediates`` is stacked over time.
        What is missing of a collection is what ``init`` makes, also of one that
        ``sow`` adds to: give its zero in ``variables``.
      first_time_step: the number of the first step of ``x_seq`` in the simulation, an
        integer, which may be traced.
      **kwargs: further keyword arguments of the model, the same at every step.

    Returns:
      The outputs of all steps, ``[T, ...]``, and the mutated collections,
      ``"state"`` among them, as ``apply`` returns them.

    Raises:
      TypeError, ValueError: ``x_seq`` has no time axis, ``mutable`` holds
        ``'params'``, a leaf of the state is of another batch or of a whole sequence, or
        changes from step to step, or a layer in mode ``'m'`` or a ``MultiStep`` is in
        the model.
    """
    check_module("model", model, nn.Module)
    check_no_method(kwargs)
    carried = sorted({"state", *check_mutable(mutable)})
    multi_step = MultiStep(model.clone(parent=None), parent=None)
    y_seq, mutated = multi_step.apply(
        variables,
        x_seq,
        *args,
        rngs=rngs,
        mutable=carried,
        first_time_step=first_time_step,
        **kwargs,
    )
    return y_seq, dict(mutated)


def _step(multi_step: MultiStep, x: Any, /, *args: Any, **kwargs: Any) -> Any:
    return multi_step.module(x, *args, **kwargs)
