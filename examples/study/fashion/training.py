"""Training of one network from one seed, with what validation liked best on the way."""

from functools import partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from study.fashion.images import SIDE, Images
from study.fashion.network import Network, without_dropout

BATCH_SIZE = 32
LEARNING_RATE, RECURRENT_LEARNING_RATE = 1e-3, 2e-3
AT_ONCE = 100  # images in inference


class Trained(NamedTuple):
    """Parameters at two ends of one training.

    Attributes:
      last: after all updates.
      best: after the round of updates with the least loss in validation.
      losses: those in validation, ``[rounds]``.
    """

    last: Any
    best: Any
    losses: jax.Array


def shown(pixels: jax.Array, recurrent: bool) -> jax.Array:
    """Makes rows ``[R, N, I]`` of images ``[N, 784]``."""
    if not recurrent:
        return pixels[None]
    return jnp.moveaxis(pixels.reshape(len(pixels), SIDE, SIDE), 1, 0)


def draw_batches(size: int, seed: int, rounds: int, updates: int) -> np.ndarray:
    """Draws which images each update sees, ``[rounds, updates / rounds, batch]``."""
    random = np.random.default_rng([seed, 1])
    passes = -(-updates * BATCH_SIZE // size)
    order = np.concatenate([random.permutation(size) for _ in range(passes)])
    return order[: updates * BATCH_SIZE].reshape(rounds, -1, BATCH_SIZE).astype(np.int32)


def first_params(network: Network, seed: int) -> Any:
    """Makes the first parameters: the same for all conditions."""
    rows = shown(jnp.zeros((1, SIDE * SIDE)), network.recurrent)
    return _init(without_dropout(network), jax.random.key(seed), rows)["params"]


@partial(jax.jit, static_argnums=0)
def _init(network: Network, key: jax.Array, rows: jax.Array) -> Any:
    return network.init(key, rows, train=False)


@partial(jax.jit, static_argnums=0)
def train(
    network: Network,
    fit: Images,
    validation: Images,
    params: Any,
    batches: jax.Array,
    key: jax.Array,
) -> Trained:
    """Trains by Adam, its rate falling as a cosine; validates after every round.

    Args:
      network: the network, static.
      fit: images that the batches are taken of.
      validation: others.
      params: the first parameters.
      batches: indices, ``[rounds, updates of a round, batch]``.
      key: of the masks.

    Returns:
      The parameters at both ends of the training.
    """
    rounds, of_round, _ = batches.shape
    rate = RECURRENT_LEARNING_RATE if network.recurrent else LEARNING_RATE
    schedule = optax.cosine_decay_schedule(rate, rounds * of_round)
    optimizer = optax.adam(schedule)

    def loss(params: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        rows = shown(fit.pixels[batch], network.recurrent)
        variables, rngs = {"params": params}, {"dropout": key}
        logits = network.apply(variables, rows, train=True, rngs=rngs).mean(0)
        labels = fit.labels[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(state: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        params, moments = state
        changes, moments = optimizer.update(jax.grad(loss)(params, *inputs), moments)
        return (optax.apply_updates(params, changes), moments), None

    def go_round(state: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        (params, moments), best, least = state
        (params, moments), _ = jax.lax.scan(update, (params, moments), inputs)
        log_probs = log_probabilities(network, params, validation.pixels)
        found = -log_probs[jnp.arange(len(log_probs)), validation.labels].mean()
        better = found < least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
        return ((params, moments), best, jnp.minimum(found, least)), found

    keys = jax.random.split(key, (rounds, of_round))
    start = (params, optimizer.init(params)), params, jnp.inf
    ((last, _), best, _), losses = jax.lax.scan(go_round, start, (batches, keys))
    return Trained(last, best, losses)


def log_probabilities(network: Network, params: Any, pixels: jax.Array) -> jax.Array:
    """Runs inference, some images at a time: logarithms of probabilities, ``[N, 10]``."""

    def some(pixels: jax.Array) -> jax.Array:
        rows = shown(pixels, network.recurrent)
        logits = network.apply({"params": params}, rows, train=False).mean(0)
        return jax.nn.log_softmax(logits)

    found = jax.lax.map(some, in_batches(pixels))
    return found.reshape(len(pixels), -1)


def in_batches(pixels: jax.Array) -> jax.Array:
    """Splits images ``[N, I]`` into batches of one size, ``[batches, size, I]``."""
    return pixels.reshape(-1, gcd(len(pixels), AT_ONCE), pixels.shape[-1])
