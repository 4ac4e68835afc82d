"""Dropout of units and of examples, drawn once per simulation and held over all steps."""

import math
from collections.abc import Sequence

import jax

from snn_dropout._checks import layers as _checks
from snn_dropout.functional._rates import Rate
from snn_dropout.functional._shapes import example_mask_shape, unit_mask_shape
from snn_dropout.linen.layers._held_dropout import HeldDropout


class Dropout(HeldDropout):
    """Drops units: one mask element per unit, held over the simulation.

    ``y[t] = where(mask, x[t], 0) / (1 - p)``,   ``mask ~ Bernoulli(1 - p)``, once

    The mask is stored as ``mask``, bool, of the shape of one step's input, beside
    it the ``p`` that it was drawn with, ``mask_p``. In mode ``'s'`` the collection
    ``"state"`` carries both from call to call, so another ``p`` counts from the next
    simulation on; in mode ``'m'`` one call is the whole simulation. See
    ``snn_dropout.linen.state``.

    ``p`` may be an array, traced or not, of one number or one a unit: a schedule is then
    one compiled program for all its values. It counts as float32 and is a constant for
    gradients (that of ``p`` is 0). A known array out of [0, 1] raises as a number does;
    a traced one can not: it is clipped, which ``checkify.float_checks`` reports, and
    a NaN drops all and makes what is scaled NaN. Only a static 0 draws and stores
    nothing.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> layer = sd.Dropout(p=0.5, step_mode='m')
      >>> x_seq = jnp.ones((4, 2, 3))                                 # [T, N, I]
      >>> y_seq = layer.apply({}, x_seq, deterministic=False,
      ...                     rngs={'dropout': jax.random.key(0)})
      >>> bool((y_seq == y_seq[:1]).all())                 # one mask for all steps
      True

    Attributes:
      p: the probability of being dropped in [0, 1]: a static number, or an array that
        broadcasts to the mask.
      step_mode: ``'s'`` for one step ``[N, ...]``, ``'m'`` for all ``[T, N, ...]``.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.
      broadcast_dims: the axes of one step's input, without ``T`` in either mode, that
        share one mask element; the mask is 1 along them. With 0 all examples share it,
        and none can be restarted alone, see :func:`reset_rows`.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training; without,
        spikes stay 0 and 1, and ``E[y] = (1 - p) x`` there, but ``x`` in inference.

    Source: Lee et al. 2020 (arXiv 1903.06379); SpikingJelly's ``layer.Dropout``.
    """

    broadcast_dims: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Checks the fields."""
        dims = _checks.check_broadcast_dims(self.broadcast_dims)
        object.__setattr__(self, "broadcast_dims", dims)
        super().__post_init__()

    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        _checks.check_rank("Dropout", x, step_mode, "N, ...", 0, math.inf)

    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        return unit_mask_shape(step_shape, self.broadcast_dims)


class DropPath(HeldDropout):
    """Drops whole examples (stochastic depth): one mask element per example.

    ``y[t, n] = where(mask[n], x[t, n], 0) / (1 - p)``

    Put it behind the residual branch, ``x + DropPath()(branch(x))``: the branch is
    lost for an example at all time steps. The mask is ``[N, 1, ...]``; the axis of
    time is never taken for the batch. Under ``jax.vmap`` over single examples keep a
    batch axis of 1, ``x[None]``, and give each example a key of its own: the first axis
    of ``[H, W, C]`` can not be told from a batch, and ``[I]`` raises.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> layer = sd.DropPath(p=0.2, step_mode='m')
      >>> x_seq = jnp.ones((4, 2, 8, 8, 3))                     # [T, N, H, W, C]
      >>> y_seq, updated = layer.apply({}, x_seq, deterministic=False, mutable=['state'],
      ...                              rngs={'dropout': jax.random.key(0)})
      >>> updated['state']['mask'].shape
      (2, 1, 1, 1)

    Attributes:
      p: the probability that an example loses the branch, in [0, 1]: a static number, or
        an array of one, or of ``[N, 1, ...]``, see :class:`Dropout`.
      step_mode: ``'s'`` for one step ``[N, F, ...]``, ``'m'`` for all ``[T, N, F, ...]``.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training; without,
        spikes stay 0 and 1, and ``E[y] = (1 - p) x`` there, but ``x`` in inference.

    Source: Huang et al. 2016, "Deep networks with stochastic depth".
    """

    p: Rate = 0.2

    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        _checks.check_rank("DropPath", x, step_mode, "N, ...", 1, math.inf)
        _checks.check_has_examples("DropPath", x, step_mode)

    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        return example_mask_shape(step_shape)
