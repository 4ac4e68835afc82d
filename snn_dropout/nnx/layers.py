"""Dropout for Flax NNX whose mask is drawn once per simulation and held over all steps."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax

from snn_dropout._checks import layers as _checks
from snn_dropout.functional._rates import Rate
from snn_dropout.functional._shapes import (
    channel_mask_shape,
    example_mask_shape,
    unit_mask_shape,
)
from snn_dropout.nnx._dropout import HeldDropout


class Dropout(HeldDropout):
    """Drops units: one mask element per unit, held over the simulation.

    ``y[t] = where(mask, x[t], 0) / (1 - p)``,   ``mask ~ Bernoulli(1 - p)``, once

    In mode ``'s'`` the mask ``[N, ...]`` is that of the simulation: ``simulate``,
    ``simulation`` or ``init_masks`` make it, and without one the layer raises in training.
    In mode ``'m'`` one call is the whole simulation; outside of one its mask is drawn from
    ``rngs``, as ``nnx.Dropout`` does. For equal names and key masks are those of
    ``snn_dropout.Dropout``, bit for bit.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.Dropout(0.5, step_mode='m', rngs=nnx.Rngs(0))
      >>> y_seq = layer(jnp.ones((4, 2, 3)))                          # [T, N, I]
      >>> bool((y_seq == y_seq[:1]).all())                 # one mask for all steps
      True

    Args:
      p: the probability of being dropped in [0, 1]: a static number, or an array that
        broadcasts to the mask, which is state of the model. ``layer.p = rate`` sets it.
      broadcast_dims: the axes of one step's input, without ``T`` in either mode, that
        share one mask element.
      step_mode: ``'s'`` for one step ``[N, ...]``, ``'m'`` for all ``[T, N, ...]``.
      deterministic: True for inference, False for training; ``model.eval()`` and
        ``model.train()`` set it.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training.
      rng_collection: the stream of ``rngs`` that mode ``'m'`` draws from.
      rngs: an ``nnx.Rngs`` or a stream, of which the layer forks its own.

    Source: Lee et al. 2020 (arXiv 1903.06379); SpikingJelly's ``layer.Dropout``.
    """

    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        _checks.check_rank("Dropout", x, step_mode, "N, ...", 0, math.inf)

    def __init__(
        self, p: Rate = 0.5, *, broadcast_dims: Sequence[int] = (), **options: Any
    ) -> None:
        self.broadcast_dims = broadcast_dims
        super().__init__(p, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, checked as the argument is."""
        if name == "broadcast_dims":
            value = _checks.check_broadcast_dims(value)
        super().__setattr__(name, value)

    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        return unit_mask_shape(step_shape, self.broadcast_dims)


class DropPath(HeldDropout):
    """Drops whole examples (stochastic depth): one mask element per example.

    ``y[t, n] = where(mask[n], x[t, n], 0) / (1 - p)``

    Put it behind the residual branch, ``x + self.drop(self.branch(x))``: the branch is
    lost for an example at all time steps. The mask is ``[N, 1, ...]``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.DropPath(0.2)
      >>> y_seq = sdn.simulate(layer, jnp.ones((4, 2, 8, 8, 3)), key=jax.random.key(0))
      >>> y_seq.shape                                           # [T, N, H, W, C]
      (4, 2, 8, 8, 3)

    Args:
      p: the probability that an example loses the branch, in [0, 1]: a static number, or
        an array of one, or of ``[N, 1, ...]``, see :class:`Dropout`.
      step_mode: ``'s'`` for one step ``[N, F, ...]``, ``'m'`` for all ``[T, N, F, ...]``.
      deterministic: True for inference, False for training.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training.
      rng_collection: the stream of ``rngs`` that mode ``'m'`` draws from.
      rngs: an ``nnx.Rngs`` or a stream, of which the layer forks its own.

    Source: Huang et al. 2016, "Deep networks with stochastic depth".
    """

    def __init__(self, p: Rate = 0.2, **options: Any) -> None:
        super().__init__(p, **options)

    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        _checks.check_rank("DropPath", x, step_mode, "N, ...", 1, math.inf)
        _checks.check_has_examples("DropPath", x, step_mode)

    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        return example_mask_shape(step_shape)


class HeldChannelDropout(HeldDropout):
    """What the layers share that drop whole channels; each names its space axes."""

    space: ClassVar[tuple[str, ...]]

    def __init__(self, p: Rate = 0.2, *, channel_axis: int = -1, **options: Any) -> None:
        self.channel_axis = channel_axis
        super().__init__(p, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, checked as the argument is."""
        if name == "channel_axis":
            _checks.check_channel_axis(value, 2 + len(self.space))
        super().__setattr__(name, value)

    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        axes = ["N", *self.space]
        axes.insert(self._channel_index(), "C")
        name = type(self).__name__
        _checks.check_rank(name, x, step_mode, ", ".join(axes), len(axes), len(axes))

    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        return channel_mask_shape(step_shape, self.channel_axis)

    def _channel_index(self) -> int:
        return self.channel_axis % (2 + len(self.space))


class Dropout1d(HeldChannelDropout):
    """Drops whole channels of ``[N, L, C]``, held over the simulation.

    ``y[t, n, ..., c] = where(mask[n, c], x[t, n, ..., c], 0) / (1 - p)``

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.Dropout1d(0.2)
      >>> sdn.init_masks(layer, jnp.ones((2, 16, 3)), key=jax.random.key(0))
      >>> layer.mask.shape
      (2, 1, 3)

    Args:
      p: the probability that a channel is dropped, in [0, 1]: a static number, or an
        array of one, or one a channel, ``[C]`` (``[C, 1]`` where ``channel_axis`` is
        1), see :class:`Dropout`.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, L]``.
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training.
      rng_collection: the stream of ``rngs`` that mode ``'m'`` draws from.
      rngs: an ``nnx.Rngs`` or a stream, of which the layer forks its own.

    Source: Tompson et al. 2015; ``torch.nn.Dropout1d``, with the mask held.
    """

    space: ClassVar[tuple[str, ...]] = ("L",)


class Dropout2d(HeldChannelDropout):
    """Drops whole channels of ``[N, H, W, C]``, held over the simulation.

    ``y[t, n, ..., c] = where(mask[n, c], x[t, n, ..., c], 0) / (1 - p)``

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.Dropout2d(0.2)
      >>> sdn.init_masks(layer, jnp.ones((2, 8, 8, 3)), key=jax.random.key(0))
      >>> layer.mask.shape
      (2, 1, 1, 3)

    Args:
      p: the probability that a channel is dropped, in [0, 1]: a static number, or an
        array of one, or one a channel, ``[C]`` (``[C, 1, 1]`` where ``channel_axis`` is
        1), see :class:`Dropout`.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, H, W]``.
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training.
      rng_collection: the stream of ``rngs`` that mode ``'m'`` draws from.
      rngs: an ``nnx.Rngs`` or a stream, of which the layer forks its own.

    Source: Tompson et al. 2015; ``torch.nn.Dropout2d``, with the mask held.
    """

    space: ClassVar[tuple[str, ...]] = ("H", "W")


class Dropout3d(HeldChannelDropout):
    """Drops whole channels of ``[N, D, H, W, C]``, held over the simulation.

    ``y[t, n, ..., c] = where(mask[n, c], x[t, n, ..., c], 0) / (1 - p)``

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.Dropout3d(0.2)
      >>> sdn.init_masks(layer, jnp.ones((2, 4, 8, 8, 3)), key=jax.random.key(0))
      >>> layer.mask.shape
      (2, 1, 1, 1, 3)

    Args:
      p: the probability that a channel is dropped, in [0, 1]: a static number, or an
        array of one, or one a channel, ``[C]`` (``[C, 1, 1, 1]`` where ``channel_axis`` is
        1), see :class:`Dropout`.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, D, H, W]``.
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training.
      scale: whether what is kept is scaled by ``1 / (1 - p)`` in training.
      rng_collection: the stream of ``rngs`` that mode ``'m'`` draws from.
      rngs: an ``nnx.Rngs`` or a stream, of which the layer forks its own.

    Source: Tompson et al. 2015; ``torch.nn.Dropout3d``, with the mask held.
    """

    space: ClassVar[tuple[str, ...]] = ("D", "H", "W")
