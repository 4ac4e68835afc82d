"""Pure functions of arrays and keys; no Flax, no state, for any module system."""

from snn_dropout.functional.masks import apply_mask as apply_mask
from snn_dropout.functional.masks import draw_mask as draw_mask

__all__ = ["apply_mask", "draw_mask"]
