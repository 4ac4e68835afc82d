"""The parameters of ``DropConnectLinear``, to and from SpikingJelly's layout."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def from_spikingjelly(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Makes the parameters of ``DropConnectLinear`` from those of SpikingJelly's.

    ``kernel[i, o] = weight[o, i]``, the bias as it is

    The result serves ``flax.linen.Dense`` too, and the argument may be that of a
    ``torch.nn.Linear``: the layouts are the same.

    Example::

      >>> import numpy as np
      >>> import snn_dropout as sd
      >>> params = sd.from_spikingjelly({'weight': np.ones((3, 4)), 'bias': np.ones(3)})
      >>> {name: leaf.shape for name, leaf in params.items()}
      {'kernel': (4, 3), 'bias': (3,)}

    Args:
      state_dict: ``layer.state_dict()`` of one layer: ``weight`` ``[O, I]`` and, where
        there is one, ``bias`` ``[O]``; arrays, or tensors on the CPU.

    Returns:
      ``kernel`` ``[I, O]`` and, where there is one, ``bias`` ``[O]``: new NumPy arrays
      of the same dtype.

    Raises:
      TypeError: the argument is no mapping.
      ValueError: an entry is missing or unknown, or a shape does not fit.
    """
    return _convert("state_dict", state_dict, "weight", "kernel", "[O, I]", outputs_axis=0)


def to_spikingjelly(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Makes the parameters of SpikingJelly's layer from those of ``DropConnectLinear``.

    ``weight[o, i] = kernel[i, o]``, the bias as it is

    Example::

      >>> import numpy as np
      >>> import snn_dropout as sd
      >>> state = sd.to_spikingjelly({'kernel': np.ones((4, 3)), 'bias': np.ones(3)})
      >>> {name: leaf.shape for name, leaf in state.items()}
      {'weight': (3, 4), 'bias': (3,)}

    Args:
      params: ``variables['params']`` of one layer: ``kernel`` ``[I, O]`` and, where
        there is one, ``bias`` ``[O]``.

    Returns:
      ``weight`` ``[O, I]`` and, where there is one, ``bias`` ``[O]``: new NumPy arrays
      of the same dtype, which ``torch.from_numpy`` takes.

    Raises:
      TypeError: the argument is no mapping.
      ValueError: an entry is missing or unknown, or a shape does not fit.
    """
    return _convert("params", params, "kernel", "weight", "[I, O]", outputs_axis=1)


def _convert(
    argument: str, given: Any, old: str, new: str, letters: str, *, outputs_axis: int
) -> dict[str, np.ndarray]:
    remedy = (
        "`layer.state_dict()`" if argument == "state_dict" else "`variables['params']`"
    ) + " of a single layer"
    if not isinstance(given, Mapping):
        raise TypeError(
            f"`{argument}` must be a mapping of names to arrays, but got a "
            f"{type(given).__name__}; pass {remedy}."
        )
    if old not in given or not given.keys() <= {old, "bias"}:
        raise ValueError(
            f"`{argument}` must hold '{old}' and at most 'bias' beside it, but holds "
            f"{sorted(map(str, given))}; pass {remedy}."
        )
    matrix = np.array(given[old])
    if matrix.ndim != 2:
        raise ValueError(
            f"'{old}' in `{argument}` must be {letters}, but got shape {matrix.shape}; "
            f"pass {remedy}."
        )
    converted = {new: matrix.T.copy()}
    if "bias" in given:
        bias, outputs = np.array(given["bias"]), matrix.shape[outputs_axis]
        if bias.shape != (outputs,):
            raise ValueError(
                f"'bias' in `{argument}` must be [O] with the O = {outputs} outputs of "
                f"'{old}' {letters}, but got shape {bias.shape}; is '{old}' transposed? "
                f"Pass {remedy}."
            )
        converted["bias"] = bias
    return converted
