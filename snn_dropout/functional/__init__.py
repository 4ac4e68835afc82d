"""Pure functions of arrays and keys; no Flax, no state, for any module system."""

from typing import TYPE_CHECKING

from snn_dropout._on_demand import on_demand
from snn_dropout.functional.bits import draw_bits as draw_bits
from snn_dropout.functional.bits import pack_bits as pack_bits
from snn_dropout.functional.bits import unpack_bits as unpack_bits
from snn_dropout.functional.keys import mask_key as mask_key
from snn_dropout.functional.masks import apply_mask as apply_mask
from snn_dropout.functional.masks import draw_mask as draw_mask

if TYPE_CHECKING:
    from snn_dropout.functional._closed_forms import Threshold as Threshold
    from snn_dropout.functional.connections import masked_matmul as masked_matmul
    from snn_dropout.functional.expectation import (
        expected_activation as expected_activation,
    )
    from snn_dropout.functional.expectation import moments as moments
    from snn_dropout.functional.expectation import sampled_activation as sampled_activation
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "Threshold": "_closed_forms",
            "expected_activation": "expectation",
            "masked_matmul": "connections",
            "moments": "expectation",
            "sampled_activation": "expectation",
        },
    )

__all__ = [
    "Threshold",
    "apply_mask",
    "draw_bits",
    "draw_mask",
    "expected_activation",
    "mask_key",
    "masked_matmul",
    "moments",
    "pack_bits",
    "sampled_activation",
    "unpack_bits",
]
