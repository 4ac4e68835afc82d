"""The activation behind lost connections: in training, and averaged in inference."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from snn_dropout.functional._averages import standard_deviation
from snn_dropout.functional._sequences import first_step
from snn_dropout.functional._tokens import sample_tokens
from snn_dropout.functional.expectation import expected_activation
from snn_dropout.linen._held import fresh_key, path_of
from snn_dropout.linen._simulation import (
    first_samples,
    lift,
    over_time,
    sampled_over_time,
)
from snn_dropout.linen.state import State

# The leaf that holds the neurons' state in sampled inference, `[N, S, ...]`.
SAMPLES = "samples"


def activate(layer: Any, z_seq: jax.Array, whole: bool) -> jax.Array:
    """Applies the activation of a layer to all steps; a module is stepped through them.

    Args:
      layer: a bound ``DropConnectLinear``.
      z_seq: ``[T, N, ..., O]``.
      whole: the call covers all time steps.
    """
    if layer.activation is None:
        return z_seq
    if not isinstance(layer.activation, nn.Module):
        result: jax.Array = layer.activation(z_seq)
        return result
    if layer.is_initializing() or not whole:
        y = layer.activation(first_step(z_seq))
        return jnp.broadcast_to(y, (len(z_seq), *y.shape))
    step = lift(partial(over_time, (layer.state_collection,), False, 0), _call)
    y_seq: jax.Array = step(layer.activation, z_seq)
    return y_seq


def infer(
    layer: Any, mean: jax.Array, variance: jax.Array, dtype: Any, whole: bool
) -> jax.Array:
    """Averages the activation of a layer over Gaussian inputs, as its fields say.

    Args:
      layer: a bound ``DropConnectLinear``.
      mean: ``[T, N, ..., O]``.
      variance: of the same shape.
      dtype: that of what neurons are given.
      whole: the call covers all time steps.
    """
    if layer.inference == "analytic":
        return expected_activation(layer.activation, mean, variance)
    where = "/".join(layer.path) or type(layer).__name__
    key = fresh_key(layer, f"the samples of {where} (`inference='analytic'` takes no key)")
    if _samples_neurons(layer):
        return _sample_neurons(layer, key, mean, variance, dtype, whole)
    return sample_tokens(key, layer.activation, mean, variance, layer.samples_num)


def make_samples(layer: Any, z_seq: jax.Array) -> None:
    """Stores the first state of the neurons that sampled inference runs, if any."""
    if _samples_neurons(layer):
        _keep_samples(layer, _samples(layer, z_seq))


def _sample_neurons(
    layer: Any,
    key: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    dtype: Any,
    whole: bool,
) -> jax.Array:
    """Steps one copy of the neurons a sample; their state is the leaf `samples`."""
    step = lift(partial(sampled_over_time, (layer.state_collection,)), _call)
    mean = mean.astype(dtype)
    state: State
    y_seq: jax.Array
    state, y_seq = step(
        layer.activation,
        _samples(layer, mean),
        key,
        mean,
        standard_deviation(variance).astype(dtype),
        layer.samples_num,
    )
    if not whole or layer.is_mutable_collection(layer.state_collection):
        _keep_samples(layer, state)
    return y_seq


def _samples_neurons(layer: Any) -> bool:
    return layer.p > 0 and isinstance(layer.activation, nn.Module)


def _samples(layer: Any, z_seq: jax.Array) -> State:
    found: State | None = layer.get_variable(layer.state_collection, SAMPLES)
    settings = (layer.state_collection,), found, path_of(layer, SAMPLES)
    first = lift(partial(first_samples, *settings), _call)
    state: State = first(layer.activation, first_step(z_seq), layer.samples_num)
    return state


def _keep_samples(layer: Any, state: State) -> None:
    if state:
        layer.put_variable(layer.state_collection, SAMPLES, state)


def _call(module: Any, z: jax.Array) -> Any:
    return module(z)
