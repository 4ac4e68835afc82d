"""A training run that can be stopped between any two chunks of a sequence and resumed.

The sequences of an epoch are simulated in chunks, after each of which the parameters are
updated; masks and membranes are carried from chunk to chunk of a sequence. As a program
it saves all of it after each chunk, whenever a line on standard input allows it to::

  python -m tests.resumable FOLDER
"""

import argparse
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import snn_dropout as sd
from tests.neurons import LIF

EPOCHS, SEQUENCES, CHUNKS, STEPS, EXAMPLES, INPUTS = 2, 2, 3, 4, 6, 10
POSITION = "epoch", "sequence", "chunk"
OPTIMIZER = optax.adam(1e-2)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = sd.Dropout(0.3, deterministic=False)(x)
        x = sd.DropConnectLinear(
            INPUTS, 12, invariant=True, activation=LIF(), deterministic=False
        )(4 * x)
        # Another kind of noise, new at each step.
        return sd.DropConnectLinear(12, 4, activation=None, deterministic=False)(x)


@jax.jit
def first():
    """All that a run is made of: before its first chunk."""
    x = jnp.zeros((EXAMPLES, INPUTS))
    params = Net().init(jax.random.key(0), x)["params"]
    return {
        "position": dict.fromkeys(POSITION, 0),
        "dropout_key": jax.random.key(1),  # a typed key
        "order_key": jax.random.PRNGKey(2),  # and one of the old kind
        "params": params,
        "moments": OPTIMIZER.init(params),
        "state": sd.init_state(
            Net(), {"params": params}, x, rngs={"dropout": jax.random.key(0)}
        ),
    }


@jax.jit
def update(run, x_seq):
    position, chunk = run["position"], run["position"]["chunk"]
    number = position["epoch"] * SEQUENCES + position["sequence"]
    key = jax.random.fold_in(run["dropout_key"], number)
    fresh = sd.init_state(Net(), {"params": run["params"]}, x_seq[0], rngs={"dropout": key})
    done = jnp.full(EXAMPLES, chunk == 0)
    state = sd.reset_rows(done, run["state"], fresh)

    def loss(params):
        variables = {"params": params, "state": state}
        y_seq, updated = sd.simulate(
            Net(),
            variables,
            x_seq,
            rngs={"dropout": key},
            first_time_step=chunk * STEPS,
        )
        return ((y_seq.mean(0) - 1) ** 2).mean(), updated["state"]

    (value, state), grads = jax.value_and_grad(loss, has_aux=True)(run["params"])
    updates, moments = OPTIMIZER.update(grads, run["moments"])
    params = optax.apply_updates(run["params"], updates)
    return {**run, "params": params, "moments": moments, "state": state}, value


def advance(run):
    """Trains on one chunk; returns the run behind it, and the loss."""
    position = run["position"]
    order = jax.random.permutation(
        jax.random.fold_in(run["order_key"], position["epoch"]), SEQUENCES
    )
    sequence = jax.random.fold_in(
        jax.random.key(3), order[position["sequence"]] * CHUNKS + position["chunk"]
    )
    x_seq = jax.random.bernoulli(sequence, 0.4, (STEPS, EXAMPLES, INPUTS))
    run, value = update(run, x_seq.astype(jnp.float32))
    chunk = position["chunk"] + 1
    sequence = position["sequence"] + chunk // CHUNKS
    run["position"] = {
        "epoch": position["epoch"] + sequence // SEQUENCES,
        "sequence": sequence % SEQUENCES,
        "chunk": chunk % CHUNKS,
    }
    return run, float(value)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    with ocp.CheckpointManager(parser.parse_args().folder.resolve()) as manager:
        run, step = first(), manager.latest_step() or 0
        if step:
            run = manager.restore(step, args=ocp.args.StandardRestore(run))
        print("begins", *(run["position"][name] for name in POSITION), flush=True)
        while run["position"]["epoch"] < EPOCHS:
            run, value = advance(run)
            step += 1
            input()  # killed here, this chunk is lost
            manager.save(step, args=ocp.args.StandardSave(run))
            manager.wait_until_finished()
            print(step, value.hex(), flush=True)


if __name__ == "__main__":
    main()
