"""From the key of a simulation to the key of one mask: the rule that all layers share."""

import hashlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Where the names of a path can be told apart when they are written one behind the other:
# all but the last one end in a number, as Flax's own names do.
_NAME = re.compile(r"[^\d].*?_\d+(?=\D)|.+$", re.DOTALL)
_LEAF = re.compile(r"(.*?)((?:kernel_|bias_)?mask)", re.DOTALL)


def mask_key(key: jax.Array, path: Sequence[str], name: str) -> jax.Array:
    """Derives the key of a mask from the key of the simulation and the mask's place.

    ``fold_in(key, SHA-1(path + name)[:32 bits])``

    It depends on nothing else: not on what else was drawn, nor on the order of the
    layers, nor on how often a transform traced them. So equal names and keys give equal
    masks, whatever module system the layers are of. The names are hashed one behind the
    other, as Flax does it by default; where that would leave it open where one name ends,
    ``("ab", "c")`` and ``("a", "bc")`` say, they are set apart by a zero byte.

    Example::

      >>> import jax
      >>> from snn_dropout.functional import mask_key
      >>> key = jax.random.key(0)
      >>> bool(mask_key(key, ('a', 'bc'), 'mask') == mask_key(key, ('ab', 'c'), 'mask'))
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
    text = "".join(names)
    if _parts(text) != names:
        text = "\0".join(names)
    word = int.from_bytes(hashlib.sha1(text.encode()).digest()[:4], "big")
    return jax.random.fold_in(key, jnp.uint32(word))


def _parts(text: str) -> tuple[str, ...] | None:
    """Reads the names back from their text, in the one way that counts."""
    leaf = _LEAF.fullmatch(text)
    return (*_NAME.findall(leaf[1]), leaf[2]) if leaf else None
