"""What the dropout layers share: one mask, found, made or drawn, and applied."""

import abc
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout._checks.masks import check_rate, check_rates_fit, is_array
from snn_dropout.functional._rates import Rate, drops_nothing
from snn_dropout.functional.keys import mask_key
from snn_dropout.functional.masks import (
    apply_mask,
    apply_stored_mask,
    draw_mask_like,
    fill_like,
)
from snn_dropout.nnx._held import (
    MASKS,
    HeldMask,
    HoldingLayer,
    KeyOf,
    Values,
    fresh_key,
    like,
)

Streams = nnx.Rngs | nnx.RngStream


class HeldDropout(HoldingLayer):
    """What the layers share; each of them says which axes share one mask element."""

    p: Rate
    mask: HeldMask | None
    mask_p: HeldMask | None

    def __init__(
        self,
        p: Rate = 0.5,
        *,
        step_mode: str = "s",
        deterministic: bool | None = False,
        scale: bool = True,
        rng_collection: str = "dropout",
        rngs: Streams | None = None,
    ) -> None:
        check_rate(p)
        _nnx_checks.check_rngs(rngs, (nnx.Rngs, nnx.RngStream))
        self.p = p
        self.step_mode = step_mode
        self.deterministic = deterministic
        self.scale = scale
        self.rng_collection = rng_collection
        if isinstance(rngs, nnx.Rngs):
            rngs = rngs[rng_collection]
        self.rngs = nnx.data(None) if rngs is None else rngs.fork()
        self.mask = nnx.data(None)
        self.mask_p = nnx.data(None)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; ``p`` is state as an array, and structure as a number."""
        if name == "p":
            if isinstance(value, (numbers.Number, jax.Array, np.ndarray)):
                check_rate(value)
            # Flax decides that once, by the first value, and raises at another kind.
            value = nnx.data(value) if is_array(value) else nnx.static(value)
        super().__setattr__(name, value)

    def __call__(
        self,
        x: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: Streams | jax.Array | None = None,
    ) -> jax.Array:
        """Drops elements of ``x``, the same at every time step.

        Args:
          x: one step ``[N, ...]`` where ``step_mode`` is ``'s'``, all steps
            ``[T, N, ...]`` where it is ``'m'``.
          deterministic: True for inference (returns ``x``), False for training; it comes
            before the attribute.
          rngs: what mode ``'m'`` draws from outside of a simulation, an ``nnx.Rngs``, a
            stream or a key; it comes before the attribute.

        Returns:
          An array of the shape of ``x``.

        Raises:
          RuntimeError: mode ``'s'`` in training without a mask.
          ValueError: the rank is wrong, the mask or an array ``p`` does not fit, mode
            ``'m'`` is handed one step of a simulation, or has neither a mask nor a stream.
        """
        whole = self.step_mode == "m"
        if whole:
            self._check_whole()
        deterministic = _nnx_checks.choose_deterministic(
            type(self).__name__, self.deterministic, deterministic
        )
        self._check_rank(x, self.step_mode)
        self._note(x, self.step_mode)
        if drops_nothing(self.p) or (deterministic and not self._always_drops):
            return x
        found = self._find_masks(x)
        if found:
            if "mask_p" not in found or not self.scale:
                return apply_mask(x, found["mask"], self.p, scale=self.scale)
            return apply_stored_mask(x, found["mask"], found["mask_p"], self.p)
        if not whole:
            _nnx_checks.refuse_no_mask(type(self).__name__, "mask")
        return self.drop(x, fresh_key(self, rngs, "the mask"))

    def drop(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Applies the mask that a key gives, and holds nothing.

        Args:
          x: the input, as for ``__call__``; only dropped, whatever ``deterministic`` is.
          key: a key of ``jax.random``.

        Returns:
          An array of the shape of ``x``.
        """
        self._check_rank(x, self.step_mode)
        made = self._make(like(x), self._mask_shape_of(x), lambda n: mask_key(key, (), n))
        return apply_mask(x, made["mask"], self.p, scale=self.scale)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets what ``nnx.view`` sets.

        Args:
          deterministic: if True, nothing is dropped.
        """
        self._set_view(deterministic)

    def _find_masks(self, x: jax.Array) -> Values:
        shape, shadow = self._mask_shape_of(x), like(x)
        found = self._find(
            MASKS,
            ("mask", "mask_p"),
            shape,
            lambda layer, key_of: layer._make(shadow, shape, key_of),
        )
        name = type(self).__name__
        if "mask" in found:
            _nnx_checks.check_held_mask(name, "mask", found["mask"], shape, jnp.bool_)
        elif found:
            _nnx_checks.refuse_lone(name, "mask_p", "mask")
        if "mask_p" in found:
            _nnx_checks.check_held_rate(name, found["mask_p"], shape)
        return found

    def _make(self, x: Any, shape: tuple[int, ...], key_of: KeyOf) -> Values:
        mask = draw_mask_like(key_of("mask"), x, shape, self.p)
        return {"mask": mask, "mask_p": fill_like(mask, self.p)}

    def _renewed(self, key_of: KeyOf) -> Values:
        assert self.mask is not None
        mask = self.mask.get_value()
        return self._make(like(mask), mask.shape, key_of)

    def _mask_shape_of(self, x: jax.Array) -> tuple[int, ...]:
        shape = self._mask_shape(x.shape[1:] if self.step_mode == "m" else x.shape)
        check_rates_fit(self.p, shape)
        return shape

    @abc.abstractmethod
    def _check_rank(self, x: jax.Array, step_mode: str) -> None:
        """Raises unless the layer takes the rank of ``x`` in ``step_mode``."""

    @abc.abstractmethod
    def _mask_shape(self, step_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the mask for one step's input."""
