"""Training and testing: all seeds of a condition at once, in one compiled program."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import snn_dropout as sd
from study.names import NONE
from study.small.data import Examples, present, take
from study.small.network import Network

BATCH_SIZE = 32
LEARNING_RATE = 5e-3


@partial(jax.jit, static_argnums=(0, 1, 2))
def over_seeds(
    function: Callable[..., Any],
    network: Network,
    steps: int,
    shared: Any,
    *of_seeds: Any,
) -> Any:
    """Calls ``function(network, steps, shared, *of_seed)`` for every seed, at once.

    Args:
      function: of the values of one seed.
      network: the network, static.
      steps: time steps of a simulation.
      shared: a pytree of arrays that all seeds use.
      *of_seeds: pytrees of arrays ``[seeds, ...]``.

    Returns:
      What the calls return, stacked.
    """
    return jax.vmap(partial(function, network, steps, shared))(*of_seeds)


def keys_of(seeds: np.ndarray) -> jax.Array:
    """Makes the key of each seed."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def draw_batches(indices: np.ndarray, seeds: np.ndarray, updates: int) -> np.ndarray:
    """Draws which examples each update sees, ``[seeds, updates, batch]``."""
    passes = -(-updates * BATCH_SIZE // len(indices))

    def draw(seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        order = np.concatenate([random.permutation(indices) for _ in range(passes)])
        return order[: updates * BATCH_SIZE].reshape(updates, BATCH_SIZE)

    return np.stack([draw(seed) for seed in seeds]).astype(np.int32)


@cache
def first_params(
    inputs: int, layers: int, units: int, classes: int, seeds: tuple[int, ...]
) -> Any:
    """Makes the parameters of each seed, stacked: one set for networks of all conditions.

    They are made outside of the program that trains, which so compiles in half the time.
    """
    plain = Network(NONE, 0.0, layers, units, classes)
    one_step = jnp.zeros((1, inputs))
    keys = keys_of(np.array(seeds))
    made = [plain.init(key, one_step, train=False)["params"] for key in keys]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *made)


def train(
    network: Network,
    steps: int,
    examples: Examples,
    params: Any,
    batches: jax.Array,
    key: jax.Array,
) -> Any:
    """Trains the parameters of one seed on batches ``[updates, batch]``; returns them.

    Input spikes and masks are drawn from the key, each from a part of its own, so those
    that two conditions have in common are the same.
    """
    updates = len(batches)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, updates))

    def loss(params: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        chosen = take(examples, batch)
        logits = scores(network, steps, chosen, params, key, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, chosen.labels).mean()

    def update(state: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        params, moments = state
        changes, moments = optimizer.update(jax.grad(loss)(params, *inputs), moments)
        return (optax.apply_updates(params, changes), moments), None

    state = params, optimizer.init(params)
    keys = jax.random.split(jax.random.fold_in(key, 1), updates)
    (params, _), _ = jax.lax.scan(update, state, (batches, keys))
    return params


def scores(
    network: Network,
    steps: int,
    examples: Examples,
    params: Any,
    key: jax.Array,
    *,
    train: bool,
) -> jax.Array:
    """Simulates examples and averages the scores over their real steps, ``[N, K]``.

    Where neurons keep a state for each sample of inference, examples are simulated a few
    at a time, so that the states stay in the cache of one core. Elsewhere this would only
    draw the same noise for every few of them again.
    """
    input_key, dropout_key = jax.random.split(key)
    x_seq, weights = present(examples, input_key, steps)

    def simulate(x_seq: jax.Array) -> jax.Array:
        variables, rngs = {"params": params}, {"dropout": dropout_key}
        return sd.simulate(network, variables, x_seq, rngs=rngs, train=train)[0]

    if train or not network.keeps_samples:
        y_seq = simulate(x_seq)
    else:
        # Batches of one size, for another would be compiled for itself.
        count = len(examples.labels)
        size = max(size for size in range(1, BATCH_SIZE + 1) if count % size == 0)
        x_seq = jnp.moveaxis(x_seq, 1, 0)[:, :, None]  # each example is a batch of one
        y_seq = jax.lax.map(simulate, x_seq, batch_size=size)
        y_seq = jnp.moveaxis(y_seq[:, :, 0], 0, 1)
    return jnp.einsum("tn,tnk->nk", weights, y_seq)
