"""The example program, at a toy size."""

import importlib.util
import re
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "examples" / "train_digits.py"
NAMES = ("no dropout", "new mask every step", "one mask per simulation")
OPTIONS = ("--epochs", "--seeds", "--p", "--steps", "--output")


def load():
    spec = importlib.util.spec_from_file_location("train_digits", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return load()


def rasters(example, name, p=0.5, steps=12):
    """Spikes of one untrained network before and behind the dropout of a model."""
    params = example.init_params(example.Network(None, p), jax.random.key(0))
    image = example.load_data().test_images[0]
    model = example.Network(example.MODELS[name], p)
    return example.record_spikes(model, params, image, steps)


def test_prints_a_table_and_writes_a_picture(example, tmp_path, capsys):
    picture = tmp_path / "new" / "folder" / "x.png"
    arguments = ["--epochs", "1", "--seeds", "2", "--steps", "3"]
    example.main([*arguments, "--output", str(picture)])
    printed = capsys.readouterr()
    rows = re.findall(r"^(\S.*?) {2,}(\d+\.\d+) ± (\d+\.\d+)$", printed.out, re.M)
    assert tuple(name for name, _, _ in rows) == NAMES
    assert all(0 <= float(mean) <= 100 for _, mean, _ in rows)
    assert float(rows[0][1]) > 20  # guessing reaches 10 %
    difference = re.search(r"is ([+-]\d+\.\d+) ± \d+\.\d+ percentage points", printed.out)
    assert float(difference[1]) == pytest.approx(
        float(rows[2][1]) - float(rows[1][1]), abs=0.011
    )
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert printed.err == ""  # no progress bar in a log


def test_models_start_from_the_same_parameters(example):
    first, *others = (
        example.init_params(example.Network(dropout, 0.5), jax.random.key(3))
        for dropout in example.MODELS.values()
    )
    for other in others:
        chex.assert_trees_all_equal(first, other)


def test_models_differ_in_nothing_but_dropout(example):
    """Where nothing is dropped, all three are the same program."""

    def program(dropout):
        model = example.Network(dropout, 0.0)
        params = example.init_params(model, jax.random.key(0))
        rngs = {"dropout": jax.random.key(1)}
        return jax.make_jaxpr(
            lambda params, images: example.run(
                model, params, images, 3, rngs=rngs, train=True
            )
        )(params, jnp.ones((2, 64)))

    assert len({str(program(dropout)) for dropout in example.MODELS.values()}) == 1


def test_data_is_split_once_and_scaled(example):
    digits = example.load_data()
    assert digits.train_images.shape == (1347, 64)
    assert digits.test_images.shape == (450, 64)
    chex.assert_trees_all_equal(digits, example.load_data())
    for images in (digits.train_images, digits.test_images):
        assert images.min() == 0
        assert images.max() == 1
    assert np.bincount(digits.test_labels).min() > 40


def test_held_mask_is_the_same_at_every_step(example):
    fired, passed = rasters(example, "one mask per simulation")
    kept = passed.any(axis=0)
    assert (passed == (fired & kept)).all()
    assert 0 < kept.sum() < fired.any(axis=0).sum()


def test_per_step_mask_is_not(example):
    fired, passed = rasters(example, "new mask every step")
    assert not (passed & ~fired).any()
    assert not (passed == (fired & passed.any(axis=0))).all()


def test_rasters_show_the_same_spikes(example):
    fired = [rasters(example, name)[0] for name in NAMES]
    assert (fired[0] == fired[1]).all()
    assert (fired[0] == fired[2]).all()


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("--epochs", "0", r"--epochs must be 1 or more, but got 0; .* --epochs 60"),
        ("--seeds", "-1", r"--seeds must be 1 or more, but got -1; .* --seeds 5"),
        ("--steps", "0", r"--steps must be 1 or more, but got 0; .* --steps 8"),
        ("--p", "1", r"--p must be in \[0, 1\), but got 1\.0; .* --p 0\.5"),
        ("--p", "-0.1", r"--p must be in \[0, 1\), but got -0\.1; .* --p 0\.5"),
        ("--p", "nan", r"--p must be in \[0, 1\), but got nan; .* --p 0\.5"),
        ("--p", "half", "argument --p: invalid float value: 'half'"),
        ("--epochs", "1.5", r"argument --epochs: invalid int value: '1\.5'"),
        ("--output", "x.jpg", r"ends in \.png, but got x\.jpg; .* output/train_digits"),
    ],
)
def test_bad_option_is_refused(example, option, given, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        example.main([f"{option}={given}"])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("below", ["file/x.png", "file/folder/x.png"])
def test_output_below_a_file_is_refused(example, below, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"^2$"):
        example.main(["--output", str(tmp_path / below)])
    error = capsys.readouterr().err
    assert "--output must be in a folder that exists or can be made, but got" in error
    assert f"{tmp_path / below}; type for example --output output/" in error


def test_output_that_is_a_folder_is_refused(example, tmp_path, capsys):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(SystemExit, match=r"^2$"):
        example.main(["--output", str(tmp_path / "x.png")])
    assert "--output must be a file that ends in .png" in capsys.readouterr().err


def test_help_names_every_option(example, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        example.main(["--help"])
    shown = capsys.readouterr().out
    for option in OPTIONS:
        assert re.search(rf"^  {option} .*?\(default:\s", shown, re.M | re.S)


def test_spread_is_that_of_a_sample_and_none_for_one_seed(example):
    assert example.summary(np.array([1.0, 3.0])) == "2.00 ± 1.41"
    assert example.summary(np.array([1.0]), "+") == "+1.00 (one seed)"


@pytest.mark.parametrize("package", ["optax", "sklearn", "tqdm", "matplotlib"])
def test_missing_package_is_named(package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SystemExit, match=rf"{package}(.|\n)*pip install -e '\.\[examples\]'"
    ):
        load()
