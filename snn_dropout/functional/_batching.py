"""Loops that stay as they are when they are vmapped."""

from collections.abc import Callable
from typing import Any

import jax


def in_turn(walk: Callable[..., Any]) -> Callable[..., Any]:
    """Makes ``jax.vmap`` of a loop one loop after the other, on one device.

    JAX would make one loop with a wider body, which suits a body of a few large
    operations; one that is small and stays in the cache becomes several times slower.
    On a mesh it does so still, for the devices may share what is vmapped.

    Args:
      walk: a function of arrays that loops over their first axis; differentiable by
        reverse mode, and so is the result.
    """

    @jax.custom_vjp
    def alone(*arrays: jax.Array) -> Any:
        return jax.custom_batching.sequential_vmap(walk)(*arrays)

    # A function with a rule for vmap has no gradient of its own.
    def forward(*arrays: jax.Array) -> tuple[Any, Any]:
        return alone(*arrays), arrays

    def backward(arrays: Any, cotangents: Any) -> Any:
        return jax.vjp(walk, *arrays)[1](cotangents)

    alone.defvjp(forward, backward)

    def choose(*arrays: jax.Array) -> Any:
        on_mesh = not jax.typeof(arrays[0]).sharding.mesh.empty
        return walk(*arrays) if on_mesh else alone(*arrays)

    return choose
