"""The example of streams: what it prints, and how its streams follow each other."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def example():
    """It takes its picture from beside it, as a program from its own folder."""
    folder = Path(__file__).parents[1] / "examples"
    spec = importlib.util.spec_from_file_location("streaming", folder / "streaming.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(folder))


def test_the_example_keeps_its_claims(example, tmp_path, capsys, monkeypatch):
    drawn = []
    draw = example.draw
    monkeypatch.setattr(
        example, "draw", lambda *args, **more: drawn.append(args) or draw(*args, **more)
    )
    picture = tmp_path / "new" / "x.png"
    example.main(["--chunks", "6", "--slots", "8", "--output", str(picture)])
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
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    check_timeline(*drawn[0][1:])


def check_timeline(rows, answers, masks, starts):
    """What the picture shows: masks change where a stream starts, and nowhere else."""
    assert rows.shape == (64, 3, 8)
    assert masks.shape == (64, 3, 24)
    changed = (masks[1:] != masks[:-1]).any(-1)
    assert changed.any()
    assert not changed[~starts[1:]].any()
    # Of 24 units at p = 0.1, hardly any two masks are alike.
    assert changed[starts[1:]].mean() > 0.7
    for slot in range(3):
        first = np.flatnonzero(starts[:, slot])
        age = np.arange(64) - first[np.searchsorted(first, np.arange(64), "right") - 1]
        np.testing.assert_array_equal(answers[:, slot] == 0, age < 7)


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
        assert min(lengths) >= 8
        assert max(lengths) <= 24
        for start, length in zip(first, lengths, strict=False):
            part = slice(start, start + length)
            assert len(set(labels[part, slot])) == 1
            np.testing.assert_array_equal(seen[part, slot], np.arange(length) >= 7)
    # At any step, not only where a chunk or an image ends.
    assert set(np.flatnonzero(starts.any(axis=1)) % 8) == set(range(8))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--chunks=0", r"--chunks must be 1 or more, but got 0; .* --chunks 1000"),
        ("--p=1", r"--p must be in \[0, 1\), but got 1\.0; .* --p 0\.1"),
        ("--p=nan", r"--p must be in \[0, 1\), but got nan; .* --p 0\.1"),
        ("--output=x.jpg", r"ends in \.png, but got x\.jpg; .* output/streaming\.png"),
        (f"--output={__file__}/x.png", r"that exists or can be made, but got .*; type"),
    ],
)
def test_bad_options_are_refused(example, option, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        example.main([option])
    assert re.search(message, capsys.readouterr().err)
