"""Argument checks of lost connections and of their inference, and their errors.

Every message names the argument, the rule, what was given and what
to type instead.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp

from snn_dropout._checks.masks import check_is_array


def check_count(name: str, count: Any) -> None:
    """Raises unless ``count`` is a static integer of 1 or more."""
    if isinstance(count, jax.core.Tracer):
        raise TypeError(
            f"`{name}` must be a static Python integer, but it is traced; close over it or "
            f"mark it static (`static_argnames`)."
        )
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise TypeError(
            f"`{name}` must be a static Python integer of 1 or more, but got {count!r} of "
            f"type {type(count).__name__}; write for example `{name}=16`."
        )
    if count < 1:
        raise ValueError(
            f"`{name}` must be 1 or more, but got {count}; write for example `{name}=16`."
        )


def check_packed_width(words: Any, width: int, length: int) -> None:
    """Raises unless ``words`` holds masks of ``length`` bits, ``width`` words each."""
    check_is_array("words", words)
    if words.dtype != jnp.uint32:
        raise TypeError(
            f"`words` must be uint32, one bit an element, but got {words.dtype}; make them "
            f"with `functional.pack_bits(mask)`."
        )
    if words.ndim == 0 or words.shape[-1] != width:
        raise ValueError(
            f"`words` must have a last axis of {width} words for masks of {length} "
            f"elements, but got shape {tuple(words.shape)}; make them with "
            f"`functional.pack_bits(mask)`."
        )


def check_masked_matmul(x: Any, kernel: Any, kernel_mask: Any, width: int) -> None:
    """Raises unless the three fit together."""
    for name, array in (("x", x), ("kernel", kernel), ("kernel_mask", kernel_mask)):
        check_is_array(name, array)
    examples, inputs = x.shape[:1], kernel.shape[:1]
    if (
        (x.ndim, kernel.ndim) != (3, 2)
        or x.shape[2:] != inputs
        or kernel_mask.shape != (*examples, *inputs, width)
    ):
        raise ValueError(
            f"`x` [N, S, I], `kernel` [I, O] and `kernel_mask` [N, I, ceil(O / 32)] must "
            f"fit together, but got shapes {tuple(x.shape)}, {tuple(kernel.shape)} and "
            f"{tuple(kernel_mask.shape)}; make the mask with `functional.pack_bits(mask)`."
        )
    if kernel_mask.dtype != jnp.uint32 or x.dtype != kernel.dtype:
        raise TypeError(
            f"`x` and `kernel` must have one dtype and `kernel_mask` uint32, but got "
            f"{x.dtype}, {kernel.dtype} and {kernel_mask.dtype}; cast with `astype`."
        )


def check_real(name: str, x: Any) -> None:
    """Raises unless ``x`` is an array of real numbers."""
    check_is_array(name, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(
            f"`{name}` must be real, because the variance of complex numbers is not "
            f"defined here, but got {x.dtype}; write for example `{name}.real`."
        )


def check_affine(x: Any, kernel: Any, bias: Any) -> None:
    """Raises unless ``x @ kernel + bias`` is defined for [..., I], [I, O] and [O]."""
    check_real("x", x)
    check_real("kernel", kernel)
    if len(kernel.shape) != 2:
        raise ValueError(
            f"`kernel` must be [I, O], but got shape {tuple(kernel.shape)}; reshape it."
        )
    inputs, outputs = kernel.shape
    if len(x.shape) == 0 or x.shape[-1] != inputs:
        raise ValueError(
            f"`x` must be [..., I] with the I = {inputs} input features of `kernel` "
            f"[I, O], but got shape {tuple(x.shape)}; pass a kernel for this input, or "
            f"`kernel.T` if it is [O, I]."
        )
    if bias is None:
        return
    check_real("bias", bias)
    if tuple(bias.shape) != (outputs,):
        raise ValueError(
            f"`bias` must be [O] with the O = {outputs} output features of `kernel` "
            f"[I, O], but got shape {tuple(bias.shape)}; pass a bias for this kernel, or "
            f"None."
        )


def check_normal(mean: Any, variance: Any) -> None:
    """Raises unless both are real arrays of one shape."""
    check_real("mean", mean)
    check_real("variance", variance)
    if tuple(mean.shape) != tuple(variance.shape):
        raise ValueError(
            f"`mean` and `variance` must have the same shape, one variance an element, "
            f"but got {tuple(mean.shape)} and {tuple(variance.shape)}; write "
            f"`jnp.broadcast_to(variance, mean.shape)` if they share one."
        )


def check_has_examples(mean: Any) -> None:
    """Raises unless ``mean`` is [N, O] or [T, N, O]."""
    if len(mean.shape) not in (2, 3):
        raise ValueError(
            f"`mean` must be [N, O] or [T, N, O], because the draws are shared by the N "
            f"examples, but got shape {tuple(mean.shape)}; reshape it, or add a batch "
            f"axis with `mean[None]`."
        )


def check_activation(activation: Any) -> None:
    """Raises unless ``activation`` is None or a callable, and no class of modules."""
    if isinstance(activation, type):
        raise TypeError(
            f"`activation` must be a function of one array, or an instance of a "
            f"module, but got the class {activation.__name__}; write for example "
            f"`activation={activation.__name__}()`."
        )
    if activation is not None and not callable(activation):
        raise TypeError(
            f"`activation` must be a function of one array, or None for the identity, "
            f"but got {activation!r} of type {type(activation).__name__}; write for "
            f"example `activation=jax.nn.relu`."
        )


def check_same_shape(given: Any, returned: Any) -> None:
    """Raises unless the activation returned an array of the shape it was given."""
    shape = getattr(returned, "shape", None)
    if shape != given.shape:
        what = type(returned).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(
            f"`activation` must return one number for each that it is given, but for "
            f"shape {tuple(given.shape)} it returned {what}; apply what changes the "
            f"shape to the result instead."
        )


def check_elementwise(elementwise: bool, activation: Any) -> None:
    """Raises unless the activation is seen or found to be elementwise."""
    if not elementwise:
        name = getattr(activation, "__name__", None) or repr(activation)
        raise ValueError(
            f"`activation` must be elementwise for the exact expectation, each number that "
            f"it returns a function of the same number of its input alone, but {name} "
            f"mixes them, as softmax and sort do, or can not be seen not to; write "
            f"`inference='sample'` (`functional.sampled_activation`), which averages whole "
            f"results. A function of several examples, as a maximum over the batch, has no "
            f"place in a layer: call it on what the layer returns."
        )


def check_inference(inference: Any, stateful: bool) -> None:
    """Raises unless the kind of inference is known and suits the activation."""
    if inference not in ("sample", "analytic"):
        raise ValueError(
            f"`inference` must be 'sample' (Gaussian draws) or 'analytic' (the exact "
            f"expectation), but got {inference!r}; write one of the two."
        )
    if inference == "analytic" and stateful:
        raise ValueError(
            "`inference='analytic'` needs an activation that is a function of its input, "
            "but got a module, which may have state; write `inference='sample'`."
        )


def check_features(x: Any, in_features: int) -> None:
    """Raises unless the last axis of ``x`` has ``in_features`` real elements."""
    if x.shape[-1] != in_features:
        raise ValueError(
            f"The last axis of `x` must have in_features={in_features} elements, but got "
            f"{x.shape[-1]} in shape {tuple(x.shape)}; write "
            f"`DropConnectLinear(in_features={x.shape[-1]}, ...)`."
        )
    check_real("x", x)
