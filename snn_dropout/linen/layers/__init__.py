"""Linen modules: merge flags, find or draw the mask, call one function, return."""

from typing import TYPE_CHECKING

from snn_dropout._on_demand import on_demand
from snn_dropout.linen.layers.channels import Dropout1d as Dropout1d
from snn_dropout.linen.layers.channels import Dropout2d as Dropout2d
from snn_dropout.linen.layers.channels import Dropout3d as Dropout3d
from snn_dropout.linen.layers.dropout import Dropout as Dropout
from snn_dropout.linen.layers.dropout import DropPath as DropPath

if TYPE_CHECKING:
    from snn_dropout.linen.layers.dropconnect import DropConnectLinear as DropConnectLinear
    from snn_dropout.linen.layers.wrapper import DropConnect as DropConnect
else:
    __getattr__, __dir__ = on_demand(
        __name__, {"DropConnect": "wrapper", "DropConnectLinear": "dropconnect"}
    )

__all__ = [
    "DropConnect",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
]
