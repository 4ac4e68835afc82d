"""The probability of being dropped as an array: traced or not, one or one a unit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from snn_dropout._checks.masks import is_array

Rate = float | jax.Array | np.ndarray[Any, Any]


def drops_nothing(p: Rate) -> bool:
    """Returns whether ``p`` is a static 0: nothing is drawn, stored or read then.

    A 0 of an array keeps all as well, but may be another number in the next call.
    """
    return not is_array(p) and bool(p == 0)


def as_rates(p: jax.Array) -> jax.Array:
    """Returns an array ``p`` as float32 in [0, 1], a constant for gradients.

    What is out of range is clipped, which is an error under ``checkify.float_checks``;
    a NaN stays one.
    """
    rates = lax.stop_gradient(jnp.asarray(p)).astype(jnp.float32)
    # A check in words, by `checkify.debug_check`, would be an effect: it slows down each
    # call of a program without `checkify`, and keeps it from being saved. `checkify` sees
    # this square root, which is read, so that no transform takes it for dead.
    nan_if_out_of_range = jnp.sqrt(rates * (1 - rates))
    return jnp.where(jnp.isnan(nan_if_out_of_range), jnp.clip(rates, 0, 1), rates)


def scale_of(rates: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns ``1 / (1 - p)`` for rates from :func:`as_rates`; 0 where all is dropped."""
    q = 1 - rates.astype(np.finfo(dtype).dtype)
    none = q == 0
    return jnp.where(none, 0, 1 / jnp.where(none, 1, q)).astype(dtype)
