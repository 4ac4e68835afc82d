"""The checks of a layer's attributes, which are those of its arguments."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from snn_dropout._checks.connections import check_activation, check_count
from snn_dropout._checks.layers import check_deterministic, check_flag, check_step_mode

_MEANINGS = {
    "scale": "whether what is kept is scaled by 1 / (1 - p)",
    "use_bias": "whether there is a bias",
    "invariant": "whether masks are held over the simulation",
}


def _check_flag_named(name: str, flag: Any) -> None:
    check_flag(name, flag, _MEANINGS[name])


CHECKS: Mapping[str, Callable[[Any], None]] = {
    "step_mode": check_step_mode,
    "deterministic": check_deterministic,
    "activation": check_activation,
    **{name: partial(_check_flag_named, name) for name in _MEANINGS},
    **{
        name: partial(check_count, name)
        for name in ("in_features", "out_features", "samples_num")
    },
}


def check_attributes(layer: Any) -> None:
    """Raises unless those attributes that a layer has are what they may be."""
    for name, check in CHECKS.items():
        if hasattr(layer, name):
            check(getattr(layer, name))
