"""The activation behind lost connections: in training, and averaged in inference."""

from typing import Any

import jax
from flax import nnx

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout.functional._averages import standard_deviation
from snn_dropout.functional._tokens import sample_tokens
from snn_dropout.functional.expectation import expected_activation
from snn_dropout.nnx._copies import average_of_copies, first_copies
from snn_dropout.nnx._engine import call_over_time
from snn_dropout.nnx._held import SAMPLES, KeyOf, Values, fresh_key


def activate(layer: Any, z_seq: jax.Array) -> jax.Array:
    """Applies the activation of a layer to all steps; a module is stepped through them.

    Args:
      layer: a ``DropConnectLinear``.
      z_seq: ``[T, N, ..., O]``.
    """
    if layer.activation is None:
        return z_seq
    if not isinstance(layer.activation, nnx.Module):
        result: jax.Array = layer.activation(z_seq)
        return result
    if layer.step_mode == "s":
        y: jax.Array = layer.activation(z_seq[0])
        return y[None]
    y_seq: jax.Array = call_over_time(layer.activation, z_seq)
    return y_seq


def infer(
    layer: Any, mean: jax.Array, variance: jax.Array, dtype: Any, rngs: Any
) -> jax.Array:
    """Averages the activation of a layer over Gaussian inputs, as its attributes say.

    Args:
      layer: a ``DropConnectLinear``.
      mean: ``[T, N, ..., O]``.
      variance: of the same shape.
      dtype: that of what neurons are given.
      rngs: what a call was given to draw samples from, or None.
    """
    if layer.inference == "analytic":
        return expected_activation(layer.activation, mean, variance)
    key = fresh_key(layer, rngs, "the samples (`inference='analytic'` takes no key)")
    if not isinstance(layer.activation, nnx.Module):
        return sample_tokens(key, layer.activation, mean, variance, layer.samples_num)
    z = jax.ShapeDtypeStruct(mean.shape[1:], dtype)

    def make(layer: Any, _: KeyOf) -> Values:
        return {SAMPLES: first_copies(layer.activation, z, layer.samples_num)}

    found = layer._find(SAMPLES, (SAMPLES,), z.shape, make)
    if not found and layer.step_mode == "s":
        _nnx_checks.refuse_no_copies(type(layer).__name__)
    y_seq, copies = average_of_copies(
        layer.activation,
        found.get(SAMPLES),
        key,
        mean.astype(dtype),
        standard_deviation(variance).astype(dtype),
        layer.samples_num,
    )
    if layer.samples is not None:
        layer.samples.set_value(copies)
    return y_seq
