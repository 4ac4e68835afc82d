"""One row a layer: every law holds for every row. A new layer is one new row."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import snn_dropout as sd
from snn_dropout import functional
from tests.depth import cases
from tests.neurons import LIF

STEPS = 3  # not as many as there are examples


@dataclass(frozen=True)
class Row:
    """A layer and what its laws need to know of it.

    Attributes:
      name: the name of the row.
      make: builds the layer from its fields.
      shape: the shape of one step's input, small.
      wide: another one, with enough mask elements for statistics.
      leaves: the masks that a simulation of `shape` stores, by their paths.
      p: the probability of being dropped, an array of them for one a unit.
      array: whether the layer is given it as an array.
      scaled: whether what is kept is scaled.
      exact: whether sums, which a compiler may reorder, play no part.
    """

    name: str
    make: Callable[..., nn.Module]
    shape: tuple[int, ...]
    wide: tuple[int, ...]
    leaves: dict[str, tuple[int, ...]] = field(default_factory=dict)
    p: float | np.ndarray = 0.5
    array: bool = False
    scaled: bool = True
    exact: bool = True

    @property
    def scale(self):
        if not self.scaled:
            return np.float32(1)
        if self.array:
            return 1 / (1 - np.float32(self.p))
        return np.asarray(1 / (1 - self.p), jax.dtypes.canonicalize_dtype(float))

    @property
    def held(self):
        return bool(self.leaves)

    @property
    def wrapped(self):
        """Whether it is a module in a wrapper, with one mask for the whole batch."""
        return "DropConnect of" in self.name

    def layer(self, step_mode="s", **fields):
        return self.make(p=self.p, step_mode=step_mode, **fields)

    def x_seq(self, shape=None, steps=STEPS):
        # No element is zero, so that a zero in the output is a dropped element.
        x = jax.random.normal(jax.random.key(11), (steps, *(shape or self.shape)))
        return x + 2 * jnp.sign(x)

    def variables(self, x, **fields):
        """Parameters and the neurons' first state."""
        return self.layer(**fields).init(jax.random.key(2), x, deterministic=False)

    def masks_in(self, state):
        """The stored masks, by their paths."""
        leaves = {"/".join(path): leaf for path, leaf in flatten_dict(state).items()}
        return {path: leaves[path] for path in self.leaves if path in leaves}

    def with_masks(self, state, masks):
        """A state with such masks in it."""
        leaves = {tuple(path.split("/")): leaf for path, leaf in masks.items()}
        return unflatten_dict({**flatten_dict(state), **leaves})

    def masks(self, x, rngs):
        """The masks of a batch, unpacked."""
        layer, variables = self.layer(deterministic=False), self.variables(x[:1])
        if self.wrapped:
            _, updated = layer.apply(variables, x, rngs=rngs, mutable=["state"])
            (words,) = self.masks_in(updated["state"]).values()
            features = variables["params"]["kernel"].shape[-1]
            return [functional.unpack_bits(words, features).reshape(-1, features)]
        if "DropConnect" not in self.name:
            _, updated = layer.apply(variables, x, rngs=rngs, mutable=["state"])
            return [updated["state"]["mask"]]
        (words, bias_mask), _ = layer.apply(
            variables, len(x), rngs=rngs, method="drop", mutable=["state"]
        )
        masks = [functional.unpack_bits(words, layer.out_features), bias_mask]
        return [mask for mask in masks if mask is not None]


def with_array(p=0.5, **fields):
    return sd.Dropout(jnp.float32(p), **fields)


# Axis 1 of its inputs has a length of 2.
PER_UNIT = np.array([[0.2], [0.5]])


def per_unit(p=PER_UNIT, **fields):
    return sd.Dropout(np.broadcast_to(p, (2, 1)), **fields)


DROPOUTS = [
    Row("Dropout", sd.Dropout, (4, 6), (64, 512), {"mask": (4, 6)}),
    Row("Dropout p=0.3", sd.Dropout, (4, 2, 3), (64, 512), {"mask": (4, 2, 3)}, p=0.3),
    Row("Dropout1d", sd.Dropout1d, (4, 5, 6), (64, 2, 512), {"mask": (4, 1, 6)}, p=0.2),
    Row(
        "Dropout2d",
        sd.Dropout2d,
        (4, 3, 2, 6),
        (64, 2, 2, 512),
        {"mask": (4, 1, 1, 6)},
        p=0.2,
    ),
    Row(
        "Dropout2d NCHW",
        partial(sd.Dropout2d, channel_axis=1),
        (4, 6, 3, 2),
        (64, 512, 2, 2),
        {"mask": (4, 6, 1, 1)},
        p=0.2,
    ),
    Row(
        "Dropout3d",
        sd.Dropout3d,
        (4, 2, 3, 2, 6),
        (64, 1, 2, 1, 512),
        {"mask": (4, 1, 1, 1, 6)},
        p=0.2,
    ),
    Row("DropPath", sd.DropPath, (6, 3, 2), (32768, 1, 2), {"mask": (6, 1, 1)}, p=0.4),
    Row(
        "Dropout shared axis",
        partial(sd.Dropout, broadcast_dims=(-2,)),
        (4, 3, 6),
        (64, 2, 512),
        {"mask": (4, 1, 6)},
        p=0.3,
    ),
    Row(
        "Dropout shared batch",
        partial(sd.Dropout, broadcast_dims=(0,)),
        (4, 2, 6),
        (2, 64, 512),
        {"mask": (1, 2, 6)},
        p=0.25,
    ),
    Row(
        "Dropout unscaled",
        partial(sd.Dropout, scale=False),
        (4, 6),
        (64, 512),
        {"mask": (4, 6)},
        scaled=False,
    ),
    Row(
        "Dropout array p",
        with_array,
        (4, 6),
        (64, 512),
        {"mask": (4, 6)},
        p=0.3,
        array=True,
    ),
    Row(
        "Dropout p per unit",
        per_unit,
        (4, 2, 6),
        (64, 2, 512),
        {"mask": (4, 2, 6)},
        p=PER_UNIT,
        array=True,
    ),
]


def drop_connect(*, invariant=False, use_bias=True, activation=nn.relu, **fields):
    # 40 outputs are no multiple of the 32 bits of a word; a small dtype of its own.
    return sd.DropConnectLinear(
        6, 40, use_bias, invariant=invariant, activation=activation, **fields
    )


MASKS = {"kernel_mask": (4, 6, 2), "bias_mask": (4, 40)}
CONNECTIONS = [
    Row("DropConnect fresh", drop_connect, (4, 6), (256, 6), exact=False),
    Row(
        "DropConnect invariant",
        partial(drop_connect, invariant=True),
        (4, 6),
        (256, 6),
        MASKS,
        p=0.3,
        exact=False,
    ),
    Row(
        "DropConnect without bias",
        partial(drop_connect, invariant=True, use_bias=False),
        (4, 6),
        (256, 6),
        {"kernel_mask": (4, 6, 2)},
        exact=False,
    ),
    Row(
        "DropConnect tokens",
        partial(drop_connect, invariant=True),
        (4, 3, 6),
        (256, 3, 6),
        MASKS,
        exact=False,
    ),
    Row(
        "DropConnect spiking",
        partial(drop_connect, invariant=True, activation=LIF()),
        (4, 6),
        (256, 6),
        MASKS,
        exact=False,
    ),
]


def dropped(module):
    return partial(sd.DropConnect, module)


WRAPPED = [
    Row(
        "DropConnect of Dense",
        dropped(nn.Dense(40)),
        (4, 6),
        (2, 512),
        {"kernel_mask/mask": (1, 6, 2)},
        p=0.3,
        exact=False,
    ),
    Row(
        "DropConnect of Conv",
        dropped(nn.Conv(5, (3,))),
        (4, 7, 6),
        (2, 7, 2048),
        {"kernel_mask/mask": (1, 3, 6, 1)},
        exact=False,
    ),
]

ROWS = DROPOUTS + CONNECTIONS + WRAPPED

# For what is slow: a row a kind of layer, with a probability whose masks compile fast.
KINDS = [
    replace(row, p=0.5)
    for row in ROWS
    if row.name
    not in (
        "Dropout p=0.3",
        "Dropout2d",
        "Dropout shared axis",
        "Dropout unscaled",
        "Dropout p per unit",
        "DropConnect without bias",
    )
]
# For what is slower still, or hardly depends on the layer.
FEW = [
    row
    for row in KINDS
    if row.name
    in ("Dropout", "Dropout2d NCHW", "DropConnect invariant", "DropConnect spiking")
]

# These stand for the rest, unless a test says otherwise: a mask an element, one that is
# shared over axes in the middle, rates that are an array, held connections, a state that
# moves, and a wrapped module.
STAND = (
    "Dropout p=0.3",
    "Dropout2d NCHW",
    "Dropout p per unit",
    "DropConnect invariant",
    "DropConnect spiking",
    "DropConnect of Dense",
)


def every(rows, choose=lambda row: True, short=STAND):
    """Runs a test for those rows that are chosen; those named in `short` stand for them."""
    chosen = [row for row in rows if choose(row)]
    return cases("row", chosen, lambda row: row.name in short, ids=lambda row: row.name)


every_row = every(ROWS)
# For laws whose programs take long to compile.
every_row_by_one_of_each = every(ROWS, short=("Dropout p=0.3", "DropConnect invariant"))
every_dropout = every(DROPOUTS)
every_connection = every(CONNECTIONS)
every_wrapped = every(WRAPPED, short=["DropConnect of Dense", "DropConnect of Conv"])
# Transforms and faults mostly test the transform: a dropout, held connections, a wrapper.
ONE_OF_BOTH = ("Dropout", "DropConnect invariant", "DropConnect of Dense")
every_kind = every(KINDS, short=ONE_OF_BOTH)
every_held_kind = every(KINDS, lambda row: row.held, ONE_OF_BOTH)
every_kind_of_dropout = every(KINDS, lambda row: "DropConnect" not in row.name, ONE_OF_BOTH)
every_kind_of_connection = every(KINDS, lambda row: "DropConnect" in row.name)
a_few_rows = every(FEW, short=ONE_OF_BOTH)
