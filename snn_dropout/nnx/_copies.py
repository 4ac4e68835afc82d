"""Copies of stateful neurons, one a sample, that run side by side in sampled inference."""

from typing import Any

import jax
import jax.numpy as jnp

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout.nnx._calls import PureCall
from snn_dropout.nnx._engine import Dry, dry_run


def first_copies(module: Any, z: Any, samples: int) -> tuple[Any, ...]:
    """Copies the state of a module, once for each sample.

    Args:
      module: the neurons; their Variables are the first state of each copy.
      z: an array or the shape of one, the input of one step ``[N, ..., O]``.
      samples: the number of copies, ``S``.

    Returns:
      Arrays ``[N, S, ...]``, the batch first, and ``[S]`` of numbers; keys are split.

    Raises:
      ValueError: the neurons make Variables in their first call.
    """
    return _repeated(_dry(PureCall(module), z).start, samples)


def renewed_copies(module: Any, held: tuple[Any, ...], samples: int) -> tuple[Any, ...]:
    """Makes the first state of copies again, in the shapes that are held."""
    fresh = _repeated(PureCall(module).values, samples)
    return tuple(
        jnp.broadcast_to(new.reshape(1, samples, *(1,) * (old.ndim - 2)), old.shape)
        if new.ndim == 1 and old.ndim > 1
        else new
        for old, new in zip(held, fresh, strict=True)
    )


def average_of_copies(
    module: Any,
    copies: tuple[Any, ...] | None,
    key: jax.Array,
    mean_seq: jax.Array,
    deviation_seq: jax.Array,
    samples: int,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Runs the copies over time on normal inputs, and averages what they return.

    Args:
      module: the neurons; they are not changed.
      copies: their states, from :func:`first_copies` or this function; None to start anew.
      key: makes the standard normals, which the examples share.
      mean_seq: the means of the inputs, ``[T, N, ..., O]``.
      deviation_seq: their standard deviations, of the same shape.
      samples: the number of copies, ``S``.

    Returns:
      The averages ``[T, N, ..., O]``, and the states of the copies.
    """
    pure = PureCall(module)
    dry = _dry(pure, jax.ShapeDtypeStruct(mean_seq.shape[1:], mean_seq.dtype))
    fresh = _repeated(dry.start, samples)
    states = fresh if copies is None else copies
    for name, old, new in zip(pure.names, states, fresh, strict=True):
        _nnx_checks.check_carried(name, old, new)
    axes = [_axis(value) for value in dry.start]

    def sample(values: list[Any], z: jax.Array) -> tuple[list[Any], jax.Array]:
        y, after, _, _ = pure(values, z)
        return after, y

    def step(states: tuple[Any, ...], inputs: Any) -> tuple[tuple[Any, ...], jax.Array]:
        key, mean, deviation = inputs
        shape = (samples, *(1,) * (mean.ndim - 1), mean.shape[-1])
        normals = jax.random.normal(key, shape, mean.dtype)
        z = mean[None] + deviation[None] * normals
        after, y = jax.vmap(sample, in_axes=(axes, 0), out_axes=(axes, 0))(list(states), z)
        return tuple(after), y.mean(0)

    inputs = (jax.random.split(key, len(mean_seq)), mean_seq, deviation_seq)
    states, y_seq = jax.lax.scan(step, states, inputs)
    return y_seq, states


def _dry(pure: PureCall, z: Any) -> Dry:
    dry = dry_run(pure, jnp.zeros(z.shape, z.dtype), one_step=True)
    if not dry.settled:
        _nnx_checks.refuse_late_copies()
    return dry


def _axis(value: Any) -> int:
    # Behind the batch, so that each array has the batch first.
    return min(jnp.ndim(value), 1)


def _repeated(values: list[Any], samples: int) -> tuple[Any, ...]:
    def repeated(value: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
            return jax.random.split(value, samples)
        axis = _axis(value)
        return jnp.repeat(jnp.expand_dims(value, axis), samples, axis)

    return tuple(repeated(value) for value in values)
