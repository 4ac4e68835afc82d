"""Dropout for spiking neural networks in JAX and Flax, held over the simulation.

A spiking network runs T time steps per example. A mask that is redrawn at every
step averages itself away; here it is drawn once per simulation and held.

* ``Dropout``, ``Dropout1d``, ``Dropout2d``, ``Dropout3d``, ``DropPath``: linen
  layers, for single steps ``[N, ...]`` or all steps ``[T, N, ...]``;
* ``DropConnectLinear``: a linear layer that loses connections, and its inference;
* ``DropConnect``: any module, its kernels masked for a whole batch;
* ``simulate``, ``MultiStep``: any single-step module over time, by ``lax.scan``;
* ``monte_carlo``: the uncertainty of many simulations, each under its own masks;
* ``from_spikingjelly``, ``to_spikingjelly``: weights of ``DropConnectLinear``;
* ``init_state``, ``reset_masks``, ``reset_rows``: the collection ``"state"``;
* ``nnx``: the same layers and simulations for Flax NNX; imported when it is asked for;
* ``functional``: the pure functions below, for any module system.

Who creates, reads, replaces and drops a mask is said in ``snn_dropout.linen.state``.
"""

from typing import TYPE_CHECKING

from snn_dropout import functional as functional
from snn_dropout._on_demand import on_demand
from snn_dropout.linen import Dropout as Dropout
from snn_dropout.linen import Dropout1d as Dropout1d
from snn_dropout.linen import Dropout2d as Dropout2d
from snn_dropout.linen import Dropout3d as Dropout3d
from snn_dropout.linen import DropPath as DropPath
from snn_dropout.linen import MultiStep as MultiStep
from snn_dropout.linen import init_state as init_state
from snn_dropout.linen import reset_masks as reset_masks
from snn_dropout.linen import reset_rows as reset_rows
from snn_dropout.linen import simulate as simulate

if TYPE_CHECKING:
    from snn_dropout import nnx as nnx
    from snn_dropout.convert import from_spikingjelly as from_spikingjelly
    from snn_dropout.convert import to_spikingjelly as to_spikingjelly
    from snn_dropout.linen import DropConnect as DropConnect
    from snn_dropout.linen import DropConnectLinear as DropConnectLinear
    from snn_dropout.linen import monte_carlo as monte_carlo
else:
    # Who drops units alone waits for nothing else.
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "DropConnect": "linen",
            "DropConnectLinear": "linen",
            "from_spikingjelly": "convert",
            "monte_carlo": "linen",
            "nnx": "nnx",
            "to_spikingjelly": "convert",
        },
    )

__version__ = "0.2.0"

__all__ = [
    "DropConnect",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "MultiStep",
    "from_spikingjelly",
    "functional",
    "init_state",
    "monte_carlo",
    "reset_masks",
    "reset_rows",
    "simulate",
    "to_spikingjelly",
]
