"""One row a layer: every law holds for every row. A new layer is one new row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

import snn_dropout as sd

STEPS = 4


@dataclass(frozen=True)
class Row:
    """A layer and what its laws need to know of it.

    Attributes:
      name: the name of the row.
      make: builds the layer from its fields.
      shape: the shape of one step's input, small.
      wide: another one, with enough mask elements for statistics.
      mask: the shape of the mask of `shape`.
      p: the probability of being dropped.
    """

    name: str
    make: Callable[..., nn.Module]
    shape: tuple[int, ...]
    wide: tuple[int, ...]
    mask: tuple[int, ...]
    p: float

    @property
    def scale(self):
        return np.float32(1 / (1 - self.p))

    def layer(self, step_mode="s", **fields):
        return self.make(p=self.p, step_mode=step_mode, **fields)

    def x_seq(self, shape=None, steps=STEPS):
        # No element is zero, so that a zero in the output is a dropped element.
        x = jax.random.normal(jax.random.key(11), (steps, *(shape or self.shape)))
        return x + 2 * jax.numpy.sign(x)


ROWS = [
    Row("Dropout", sd.Dropout, (4, 6), (64, 512), (4, 6), 0.5),
    Row("Dropout p=0.3", sd.Dropout, (4, 2, 3), (64, 512), (4, 2, 3), 0.3),
    Row("Dropout1d", sd.Dropout1d, (4, 5, 6), (64, 2, 512), (4, 1, 6), 0.2),
    Row("Dropout2d", sd.Dropout2d, (4, 3, 2, 6), (64, 2, 2, 512), (4, 1, 1, 6), 0.2),
    Row(
        "Dropout2d NCHW",
        partial(sd.Dropout2d, channel_axis=1),
        (4, 6, 3, 2),
        (64, 512, 2, 2),
        (4, 6, 1, 1),
        0.2,
    ),
    Row(
        "Dropout3d", sd.Dropout3d, (4, 2, 3, 2, 6), (64, 1, 2, 1, 512), (4, 1, 1, 1, 6), 0.2
    ),
    Row("DropPath", sd.DropPath, (6, 3, 2), (32768, 1, 2), (6, 1, 1), 0.4),
]

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
