"""Argument checks of layers whose state is handed on, and their errors."""

from typing import Any, NoReturn


def check_carried_layer(layer: Any, kind: type) -> None:
    """Raises unless a layer is one whose mask can be drawn again from its key."""
    if not isinstance(layer, kind):
        raise TypeError(
            f"`layer` must be a dropout layer of `snn_dropout.nnx`, but got "
            f"{type(layer).__name__}; write for example `Carried(Dropout(0.5, rngs=rngs))`."
        )


def check_carried_mode(step_mode: str) -> None:
    """Raises unless a layer is for single steps."""
    if step_mode != "s":
        raise ValueError(
            f"`layer` must be in mode 's', for it is handed one step [N, ...] at a time "
            f"and would take the batch for time, but is in mode {step_mode!r}; leave "
            f"`step_mode` out."
        )


def refuse_no_state(layer: str) -> NoReturn:
    """Raises where a layer in training is handed the state of inference."""
    raise ValueError(
        f"`state` must be the key of a run where {layer} is in training, but got (), which "
        f"`initial_state` returns in inference; call `model.train()` before "
        f"`initial_state`, or `model.eval()` for inference."
    )
