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
