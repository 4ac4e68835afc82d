"""What kind of module an object is, and the errors where it is of the wrong kind.

Nothing here knows Flax: its modules are told by the place of their classes.
"""

from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LINEN, NNX = "linen", "NNX"
_KINDS = (jax.custom_jvp, jax.custom_vjp, jnp.ufunc, np.ufunc, type(jax.jit(abs)))
_FUNCTIONS = (FunctionType, BuiltinFunctionType, partial, *_KINDS)


def kind_of_module(module: Any) -> str | None:
    """Returns whether a module, or its class, is of linen or of NNX; None for others."""
    kind = module if isinstance(module, type) else type(module)
    places = {".".join(it.__module__.split(".")[:2]) for it in kind.__mro__}
    # What makes a module of NNX one of linen is a class in a file of NNX.
    return LINEN if "flax.linen" in places else NNX if "flax.nnx" in places else None


def check_module(name: str, module: Any, kind: type) -> None:
    """Raises unless ``module`` is an instance of ``kind``, the linen module."""
    if isinstance(module, kind):
        return
    given = type(module).__name__
    if isinstance(module, type):
        given = f"the class {module.__name__}"
    if kind_of_module(module) == NNX:
        given = f"{given} of NNX"
        remedy = (
            "use the layers and functions of `snn_dropout.nnx`, for example "
            "`snn_dropout.nnx.simulate(model, x_seq, key=key)`"
        )
    elif isinstance(module, type):
        remedy = f"write for example `{module.__name__}()`"
    elif isinstance(module, _FUNCTIONS):
        given = f"the function {getattr(module, '__name__', given)}"
        remedy = "wrap it, `nn.Sequential([function])`, if it remembers nothing"
    else:
        remedy = (
            "write a class of `nn.Module` whose memory is in variables, for example "
            "`self.variable('state', 'v', jnp.zeros_like, x)`: what other objects remember "
            "is lost"
        )
    raise TypeError(
        f"`{name}` must be an instance of a linen module, but got {given}; {remedy}."
    )


def check_activation_is_not(kind: str, activation: Any) -> None:
    """Raises where a layer of one kind is given neurons of the other."""
    if kind_of_module(activation) == kind:
        layers = "snn_dropout.nnx" if kind == NNX else "snn_dropout"
        raise TypeError(
            f"`activation` must be a function of one array, or a module of the kind of the "
            f"layer, but got one of {kind}; use `{layers}.DropConnectLinear` with it."
        )
