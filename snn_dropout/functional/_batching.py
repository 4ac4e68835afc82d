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
      walk: a function of arrays that loops over their first axis. The result has no
        derivative of its own.
    """
    alone = jax.custom_batching.sequential_vmap(walk)

    def choose(*arrays: jax.Array) -> Any:
        on_mesh = not jax.typeof(arrays[0]).sharding.mesh.empty
        return walk(*arrays) if on_mesh else alone(*arrays)

    return choose
