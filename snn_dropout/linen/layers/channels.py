"""Dropout of whole channels, drawn once per simulation and held over all steps."""

from typing import ClassVar

import jax

from snn_dropout._checks import layers as _checks
from snn_dropout.functional._rates import Rate
from snn_dropout.functional._shapes import channel_mask_shape
from snn_dropout.linen.layers._held_dropout import HeldDropout


class _HeldChannelDropout(HeldDropout):
    """What the layers share that drop whole channels; each names its space axes."""

    p: Rate = 0.2
    channel_axis: int = -1
    space: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        _checks.check_channel_axis(self.channel_axis, 2 + len(self.space))
        super().__post_init__()

    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        axes = ["N", *self.space]
        axes.insert(self._channel_index(), "C")
        _checks.check_rank(
            type(self).__name__, x, step_mode, ", ".join(axes), len(axes), len(axes)
        )

    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        return channel_mask_shape(step_shape, self.channel_axis)

    def _channel_index(self) -> int:
        return self.channel_axis % (2 + len(self.space))


class Dropout1d(_HeldChannelDropout):
    """Drops whole channels of ``[N, L, C]``, held over the simulation.

    ``y[t, n, ..., c] = where(mask[n, c], x[t, n, ..., c], 0) / (1 - p)``

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> layer = sd.Dropout1d(p=0.2, step_mode='m')
      >>> x_seq = jnp.ones((4, 2, 16, 3))                     # [T, N, L, C]
      >>> y_seq, updated = layer.apply({}, x_seq, deterministic=False, mutable=['state'],
      ...                              rngs={'dropout': jax.random.key(0)})
      >>> updated['state']['mask'].shape
      (2, 1, 3)

    Attributes:
      p: the probability that a channel is dropped, in [0, 1]: a static number, or an
        array of one, or one a channel, ``[C]`` (``[C, 1]`` where ``channel_axis`` is
        1), see :class:`Dropout`.
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, L]``.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training; without,
        spikes stay 0 and 1, and ``E[y] = (1 - p) x`` there, but ``x`` in inference.

    Source: Tompson et al. 2015; ``torch.nn.Dropout1d``, with the mask held.
    """

    space: ClassVar[tuple[str, ...]] = ("L",)


class Dropout2d(_HeldChannelDropout):
    """Drops whole channels of ``[N, H, W, C]``, held over the simulation.

    ``y[t, n, ..., c] = where(mask[n, c], x[t, n, ..., c], 0) / (1 - p)``

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> layer = sd.Dropout2d(p=0.2, step_mode='m')
      >>> x_seq = jnp.ones((4, 2, 8, 8, 3))                     # [T, N, H, W, C]
      >>> y_seq, updated = layer.apply({}, x_seq, deterministic=False, mutable=['state'],
      ...                              rngs={'dropout': jax.random.key(0)})
      >>> updated['state']['mask'].shape
      (2, 1, 1, 3)

    Attributes:
      p: the probability that a channel is dropped, in [0, 1]: a static number, or an
        array of one, or one a channel, ``[C]`` (``[C, 1, 1]`` where ``channel_axis`` is
        1), see :class:`Dropout`.
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, H, W]``.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training; without,
        spikes stay 0 and 1, and ``E[y] = (1 - p) x`` there, but ``x`` in inference.

    Source: SpikingJelly's ``layer.Dropout2d``.
    """

    space: ClassVar[tuple[str, ...]] = ("H", "W")


class Dropout3d(_HeldChannelDropout):
    """Drops whole channels of ``[N, D, H, W, C]``, held over the simulation.

    ``y[t, n, ..., c] = where(mask[n, c], x[t, n, ..., c], 0) / (1 - p)``

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> layer = sd.Dropout3d(p=0.2, step_mode='m')
      >>> x_seq = jnp.ones((4, 2, 4, 8, 8, 3))                     # [T, N, D, H, W, C]
      >>> y_seq, updated = layer.apply({}, x_seq, deterministic=False, mutable=['state'],
      ...                              rngs={'dropout': jax.random.key(0)})
      >>> updated['state']['mask'].shape
      (2, 1, 1, 1, 3)

    Attributes:
      p: the probability that a channel is dropped, in [0, 1]: a static number, or an
        array of one, or one a channel, ``[C]`` (``[C, 1, 1, 1]`` where ``channel_axis`` is
        1), see :class:`Dropout`.
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, D, H, W]``.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training; without,
        spikes stay 0 and 1, and ``E[y] = (1 - p) x`` there, but ``x`` in inference.

    Source: Tompson et al. 2015; ``torch.nn.Dropout3d``, with the mask held.
    """

    space: ClassVar[tuple[str, ...]] = ("D", "H", "W")
