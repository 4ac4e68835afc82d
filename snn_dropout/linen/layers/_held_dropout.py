"""What all dropout layers share: modes and flags merged, one mask found or drawn."""

import abc
from dataclasses import field
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from snn_dropout._checks import layers as _checks
from snn_dropout._checks import masks as _mask_checks
from snn_dropout._checks.attributes import check_attributes
from snn_dropout.functional._rates import Rate, drops_nothing
from snn_dropout.functional.masks import (
    apply_mask,
    apply_stored_mask,
    draw_mask_like,
    fill_like,
)
from snn_dropout.linen._held import check_single_step, held, held_rate, note_sequence
from snn_dropout.linen._scopes import check_whole
from snn_dropout.linen._surroundings import SaysWhatIsNotHashed


class HeldDropout(SaysWhatIsNotHashed, nn.Module, abc.ABC):
    """What the layers share; each of them says which axes share one mask element."""

    p: Rate = 0.5
    step_mode: str = "s"
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    state_collection: str = "state"
    # By its name alone, so that a layer's own fields keep their places in front of it.
    scale: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the fields."""
        _mask_checks.check_rate(self.p)
        check_attributes(self)
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
          ValueError: the rank is wrong, the stored mask or an array ``p`` does not fit,
            or ``deterministic`` is given twice or not at all.
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
          ``init``, where the field ``deterministic`` is True, where ``p`` is a
          static 0).
        """
        self._check_rank(x, "s")
        shape = self._mask_shape(x.shape)
        if self._drops_nothing(bool(self.deterministic)):
            return jnp.ones(shape, bool)
        return self._held_mask(x, shape, whole=False)[0]

    def _forward(
        self, x: jax.Array, deterministic: bool | None, step_mode: str
    ) -> jax.Array:
        _checks.check_bound(type(self).__name__, self.scope)
        if step_mode == "m":
            check_whole(self)
        deterministic = self._merge_deterministic(deterministic)
        self._check_rank(x, step_mode)
        whole = step_mode == "m"
        shape = self._mask_shape(x.shape[1:] if whole else x.shape)
        if whole:
            note_sequence(self, x)
        if self._drops_nothing(deterministic):
            return x
        mask, mask_p = self._held_mask(x, shape, whole=whole)
        if mask_p is None or not self.scale:
            return apply_mask(x, mask, self.p, scale=self.scale)
        return apply_stored_mask(x, mask, mask_p, self.p)

    def _merge_deterministic(self, deterministic: bool | None) -> bool:
        # A method of its own, so that Monte-Carlo dropout can intercept it.
        return _checks.merge_deterministic(
            type(self).__name__, self.deterministic, deterministic
        )

    def _drops_nothing(self, deterministic: bool) -> bool:
        return deterministic or drops_nothing(self.p) or self.is_initializing()

    def _held_mask(
        self, x: jax.Array, shape: tuple[int, ...], *, whole: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        _mask_checks.check_rates_fit(self.p, shape)
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
