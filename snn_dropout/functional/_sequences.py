"""Sequences ``[T, ...]`` and their steps."""

from typing import Any

import jax
import jax.numpy as jnp


def first_step(x_seq: Any) -> Any:
    """Returns the input of the first step, zeros where there is no step."""

    def first(x: jax.Array) -> jax.Array:
        # A simulation of no steps still has a step's shape.
        steps = x.shape[0]
        if isinstance(steps, int) and steps == 0:
            return jnp.zeros(x.shape[1:], x.dtype)
        one: jax.Array = jax.lax.dynamic_index_in_dim(x, 0, keepdims=False)
        return one

    return jax.tree.map(first, x_seq)


def with_axes_in_front(axes: tuple[Any, ...], x: Any) -> Any:
    """Repeats one step along new axes in front, as a sequence ``[T, ...]`` has one."""
    if not axes:
        return x
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*axes, *jnp.shape(x))), x)
