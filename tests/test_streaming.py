"""The example of streams: what it prints, and how its streams follow each other."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest


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
    [
        ("--chunks=0", r"--chunks must be 1 or more, but got 0; .* --chunks 1000"),
        ("--p=1", r"--p must be in \[0, 1\), but got 1\.0; .* --p 0\.1"),
        ("--p=nan", r"--p must be in \[0, 1\), but got nan; .* --p 0\.1"),
    ],
)
def test_bad_options_are_refused(example, option, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        example.main([option])
    assert re.search(message, capsys.readouterr().err)
