"""Dropout for libraries whose layers hand their state on, as those of spyx do."""

from typing import Any

import jax
from flax import nnx

from snn_dropout._checks import carried as _carried_checks
from snn_dropout.functional._rates import drops_nothing
from snn_dropout.nnx._dropout import HeldDropout
from snn_dropout.nnx._held import fresh_key


class Carried(nnx.Module):
    """A dropout layer whose state is handed on from step to step: the key of its mask.

    ``state = key``, once a run;   ``y[t], state = drop(x[t], mask(state)), state``

    Nothing in the model changes in a step, so that a ``jax.lax.scan`` may close over it:
    it goes into ``spyx.nn.Sequential``, and ``spyx.nn.run`` and ``spyx.optimize.fit`` hold
    its mask for a run and draw another one for the next. The mask is drawn again from its
    key at each step. In inference the state is ``()``. The key of a run comes from the
    stream of the layer, in ``initial_state``: under plain ``jax.jit`` a stream does not
    move on, and every run has the mask of the first; use ``nnx.jit``, as ``fit`` does.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.Carried(sdn.Dropout(0.5, rngs=nnx.Rngs(0)))
      >>> state = layer.initial_state(2)
      >>> x_seq = jnp.ones((4, 2, 3))
      >>> _, y_seq = jax.lax.scan(lambda state, x: layer(x, state)[::-1], state, x_seq)
      >>> bool((y_seq == y_seq[:1]).all())
      True

    Args:
      layer: ``Dropout``, ``Dropout1d``, ``Dropout2d``, ``Dropout3d`` or ``DropPath``, made
        with ``rngs``, in mode ``'s'``.

    Source: the protocol of spyx, ``spyx.nn.StatefulLayer``.
    """

    def __init__(self, layer: HeldDropout) -> None:
        _carried_checks.check_carried_layer(layer, HeldDropout)
        _carried_checks.check_carried_mode(layer.step_mode)
        self.layer = layer

    def initial_state(self, batch_size: int) -> Any:
        """Takes a new key from the stream: that of the mask of one run.

        Args:
          batch_size: the number of examples, which the mask learns from its input.

        Returns:
          The key, ``()`` in inference.
        """
        if self.layer.deterministic or drops_nothing(self.layer.p):
            return ()
        return fresh_key(self.layer, None, "the mask")

    def __call__(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Runs one step.

        Args:
          x: ``[N, ...]``.
          state: from :meth:`initial_state`.

        Returns:
          An array of the shape of ``x``, and the state.

        Raises:
          ValueError: the rank is wrong, or ``state`` is that of inference in training.
        """
        if self.layer.deterministic or drops_nothing(self.layer.p):
            return self.layer(x, deterministic=True), state
        if isinstance(state, tuple):
            _carried_checks.refuse_no_state(type(self.layer).__name__)
        return self.layer.drop(x, state), state
