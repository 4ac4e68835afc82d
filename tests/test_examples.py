"""The example programs, at a toy size."""

import argparse
import importlib.util
import re
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snn_dropout import functional
from tests.depth import cases

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = ("no dropout", "new mask every step", "one mask per simulation")
OPTIONS = ("--epochs", "--seeds", "--p", "--steps", "--output")


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return load("train_digits")


@pytest.fixture(scope="module")
def inference():
    return load("dropconnect_inference")


@pytest.fixture(scope="module")
def parallel():
    """It takes network and data from its neighbour, as a program from its own folder."""
    sys.path.insert(0, str(FOLDER))
    yield load("data_parallel")
    sys.path.remove(str(FOLDER))


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


@pytest.mark.short
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


@pytest.mark.parametrize("name", ["train_digits", "dropconnect_inference"])
@cases("package", ["optax", "sklearn", "tqdm", "matplotlib"], short=["sklearn"])
def test_missing_package_is_named(package, name, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SystemExit, match=rf"{package}(.|\n)*pip install -e '\.\[examples\]'"
    ):
        load(name)


def test_ways_of_inference_are_compared(inference, tmp_path, capsys, monkeypatch):
    samples = [f"sampled, S = {count}" for count in (1, 4, 16, 64, 256, 1024)]
    assert list(inference.WAYS) == ["mean scaling", *samples, "analytic"]
    # Each way is compiled, which takes most of the time.
    names = ["mean scaling", "sampled, S = 1", "sampled, S = 64", "analytic"]
    monkeypatch.setattr(inference, "WAYS", {name: inference.WAYS[name] for name in names})
    monkeypatch.setattr(inference, "TIMED_CALLS", 2)
    picture = tmp_path / "new" / "folder" / "x.png"
    inference.main(["--epochs", "1", "--seeds", "2", "--output", str(picture)])
    printed = capsys.readouterr()
    number = r"(\d+\.\d+)"
    cells = r" {2,}".join([rf"{number} ± {number}"] * 3)
    rows = re.findall(rf"^(\S.*?) {{2,}}{cells} +{number}$", printed.out, re.M)
    assert [row[0] for row in rows] == names
    table = {row[0]: [float(cell) for cell in row[1:]] for row in rows}
    for accuracy, _, likelihood, _, calibration, _, milliseconds in table.values():
        assert 20 < accuracy <= 100  # guessing reaches 10 %
        assert 0 < likelihood < np.log(10)  # that of guessing
        assert 0 <= calibration <= 100
        assert milliseconds > 0
    difference = re.search(r"is ([+-]\d+\.\d+) ± \d+\.\d+; below 0", printed.out)
    assert float(difference[1]) == pytest.approx(
        table["analytic"][2] - table["mean scaling"][2], abs=1.1e-4
    )
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert printed.err == ""  # no progress bar in a log


@pytest.mark.exhaustive
def test_sampled_inference_converges_to_analytic(inference):
    """With S samples it is analytic inference plus a noise of a known size.

    The average of one hidden unit is its expectation plus a noise of the variance
    Var(relu(z)) / S, independent over units, and normal for a large S. To first order a
    logarithm of a probability moves with it by its gradient, so its variance is the sum
    of gradient^2 Var(relu(z)) / S over both layers. What is left out is smaller by a
    factor of order 1 / sqrt(S). A normal variable passes 6 standard deviations with a
    probability of 2e-9, one of the 4,500 here with less than 1e-5.
    """
    p, samples = 0.5, 1024
    train_images, images, train_labels, _ = inference.load_data()
    options = argparse.Namespace(p=p, epochs=3, seeds=1)
    with inference.tqdm(disable=True) as bar:
        (params,) = inference.train(train_images, train_labels, options, bar)

    def network(x, noise):
        variances = []
        for name in ("hidden_1", "hidden_2"):
            moments = functional.moments(x, **params[name], p=p)
            x = functional.expected_activation(jax.nn.relu, *moments)
            square = functional.expected_activation(lambda z: jax.nn.relu(z) ** 2, *moments)
            variances.append(square - x**2)
            x = x + noise[name]
        scores = x @ params["readout"]["kernel"] + params["readout"]["bias"]
        return jax.nn.log_softmax(scores), variances

    @jax.jit
    @jax.vmap
    def expected_with_deviation(x):
        zeros = {
            name: jnp.zeros(inference.HIDDEN_UNITS) for name in ("hidden_1", "hidden_2")
        }
        gradients, variances = jax.jacrev(network, argnums=1, has_aux=True)(x, zeros)
        terms = zip(gradients.values(), variances, strict=True)
        variance = sum(gradient**2 @ variance for gradient, variance in terms)
        return network(x, zeros)[0], jnp.sqrt(variance / samples)

    def infer(*way):
        call = jax.jit(partial(inference.log_probabilities, inference.Network(p, *way)))
        return call(params, images, jax.random.key(5))

    expected, deviation = expected_with_deviation(images)
    np.testing.assert_allclose(infer("analytic"), expected, atol=1e-4)
    assert (jnp.abs(infer("sample", samples) - expected) < 6 * deviation).all()
    # The bound is tight enough to tell analytic inference from everything else.
    for other in (infer("sample", 1), infer("mean")):
        assert (jnp.abs(other - expected) > 6 * deviation).mean() > 0.3


def test_mean_scaling_is_that_of_the_weights(inference):
    images = inference.load_data()[1]
    network = inference.Network(0.25, "mean")
    params = network.init(jax.random.key(0), images, train=False)["params"]
    x = images
    for name in ("hidden_1", "hidden_2"):
        kernel, bias = 0.75 * params[name]["kernel"], 0.75 * params[name]["bias"]
        x = jnp.maximum(x @ kernel + bias[None], 0)
    expected = x @ params["readout"]["kernel"] + params["readout"]["bias"][None]
    scores = network.apply({"params": params}, images, train=False)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_scores_of_known_probabilities(inference):
    """Two images are in the bin of 0.9, one of them right, and one in that of 0.5."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]])
    scores = inference.score(np.log(probabilities), np.array([0, 1, 0]))
    likelihood = -np.log([0.9, 0.1, 0.5]).mean()
    error = (abs(1 - 2 * 0.9) + abs(1 - 0.5)) / 3
    np.testing.assert_allclose(scores, [200 / 3, likelihood, 100 * error])


@pytest.mark.short
@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("--epochs", "0", r"--epochs must be 1 or more, but got 0; .* --epochs 100"),
        ("--seeds", "-1", r"--seeds must be 1 or more, but got -1; .* --seeds 3"),
        ("--p", "1", r"--p must be in \[0, 1\), but got 1\.0; .* --p 0\.5"),
        ("--p", "nan", r"--p must be in \[0, 1\), but got nan; .* --p 0\.5"),
        ("--p", "half", "argument --p: invalid float value: 'half'"),
        ("--output", "x.jpg", r"ends in \.png, but got x\.jpg; .* output/dropconnect_inf"),
        ("--output", f"{__file__}/x.png", "in a folder that exists or can be made, but"),
    ],
)
def test_bad_option_of_the_comparison_is_refused(inference, option, given, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        inference.main([f"{option}={given}"])
    assert re.search(message, capsys.readouterr().err)


def test_help_of_the_comparison_names_every_option(inference, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        inference.main(["--help"])
    shown = capsys.readouterr().out
    for option in ("--epochs", "--seeds", "--p", "--output"):
        assert re.search(rf"^  {option} .*?\(default:\s", shown, re.M | re.S)


def test_all_devices_train_as_one_does(parallel, tmp_path, capsys):
    picture = tmp_path / "new" / "x.png"
    parallel.main(["--epochs", "2", "--output", str(picture)])
    printed = capsys.readouterr()
    assert "devices: 8 (cpu), processes: 1, images a device and step: 12" in printed.out
    assert "training steps: 28" in printed.out
    row = r"^{}  +(\d\.\d+)  +(\d+\.\d+)$"
    found = [
        re.search(row.format(name), printed.out, re.M).groups()
        for name in ("all devices", "one device")
    ]
    assert found[0] == found[1]
    assert float(found[0][0]) < 2  # that of guessing is 2.3
    difference = re.search(r"largest difference of the losses: (\S+)", printed.out)
    assert float(difference[1]) < 1e-12
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert printed.err == ""


def test_the_largest_difference_is_printed(parallel, monkeypatch, capsys):
    """And not that of the last step; the devices of the first run are all of them."""
    used = []

    def train(digits, options, devices):
        used.append(len(devices))
        return parallel.Result(np.array([1.0, 0.75 if used == [8] else 1.0, 1.0]), 0.5)

    monkeypatch.setattr(parallel, "train", train)
    parallel.main([])
    assert used == [8, 1]
    assert "largest difference of the losses: 2.5e-01" in capsys.readouterr().out


@pytest.mark.short
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--epochs", "0"], r"--epochs must be 1 or more, but got 0; type 20"),
        (["--p", "nan"], r"--p must be in \[0, 1\), but got nan; type for example 0\.5"),
        (["--process-id", "1"], r"must be 0 to --processes minus 1, but got 1 of 1; type"),
        (["--processes", "2"], r"--coordinator must be given.*--coordinator 127\.0\.0\.1"),
        (["--processes", "0"], r"--processes must be 1 or more, but got 0; type 1"),
        (["--output", "x.jpg"], r"ends in \.png, but got x\.jpg; .* output/data_parallel"),
        (["--output", f"{__file__}/x.png"], "that exists or can be made, but got .*; type"),
    ],
)
def test_bad_option_of_the_parallel_training_is_refused(parallel, given, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        parallel.main(given)
    assert re.search(message, re.sub(r"\s+", " ", capsys.readouterr().err))


def test_devices_that_can_not_share_a_batch_are_refused(parallel, monkeypatch):
    monkeypatch.setattr(parallel, "BATCH_SIZE", 90)
    with pytest.raises(SystemExit, match=r"90 images .* over 8 devices; make fewer"):
        parallel.main([])


@pytest.fixture(scope="module")
def in_nnx():
    sys.path.insert(0, str(FOLDER))
    yield load("train_digits_nnx")
    sys.path.remove(str(FOLDER))


def test_the_network_in_nnx_has_the_numbers_and_masks_of_linen(in_nnx):
    linen = in_nnx.train_digits
    images = linen.load_data().train_images[:8]
    for name in ("no dropout", "one mask per simulation"):
        models = (
            linen.Network(linen.MODELS[name], 0.5),
            in_nnx.Network(in_nnx.KINDS[name], 0.5),
        )
        found = []
        for model in models:
            params = linen.init_params(model, jax.random.key(3))

            @jax.jit
            def gradient(params, model=model):
                def loss(params):
                    rngs = {"dropout": jax.random.key(1)}
                    scores, _ = linen.run(model, params, images, 3, rngs=rngs, train=True)
                    return (scores**2).mean(), scores

                return jax.value_and_grad(loss, has_aux=True)(params)

            found.append(
                (gradient(params), linen.record_spikes(model, params, images[0], 3))
            )
        chex.assert_trees_all_equal(*found)


@pytest.mark.exhaustive
def test_the_program_in_nnx_prints_the_rows_of_linen(in_nnx, tmp_path, capsys):
    linen = in_nnx.train_digits
    arguments = ["--epochs", "1", "--seeds", "1", "--steps", "2", "--output"]
    linen.main([*arguments, str(tmp_path / "linen.png")])
    linen.main([*arguments, str(tmp_path / "nnx.png")], in_nnx.Network, in_nnx.KINDS)
    rows = re.findall(
        r"^(\S.*?) {2,}(\d+\.\d+) \(one seed\)$", capsys.readouterr().out, re.M
    )
    assert [name for name, _ in rows] == [*NAMES, *NAMES]
    assert rows[0] == rows[3]
    assert rows[2] == rows[5]
