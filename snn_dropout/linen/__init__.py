"""The layers for Flax linen, their state, whole simulations and uncertainty."""

from typing import TYPE_CHECKING

from snn_dropout._on_demand import on_demand
from snn_dropout.linen.layers import Dropout as Dropout
from snn_dropout.linen.layers import Dropout1d as Dropout1d
from snn_dropout.linen.layers import Dropout2d as Dropout2d
from snn_dropout.linen.layers import Dropout3d as Dropout3d
from snn_dropout.linen.layers import DropPath as DropPath
from snn_dropout.linen.reset import reset_masks as reset_masks
from snn_dropout.linen.reset import reset_rows as reset_rows
from snn_dropout.linen.state import init_state as init_state
from snn_dropout.linen.time import MultiStep as MultiStep
from snn_dropout.linen.time import simulate as simulate

if TYPE_CHECKING:
    from snn_dropout.linen.layers import DropConnect as DropConnect
    from snn_dropout.linen.layers import DropConnectLinear as DropConnectLinear
    from snn_dropout.linen.uncertainty import monte_carlo as monte_carlo
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "DropConnect": "layers",
            "DropConnectLinear": "layers",
            "monte_carlo": "uncertainty",
        },
    )
