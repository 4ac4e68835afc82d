"""The spiking residual network of the example: shapes, masks and running averages."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_rank_promotion("allow"):
        yield importlib.import_module("convolutional")


@pytest.mark.exhaustive
def test_whole_branches_and_channels_are_lost_for_all_steps(example):
    x_seq = jax.random.uniform(jax.random.key(3), (3, 8, 8, 8, 1))
    model = example.ResNet(0.5, 0.5)
    variables = model.init(jax.random.key(0), x_seq, train=False)
    masks = example.masks_of(model, variables, x_seq)
    assert {path: mask.shape for path, mask in masks.items()} == {
        "Block_0/DropPath_0/mask": (8, 1, 1, 1),
        "Block_0/Dropout2d_0/mask": (8, 1, 1, 16),
        "Block_1/DropPath_0/mask": (8, 1, 1, 1),
        "Block_1/Dropout2d_0/mask": (8, 1, 1, 32),
    }
    assert all(0 < mask.mean() < 1 for mask in masks.values())


@pytest.mark.exhaustive
def test_training_moves_the_running_averages_and_inference_does_not(example):
    x_seq = jax.random.uniform(jax.random.key(3), (3, 8, 8, 8, 1))
    model = example.ResNet(0.1, 0.1)
    variables = model.init(jax.random.key(0), x_seq, train=False)
    before = jax.tree.leaves(variables["batch_stats"])
    for train in (True, False):
        _, updated = model.apply(
            variables,
            x_seq,
            train=train,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        after = jax.tree.leaves(updated["batch_stats"])
        moved = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
        assert any(moved) == train
    scores = model.apply(variables, x_seq, train=False)
    assert scores.shape == (8, 10)
    assert bool(jnp.isfinite(scores).all())


def test_the_program_prints_its_table_and_draws(example, tmp_path, capsys, monkeypatch):
    load = example.load_data
    few = 2 * example.BATCH_SIZE
    monkeypatch.setattr(
        example, "load_data", lambda: example.Digits(*(part[:few] for part in load()))
    )
    picture = tmp_path / "new" / "x.png"
    example.main(["--epochs=1", "--steps=2", f"--output={picture}"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^(none|channels .*?) +(\d+\.\d)$", printed, re.M)
    assert [name for name, _ in rows] == ["none", "channels p=0.1, branches p=0.1"]
    assert len(re.findall(r"^  Block_\d/\w+/mask +\[64, 1, 1, \d+\], ", printed, re.M)) == 4
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for option, message in (
        ("--p-path=1", r"--p-path must be in \[0, 1\), but got 1\.0; .* --p-path 0\.1"),
        ("--steps=0", r"--steps must be 1 or more, but got 0; .* --steps 4"),
        ("--output=x.jpg", r"ends in \.png, but got x\.jpg; .* output/convolutional\.png"),
        (f"--output={__file__}/x.png", "that exists or can be made, but got .*; type"),
    ):
        with pytest.raises(SystemExit, match=r"^2$"):
            example.main([option])
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.exhaustive
def test_the_picture_shows_channels_lost_for_one_step_and_for_all(example):
    x_seq = jax.random.uniform(jax.random.key(3), (3, 8, 8, 8, 1))
    model = example.ResNet(0.5, 0.5)
    variables = model.init(jax.random.key(0), x_seq, train=False)
    spikes, kept = example.channels_of(model, variables, x_seq)
    assert spikes.shape == (3, 8, 8, 16)
    assert set(np.unique(spikes)) == {0, 1}
    per_step, held = kept.values()
    assert (held == held[0]).all()
    assert 0 < held[0].sum() < 8  # the image that loses most
    assert (per_step != per_step[0]).any()


def test_images_are_repeated_over_time(example):
    images = np.arange(2 * 64, dtype=np.float32).reshape(2, 64)
    x_seq = example.as_sequence(jnp.asarray(images), 3)
    assert x_seq.shape == (3, 2, 8, 8, 1)
    for x in x_seq:
        np.testing.assert_array_equal(x[..., 0], images.reshape(2, 8, 8))
