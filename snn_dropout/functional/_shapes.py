"""The shape of a mask for one step's input: 1 along the axes that share its elements."""

from collections.abc import Sequence

from snn_dropout._checks.layers import check_shared_axes

Shape = tuple[int, ...]


def unit_mask_shape(step_shape: Sequence[int], broadcast_dims: Sequence[int] = ()) -> Shape:
    """Returns the shape of a mask with one element a unit, shared over ``broadcast_dims``.

    Args:
      step_shape: the shape of one step's input, ``[N, ...]``.
      broadcast_dims: the axes of it that share one mask element.

    Raises:
      ValueError: an axis is out of range, or given twice.
    """
    shared = check_shared_axes(broadcast_dims, step_shape)
    return tuple(1 if axis in shared else n for axis, n in enumerate(step_shape))


def example_mask_shape(step_shape: Sequence[int]) -> Shape:
    """Returns the shape of a mask with one element an example, ``[N, 1, ...]``."""
    return tuple(step_shape[:1]) + (1,) * (len(step_shape) - 1)


def channel_mask_shape(step_shape: Sequence[int], channel_axis: int) -> Shape:
    """Returns the shape of a mask with one element an example and channel."""
    kept_axes = (0, channel_axis % len(step_shape))
    return tuple(n if axis in kept_axes else 1 for axis, n in enumerate(step_shape))


def rate_shape(mask_shape: Sequence[int], p_shape: Sequence[int] = ()) -> Shape:
    """Returns the shape of what is stored of ``p`` beside a mask: a row an example.

    Args:
      mask_shape: the shape of the mask, ``[N, ...]``.
      p_shape: that of ``p``, which broadcasts to it; ``()`` for a number.

    Returns:
      ``[N, 1, ...]`` of the rank of the mask, with the lengths of ``p`` behind ``N``.
    """
    lengths = (1,) * (len(mask_shape) - len(p_shape)) + tuple(p_shape)
    return tuple(mask_shape[:1]) + lengths[1:]
