"""Parameters that lose connections: which of them, their masks, and what is left."""

from collections.abc import Callable, Sequence
from functools import partial

import jax

from snn_dropout._checks.parameters import check_any_chosen, check_choice, check_is_float
from snn_dropout.functional.bits import packed_width, unpack_bits
from snn_dropout.functional.masks import apply_mask, apply_stored_mask

Path = tuple[str, ...]
Filter = Callable[[Path], bool]


def is_kernel(path: Path) -> bool:
    """Whether a parameter is a kernel: the filter of those who give none."""
    return path[-1] == "kernel"


def chosen(parameters: Sequence[tuple[Path, jax.Array]], choose: Filter) -> list[bool]:
    """Returns which parameters a filter chooses.

    Args:
      parameters: paths, of which some may be equal, and arrays.
      choose: takes a path, and says whether the parameter loses connections.

    Raises:
      TypeError: the filter returned no bool, or chose a parameter of integers.
      ValueError: it chose none.
    """
    choices = []
    for path, parameter in parameters:
        choice = choose(path)
        check_choice(path, choice)
        if choice:
            check_is_float(path, parameter)
        choices.append(bool(choice))
    check_any_chosen(any(choices), [path for path, _ in parameters])
    return choices


def mask_shape(parameter: jax.Array) -> tuple[int, ...]:
    """Returns the shape of a mask, unpacked: one for the whole batch, in front of all."""
    return (1, *parameter.shape)


def words_shape(parameter: jax.Array) -> tuple[int, ...]:
    """Returns the shape of a mask, packed."""
    *rows, length = mask_shape(parameter)
    return (*rows, packed_width(length))


def lose_connections(
    parameter: jax.Array, words: jax.Array, mask_p: jax.Array | None, p: float
) -> jax.Array:
    """Returns a parameter without the connections that its mask drops, scaled.

    ``where(mask, parameter, 0) / (1 - mask_p)``

    The backward pass keeps the packed mask.

    Args:
      parameter: of any shape.
      words: its mask, uint32 of :func:`words_shape`.
      mask_p: float32, one number: what the mask was drawn with; None for ``p``.
      p: what masks are drawn with now.
    """
    masked = jax.checkpoint(partial(_lose, p=p), prevent_cse=False)
    result: jax.Array = masked(parameter, words, mask_p)
    return result


def _lose(
    parameter: jax.Array, words: jax.Array, mask_p: jax.Array | None, p: float
) -> jax.Array:
    mask = unpack_bits(words, mask_shape(parameter)[-1]).reshape(parameter.shape)
    if mask_p is None:
        return apply_mask(parameter, mask, p)
    return apply_stored_mask(parameter, mask, mask_p.reshape(()), p)
