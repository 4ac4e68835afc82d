"""Is an activation elementwise, each number of its result a function of one alone?

Most activations are seen to be, from their equations. Where those leave it open it is
tried: the result of a mixture of two inputs has to be the same mixture of their results,
to the bit.
"""

import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

from snn_dropout.functional._programs import KEPT, Activation, Program, Traced, trace

# The names of primitives that take operands of one shape number by number.
_BY_NUMBER = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    cbrt ceil clamp clz convert_element_type copy copy_p cos cosh digamma div eq eq_to
    erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac integer_pow
    is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg nextafter
    not or polygamma polynomial population_count pow pvary reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient
    sub tan tanh xor zeta
    """.split()  # noqa: SIM905
)
# The names of primitives that run an inner program, once or again and again.
_CALLS = frozenset(
    """
    checkpoint closed_call cond core_call custom_jvp_call custom_vjp_call jit pjit remat
    remat2 scan while
    """.split()  # noqa: SIM905
)

# The sizes of inputs that are tried. Of two that are mixed one is 16 times as large, so
# that a norm or a limit which is passed is passed by one of them.
_SIZES = [0.01 * 16**n for n in range(6)]
# Of a large input, or one of unknown size, so many time steps and examples are tried.
_LARGE, _SOME = 2**16, 7


def is_elementwise(traced: Traced, z: Any) -> bool:
    """Returns whether an activation is seen to be elementwise, or tried and found to be.

    Args:
      traced: the activation.
      z: its input, of which only shape and dtype are read.
    """
    jaxpr = traced.program.jaxpr
    if _is_seen(jaxpr, z.shape, set(jaxpr.invars[-1:])):
        return True
    wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    # A thread of its own, because what is tried has nothing to do with the transforms
    # and the mesh around it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_is_found, traced.activation, z.shape, z.dtype, wide).result()


def _is_seen(jaxpr: Any, shape: tuple[Any, ...], touched: set[Any]) -> bool:
    """Whether all that depends on the touched variables does so number by number.

    What is touched has the shape of the input, also inside of calls.
    """
    for equation in jaxpr.eqns:
        operands = [v for v in equation.invars if not isinstance(v, Literal)]
        if touched.isdisjoint(operands):
            continue
        if equation.primitive.name in _BY_NUMBER:
            if any(v.aval.shape != shape for v in equation.outvars):
                return False
        elif equation.primitive.name not in _CALLS or _takes_apart(equation, shape):
            return False
        else:
            inner: Any
            for inner in jaxprs_in_params(equation.params):
                inputs = {v for v in inner.invars if v.aval.shape == shape}
                if not _is_seen(inner, shape, inputs):
                    return False
        touched.update(v for v in equation.outvars if v.aval.shape == shape)
    return True


def _takes_apart(equation: Any, shape: tuple[Any, ...]) -> bool:
    """Whether a loop may walk along an axis of its inputs, or of its results."""
    if equation.primitive.name != "scan":
        return False
    body: Any
    (body,) = jaxprs_in_params(equation.params)
    if len(body.invars) != len(equation.invars):
        return True
    pairs = [*zip(equation.invars, body.invars, strict=True)]
    pairs += zip(body.outvars, equation.outvars, strict=True)
    return any(v.aval.shape == shape != other.aval.shape for v, other in pairs)


def _is_found(
    activation: Activation, shape: tuple[Any, ...], dtype: Any, wide: bool
) -> bool:
    with jax.enable_x64(wide), jax.transfer_guard("allow"), jax.debug_nans(False):
        for tried in _shapes(shape):
            try:
                traced = trace(activation, jax.ShapeDtypeStruct(tried, dtype))
                return _agrees(traced, tried, dtype)
            except Exception:  # it may take another shape only, or none that is tried
                continue
    return False


def _shapes(shape: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
    known = all(isinstance(length, int) for length in shape)
    if not known or math.prod(shape) > _LARGE:
        *leading, last = (n if isinstance(n, int) else _SOME for n in shape)
        yield (*(min(length, _SOME) for length in leading), last)
    if known:
        yield shape


def _known(value: Any) -> Any:
    """A value for one that a transform traces: any will do, for it is no input."""
    if not isinstance(value, jax.core.Tracer):
        return value
    return (0.5 + np.random.default_rng(0).random(value.shape)).astype(value.dtype)


def _agrees(traced: Traced, shape: tuple[int, ...], dtype: Any) -> bool:
    random = np.random.default_rng(0)
    values = [_known(value) for value in traced.values]
    compute = functools.partial(_compiled(traced.program), values)
    neighbours_differ = np.indices(shape).sum(0) % 2 == 0
    for size in _SIZES:
        for chosen in (neighbours_differ, random.random(shape) < 0.5):
            a, b = (
                (each * random.standard_normal(shape)).astype(dtype)
                for each in (size, 16 * size)
            )
            whole = np.asarray(compute(np.where(chosen, a, b)))
            parts = np.where(chosen, compute(a), compute(b))
            if not np.array_equal(whole, parts, equal_nan=True):
                return False
    return True


@functools.lru_cache(KEPT)
def _compiled(program: Program) -> Any:
    return jax.jit(program)
