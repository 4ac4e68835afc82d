"""From the key of a simulation to the key of one mask: the rule that all layers share."""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def mask_key(key: jax.Array, path: Sequence[str], name: str) -> jax.Array:
    """Derives the key of a mask from the key of the simulation and the mask's place.

    ``fold_in(key, SHA-1(path + name)[:32 bits])``

    It depends on nothing else: not on what else was drawn, nor on the order of the
    layers, nor on how often a transform traced them. So equal names and keys give equal
    masks, whatever module system the layers are of. The names are hashed one behind the
    other, as Flax does it by default.

    Example::

      >>> import jax
      >>> from snn_dropout.functional import mask_key
      >>> key = jax.random.key(0)
      >>> bool(mask_key(key, ('a', 'b'), 'mask') == mask_key(key, ('a', 'c'), 'mask'))
      False

    Args:
      key: the key of the simulation, typed or raw.
      path: the names of the modules above the mask, the outermost first.
      name: the name of the mask itself, ``"mask"``, ``"kernel_mask"`` or ``"bias_mask"``.

    Returns:
      The key.

    Source: Flax's keys of streams by path, ``flax.core.scope.LazyRng``.
    """
    names = (*path, name)
    word = int.from_bytes(hashlib.sha1("".join(names).encode()).digest()[:4], "big")
    return jax.random.fold_in(key, jnp.uint32(word))
