"""The layers for Flax NNX, and whole simulations of NNX models.

A mask is made explicitly, by a key, for a model and the input of a step; a simulation is a
scope that makes masks and takes them away again.

1. A model that is made holds no mask, and needs no key for masks.
2. A simulation draws the masks of its layers before its first step; steps only read them.
3. A new simulation has a new key, ``simulate(model, x_seq, key=key)``; single examples of
   a stream restart by ``reset_rows``.
4. A scan or loop of one's own runs inside of ``with simulation(model, x, key=key):``.
5. Inference is the identity, needs no key and changes nothing.
6. Mode ``'m'`` is a whole simulation in one call: inside of ``simulation`` under its mask,
   elsewhere under one from the layer's ``rngs``. Mode ``'s'`` without a mask raises.
7. A mask that does not fit the input raises; a simulation keeps the masks and the
   probability that it started with.
8. A mask belongs to (key, path of the layer, shape of one step): every way of running a
   simulation, and the layers for linen under the same names, give the same masks.
9. Masks are put into a model where it was made, and not inside of a raw transform that
   closes over it: that raises.
10. Neurons are other people's: what is no parameter and no mask is carried from step to
    step and updated in place.
"""

from snn_dropout.nnx._held import HeldMask as HeldMask
from snn_dropout.nnx.dropconnect import DropConnectLinear as DropConnectLinear
from snn_dropout.nnx.layers import Dropout as Dropout
from snn_dropout.nnx.layers import Dropout1d as Dropout1d
from snn_dropout.nnx.layers import Dropout2d as Dropout2d
from snn_dropout.nnx.layers import Dropout3d as Dropout3d
from snn_dropout.nnx.layers import DropPath as DropPath
from snn_dropout.nnx.masks import init_masks as init_masks
from snn_dropout.nnx.masks import reset_masks as reset_masks
from snn_dropout.nnx.masks import reset_rows as reset_rows
from snn_dropout.nnx.spyx import Carried as Carried
from snn_dropout.nnx.time import simulate as simulate
from snn_dropout.nnx.time import simulation as simulation
from snn_dropout.nnx.uncertainty import monte_carlo as monte_carlo

__all__ = [
    "Carried",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "HeldMask",
    "init_masks",
    "monte_carlo",
    "reset_masks",
    "reset_rows",
    "simulate",
    "simulation",
]
