"""Dropout whose mask is drawn once per simulation and held over all time steps."""

import abc
import math
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from snn_dropout._checks import layers as _checks
from snn_dropout._checks import masks as _mask_checks
from snn_dropout.functional.masks import (
    apply_mask,
    apply_stored_mask,
    draw_mask_like,
    fill_like,
)
from snn_dropout.linen._held import check_single_step, held, held_rate, note_sequence
from snn_dropout.linen._scopes import check_whole


class _HeldDropout(nn.Module, abc.ABC):
    """What the layers share; each of them says which axes share one mask element."""

    p: float = 0.5
    step_mode: str = "s"
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    state_collection: str = "state"

    def __post_init__(self) -> None:
        _mask_checks.check_probability(self.p)
        _checks.check_step_mode(self.step_mode)
        _checks.check_deterministic(self.deterministic)
        super().__post_init__()

    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """Drops elements of ``x``, the same at every time step.

        Args:
          x: one step ``[N, ...]`` where ``step_mode`` is ``'s'``, all steps
            ``[T, N, ...]`` where it is ``'m'``.
          deterministic: True for inference (returns ``x``), False for training;
            given here or as the field, not both.

        Returns:
          An array of the shape of ``x``.

        Raises:
          ValueError: the rank is wrong, the stored mask does not fit, or
            ``deterministic`` is given twice or not at all.
          RuntimeError: the layer is called alone, or the mask can not be stored, see
            ``snn_dropout.linen.state``.
          flax.errors.InvalidRngError: the stream ``rng_collection`` is missing.
        """
        if self.step_mode == "m":
            return self.multi_step_forward(x, deterministic)
        return self.single_step_forward(x, deterministic)

    def single_step_forward(
        self, x: jax.Array, deterministic: bool | None = None
    ) -> jax.Array:
        """Runs one step ``[N, ...]``, whatever ``step_mode`` is; see ``__call__``."""
        return self._forward(x, deterministic, "s")

    def multi_step_forward(
        self, x_seq: jax.Array, deterministic: bool | None = None
    ) -> jax.Array:
        """Runs all steps ``[T, N, ...]``, whatever ``step_mode`` is; see ``__call__``."""
        return self._forward(x_seq, deterministic, "m")

    def create_mask(self, x: jax.Array) -> jax.Array:
        """Finds the mask of the simulation, or draws and stores it.

        Args:
          x: one step's input ``[N, ...]``; only its shape and sharding are read.

        Returns:
          The mask, bool; all True where this layer drops nothing (during
          ``init``, where the field ``deterministic`` is True, where ``p`` is 0).
        """
        self._check_rank(x, "s")
        if self._drops_nothing(bool(self.deterministic)):
            return jnp.ones(self._mask_shape(x.shape), bool)
        return self._held_mask(x, "s")[0]

    def _forward(
        self, x: jax.Array, deterministic: bool | None, step_mode: str
    ) -> jax.Array:
        _checks.check_bound(type(self).__name__, self.scope)
        if step_mode == "m":
            check_whole(self)
        deterministic = self._merge_deterministic(deterministic)
        self._check_rank(x, step_mode)
        if step_mode == "m":
            note_sequence(self, x)
        if self._drops_nothing(deterministic):
            return x
        mask, mask_p = self._held_mask(x, step_mode)
        if mask_p is None:
            return apply_mask(x, mask, self.p)
        return apply_stored_mask(x, mask, mask_p, self.p)

    def _merge_deterministic(self, deterministic: bool | None) -> bool:
        # A method of its own, so that Monte-Carlo dropout can intercept it.
        return _checks.merge_deterministic(
            type(self).__name__, self.deterministic, deterministic
        )

    def _drops_nothing(self, deterministic: bool) -> bool:
        return deterministic or self.p == 0 or self.is_initializing()

    def _held_mask(
        self, x: jax.Array, step_mode: str
    ) -> tuple[jax.Array, jax.Array | None]:
        whole = step_mode == "m"
        shape = self._mask_shape(x.shape[1:] if whole else x.shape)
        drawn = not self.has_variable(self.state_collection, "mask")
        if drawn and not whole:
            check_single_step(self, x.shape)
        mask = held(
            self,
            "mask",
            shape,
            jnp.bool_,
            lambda key: draw_mask_like(key, x, shape, self.p),
            whole_simulation=whole,
        )
        fill = partial(fill_like, mask, self.p)
        return mask, held_rate(self, mask, fill, drawn=drawn)

    @abc.abstractmethod
    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        """Raises unless the layer takes the rank of ``x`` in ``step_mode``."""

    @abc.abstractmethod
    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the mask for one step's input."""


class Dropout(_HeldDropout):
    """Drops units: one mask element per unit, held over the simulation.

    ``y[t] = where(mask, x[t], 0) / (1 - p)``,   ``mask ~ Bernoulli(1 - p)``, once

    The mask is stored as ``mask``, bool, of the shape of one step's input, beside
    it the ``p`` that it was drawn with, ``mask_p``. In mode ``'s'`` the collection
    ``"state"`` carries both from call to call, so another ``p`` counts from the next
    simulation on; in mode ``'m'`` one call is the whole simulation. See
    ``snn_dropout.linen.state``.

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
      p: the probability of being dropped, a static number in [0, 1].
      step_mode: ``'s'`` for one step ``[N, ...]``, ``'m'`` for all ``[T, N, ...]``.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.

    Source: Lee et al. 2020 (arXiv 1903.06379); SpikingJelly's ``layer.Dropout``.
    """

    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        _checks.check_rank("Dropout", x, step_mode, "N, ...", 0, math.inf)

    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        return step_shape


class DropPath(_HeldDropout):
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
      p: the probability that an example loses the branch, a static number in [0, 1].
      step_mode: ``'s'`` for one step ``[N, F, ...]``, ``'m'`` for all ``[T, N, F, ...]``.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.

    Source: Huang et al. 2016, "Deep networks with stochastic depth".
    """

    p: float = 0.2

    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        _checks.check_rank("DropPath", x, step_mode, "N, ...", 1, math.inf)
        _checks.check_has_examples("DropPath", x, step_mode)

    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        return step_shape[:1] + (1,) * (len(step_shape) - 1)


class _HeldChannelDropout(_HeldDropout):
    """What the layers share that drop whole channels; each names its space axes."""

    p: float = 0.2
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
        kept_axes = (0, self._channel_index())
        return tuple(n if i in kept_axes else 1 for i, n in enumerate(step_shape))

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
      p: the probability that a channel is dropped, a static number in [0, 1].
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, L]``.

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
      p: the probability that a channel is dropped, a static number in [0, 1].
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, H, W]``.

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
      p: the probability that a channel is dropped, a static number in [0, 1].
      step_mode: ``'s'`` for one step, ``'m'`` for all, with ``T`` in front.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the mask is drawn from.
      state_collection: the collection the mask is stored in.
      channel_axis: the axis of ``C`` in one step's input; 1 for ``[N, C, D, H, W]``.

    Source: Tompson et al. 2015; ``torch.nn.Dropout3d``, with the mask held.
    """

    space: ClassVar[tuple[str, ...]] = ("D", "H", "W")
