"""Stop and resume: a run that was killed goes on as if nothing had happened."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import snn_dropout as sd
from tests import resumable

ROOT = Path(__file__).parents[1]
LIMIT = 240  # seconds
CHUNKS = resumable.EPOCHS * resumable.SEQUENCES * resumable.CHUNKS


class Child:
    """A training run in a process of its own, killed at the end in any case."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.resumable", folder],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        self.timer = threading.Timer(LIMIT, self.process.kill)
        self.timer.start()
        return self

    def __exit__(self, *exception):
        self.timer.cancel()
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def read(self):
        return self.process.stdout.readline().split()

    def save_next_chunk(self):
        """Lets it save the chunk that it trains on; returns its number and loss."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        step, value = self.read()
        return int(step), float.fromhex(value)


@pytest.mark.exhaustive
def test_a_killed_run_continues_bit_for_bit(tmp_path):
    run, expected = resumable.first(), []
    for _ in range(CHUNKS):
        run, value = resumable.advance(run)
        expected.append(value)
    assert len(set(expected)) == CHUNKS

    losses = []
    # Killed in the middle of an epoch and of a sequence.
    for position, until in (("0 0 0", 4), ("0 1 1", CHUNKS)):
        with Child(tmp_path) as child:
            assert child.read() == ["begins", *position.split()]
            while len(losses) < until:
                step, value = child.save_next_chunk()
                losses.append(value)
                assert step == len(losses)
            if until < CHUNKS:
                child.process.kill()
                assert child.process.wait() == -9
            else:
                assert child.process.wait() == 0
    assert losses == expected

    with ocp.CheckpointManager(tmp_path) as manager:
        restored = manager.restore(CHUNKS, args=ocp.args.StandardRestore(resumable.first()))
    assert restored["position"] == run["position"]
    for name in ("params", "moments", "state", "order_key"):
        chex.assert_trees_all_equal(restored[name], run[name])
    assert restored["dropout_key"] == run["dropout_key"]
    assert restored["dropout_key"].dtype == run["dropout_key"].dtype
    masks = {"mask", "mask_p", "kernel_mask", "bias_mask"}
    leaves = jax.tree_util.tree_leaves_with_path(restored["state"])
    assert masks <= {path[-1].key for path, _ in leaves}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint in the middle of a simulation of four examples."""
    folder = tmp_path_factory.mktemp("checkpoint") / "state"
    x = jnp.ones((4, 10))
    variables = resumable.Net().init(jax.random.key(0), x)
    rngs = {"dropout": jax.random.key(1)}
    _, updated = resumable.Net().apply(variables, x, rngs=rngs, mutable=["state"])
    variables = {**variables, **updated}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, variables)
    return folder, variables


@pytest.mark.exhaustive
@pytest.mark.parametrize("examples", [1, 2, 8])
def test_a_restored_mask_of_another_batch_raises(saved, examples):
    folder, variables = saved
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder, variables)
    chex.assert_trees_all_equal(restored, variables)
    message = re.escape("The mask stored at state/Dropout_0/mask must fit the input: it")
    rngs = {"dropout": jax.random.key(2)}
    x = jnp.ones((examples, 10))
    with pytest.raises(ValueError, match=message):
        resumable.Net().apply(restored, x, rngs=rngs, mutable=["state"])
    layer, alone = sd.Dropout(deterministic=False), restored["state"]["Dropout_0"]
    message = re.escape("The mask stored at state/mask must fit the input: it")
    with pytest.raises(ValueError, match=message):
        sd.simulate(layer, {"state": alone}, x[None], rngs=rngs)

    # One layer's mask alone, when all before it was made anew.
    state = dict(restored["state"])
    del state["Dropout_0"]
    message = "state/DropConnectLinear_0/kernel_mask must fit.*" + re.escape("(4, 10, 1)")
    with pytest.raises(ValueError, match=message):
        resumable.Net().apply({**restored, "state": state}, x, rngs=rngs, mutable=["state"])
