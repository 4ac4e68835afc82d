"""Truncated back-propagation: states pass from chunk to chunk, gradients do not."""

import importlib.util
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.neurons import Net, loop

KEY = jax.random.key(6)
STEPS, CHUNK = 12, 4
MODEL = Net()


@pytest.fixture(scope="module")
def x_seq():
    return jax.random.uniform(jax.random.key(1), (STEPS, 3, 5), maxval=2.0)


@pytest.fixture(scope="module")
def variables(x_seq):
    return MODEL.init(jax.random.key(2), x_seq[0])


def chunk(params, state, x_seq):
    rngs = {"dropout": KEY}
    variables = {"params": params, "state": state}
    y_seq, updated = sd.simulate(MODEL, variables, x_seq, train=True, rngs=rngs)
    return (y_seq**2).sum(), (y_seq, updated["state"])


def test_chunks_are_the_whole_run_bit_for_bit(variables, x_seq):
    run = jax.jit(chunk)
    _, (whole, last) = run(variables["params"], variables["state"], x_seq)
    state, parts = variables["state"], []
    for part in x_seq.reshape(-1, CHUNK, *x_seq.shape[1:]):
        _, (y_seq, state) = run(variables["params"], state, part)
        parts.append(y_seq)
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    chex.assert_trees_all_equal(state, last)
    masks = {
        path: leaf for path, leaf in jax.tree.leaves_with_path(last) if leaf.dtype == bool
    }
    assert len(masks) == 2, "held over all chunks"


def test_gradients_end_where_a_chunk_starts(variables, x_seq):
    params = variables["params"]
    gradient = jax.jit(jax.grad(chunk, has_aux=True))
    state, total = variables["state"], jax.tree.map(jnp.zeros_like, params)
    for part in x_seq.reshape(-1, CHUNK, *x_seq.shape[1:]):
        grads, (_, state) = gradient(params, state, part)
        total = jax.tree.map(jnp.add, total, grads)

    def by_hand(params, cut):
        state, loss = variables["state"], 0.0
        for t, x in enumerate(x_seq):
            if cut and t % CHUNK == 0:
                state = jax.lax.stop_gradient(state)
            y, updated = loop(
                MODEL,
                {"params": params, "state": state},
                x[None],
                train=True,
                rngs={"dropout": KEY},
            )
            state, loss = updated["state"], loss + (y**2).sum()
        return loss

    cut, uncut = (jax.grad(by_hand)(params, cut) for cut in (True, False))
    chex.assert_trees_all_close(total, cut, rtol=1e-5, atol=1e-6)
    different = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), total, uncut)
    assert max(jax.tree.leaves(different)) > 1e-3, "the cut is felt"


def test_a_later_loss_does_not_reach_an_earlier_chunk(variables, x_seq):
    params = variables["params"]

    def later_loss(first, cut):
        _, (_, state) = chunk(params, variables["state"], first)
        state = jax.lax.stop_gradient(state) if cut else state
        return chunk(params, state, x_seq[CHUNK:])[0]

    reached = jax.grad(later_loss)(x_seq[:CHUNK], False)
    assert bool((reached != 0).any()), "through membranes; masks have no gradient"
    assert not jax.grad(later_loss)(x_seq[:CHUNK], True).any()


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[1] / "examples" / "streaming.py"
    spec = importlib.util.spec_from_file_location("streaming", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_keeps_its_claims(example, capsys):
    example.main(["--chunks", "6", "--slots", "8"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^ +(\d+)  (\d+\.\d) %$", printed, re.M)
    assert [int(chunks) for chunks, _ in rows] == [2, 4, 6]
    in_chunks, (streams, alone) = (
        re.search(r"in one piece: .* at most (\S+)", printed)[1],
        re.search(r"(\d+) streams .* alone: by at most (\S+)", printed).groups(),
    )
    assert float(in_chunks) == 0
    assert int(streams) > 1
    assert float(alone) < 1e-4


def test_streams_start_where_the_last_one_ended(example):
    images = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 8, 8))
    flow = example.flow(images, np.arange(4), slots=3, steps=5, seed=0)
    chunks = [next(flow) for _ in range(40)]
    rows, labels, starts, seen = (
        np.concatenate(parts) for parts in zip(*chunks, strict=True)
    )
    np.testing.assert_array_equal(rows[..., 0], labels)
    assert starts[0].all()
    for slot in range(3):
        first = np.flatnonzero(starts[:, slot])
        lengths = np.diff(first)
        assert set(lengths) == {8, 16, 24}
        for start, length in zip(first, lengths, strict=False):
            part = slice(start, start + length)
            assert len(set(labels[part, slot])) == 1
            np.testing.assert_array_equal(seen[part, slot], np.arange(length) >= 7)


@pytest.mark.parametrize(
    ("option", "message"),
    [("--chunks=0", "--chunks must be at least 1"), ("--p=2", r"--p must be in \[0, 1\]")],
)
def test_bad_options_are_refused(example, option, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        example.main([option])
    assert re.search(message, capsys.readouterr().err)
