"""Dropouts in JAX: ours, that of ``flax.linen``, and their limit, a copy ``x * 2``."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import snn_dropout as sd
import snn_dropout.nnx as sdn
from benchmarks import checks
from benchmarks.implementations import Task
from benchmarks.implementations.jax_tasks import jitted_task, new_key


def dropout(
    who: str, steps: int, examples: int, units: int, p: float, gradient: bool
) -> Task:
    """Drops units in all steps at once."""
    layers = {
        "ours": sd.Dropout(p, "m", deterministic=False),
        "flax": nn.Dropout(p, broadcast_dims=(0,), deterministic=False),
    }
    forward = copy if who == "limit" else applied(layers[who])
    task = gradient_task if gradient else forward_task
    return task(forward, (steps, examples, units), 0 if who == "limit" else p)


def dropout_2d(
    who: str, steps: int, examples: int, side: int, channels: int, p: float
) -> Task:
    """Drops channels in all steps at once."""
    shape = (steps, examples, side, side, channels)
    if who == "limit":
        return forward_task(copy, shape, 0)
    layers = {
        "ours": sd.Dropout2d(p, "m", deterministic=False),
        "flax": nn.Dropout(p, broadcast_dims=(0, 2, 3), deterministic=False),
    }
    return forward_task(applied(layers[who]), shape, p, shared=(2, 3))


def scan(who: str, steps: int, examples: int, units: int, p: float) -> Task:
    """Drops units step by step; flax draws a new mask at each, which held ones replace."""

    def ours(x_seq: jax.Array, key: jax.Array) -> jax.Array:
        layer = sd.Dropout(p, deterministic=False)
        return sd.simulate(layer, {}, x_seq, rngs={"dropout": key})[0]

    def in_nnx(x_seq: jax.Array, key: jax.Array) -> jax.Array:
        return sdn.simulate(sdn.Dropout(p), x_seq, key=key)

    def flax(x_seq: jax.Array, key: jax.Array) -> jax.Array:
        step, keys = (
            applied(nn.Dropout(p, deterministic=False)),
            jax.random.split(key, steps),
        )
        return jax.lax.scan(lambda _, xs: ((), step(*xs)), (), (x_seq, keys))[1]

    def limit(x_seq: jax.Array, key: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda _, x: ((), copy(x, key)), (), x_seq)[1]

    forward = {"ours": ours, "nnx": in_nnx, "flax": flax, "limit": limit}[who]
    shape = (steps, examples, units)
    return forward_task(forward, shape, 0 if who == "limit" else p, held=who != "flax")


def applied(layer: nn.Module) -> Any:
    """Returns a layer without parameters as a function of an input and a key."""
    return lambda x, key: layer.apply({}, x, rngs={"dropout": key})


def copy(x: jax.Array, key: jax.Array) -> jax.Array:
    """Reads and writes every element once: the limit of memory."""
    return x * 2


def forward_task(forward: Any, shape: tuple[int, ...], p: float, **kind: Any) -> Task:
    """Makes the task of a dropout.

    Args:
      forward: takes the input and a key.
      shape: of the input ``[T, N, ...]``.
      p: the probability of being dropped; 0 for a copy, which doubles.
      **kind: the kind of mask, see ``checks.check_dropout``.

    Returns:
      The task.
    """
    x_seq = nonzero(shape, 1)

    def check(jitted: Any) -> None:
        check_values(x_seq, jitted(x_seq, new_key(3)), p, **kind)

    return jitted_task(forward, (x_seq,), check)


def gradient_task(forward: Any, shape: tuple[int, ...], p: float, **kind: Any) -> Task:
    """Makes the task of a dropout and its gradient; see ``forward_task``."""
    x_seq, dy_seq = nonzero(shape, 1), nonzero(shape, 2)

    def both(x_seq: jax.Array, dy_seq: jax.Array, key: jax.Array) -> Any:
        y_seq, pullback = jax.vjp(lambda x_seq: forward(x_seq, key), x_seq)
        return y_seq, pullback(dy_seq)[0]

    def check(jitted: Any) -> None:
        y_seq, dx_seq = jitted(x_seq, dy_seq, new_key(3))
        check_values(x_seq, y_seq, p, **kind)
        # A dropout is linear: it does to dy what it did to x.
        checks.check_close("gradients", dx_seq, dy_seq * np.asarray(y_seq) / x_seq)

    return jitted_task(both, (x_seq, dy_seq), check)


def check_values(x_seq: jax.Array, y_seq: jax.Array, p: float, **kind: Any) -> None:
    """Raises unless the input was dropped with probability ``p``, or doubled if 0."""
    if p:
        checks.check_dropout(x_seq, y_seq, p, **kind)
    else:
        checks.check_close("values", y_seq, 2 * x_seq)


def nonzero(shape: tuple[int, ...], seed: int) -> jax.Array:
    """Draws normal numbers that are not 0, so that a 0 in an output was dropped."""
    x = jax.random.normal(jax.random.key(seed), shape)
    return x + jnp.sign(x)
