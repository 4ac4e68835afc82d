"""Data-parallel training on the devices of one process or of several.

As a program it is one of two processes, and writes what it holds into a folder::

  python -m tests.hosts PORT PROCESS_ID FOLDER
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import snn_dropout as sd
from tests.resumable import INPUTS, Net

PROCESSES, UPDATES, STEPS, EXAMPLES = 2, 4, 3, 8
OPTIMIZER = optax.adam(1e-2)


def train(devices):
    """Returns losses and parameters, and the rows of the masks that lie here."""
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices)

    def place(x, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

    @jax.jit
    def step(params, moments, x_seq, key):
        def loss(params):
            rngs = {"dropout": key}
            y_seq, updated = sd.simulate(Net(), {"params": params}, x_seq, rngs=rngs)
            return ((y_seq - 1) ** 2).mean(), updated["state"]

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = OPTIMIZER.update(grads, moments)
        return optax.apply_updates(params, updates), moments, state, value

    random = np.random.default_rng(0)
    x_seqs = random.random((UPDATES, STEPS, EXAMPLES, INPUTS), np.float32)
    params = Net().init(jax.random.key(0), jnp.zeros((1, INPUTS)))["params"]
    moments = OPTIMIZER.init(params)
    params, moments = jax.tree.map(lambda leaf: place(np.asarray(leaf)), (params, moments))
    results = {}
    with jax.set_mesh(mesh):
        for number, x_seq in enumerate(x_seqs):
            key = jax.random.fold_in(jax.random.key(1), number)
            params, moments, state, value = step(
                params, moments, place(x_seq, None, "data"), key
            )
            results[f"loss {number}"] = np.asarray(value)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state):
                if "mask" in path[-1].key:
                    name = f"mask {number} {jax.tree_util.keystr(path)}"
                    results[name] = local_rows(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        results[f"param {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return results


def local_rows(x):
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def main(port, process_id, folder):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, int(process_id))
    assert jax.process_count() == PROCESSES
    assert len(jax.devices()) == PROCESSES * len(jax.local_devices()) == 4
    np.savez(Path(folder) / f"{process_id}.npz", **train(jax.devices()))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
