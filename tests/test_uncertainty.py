"""Monte-Carlo dropout: masks per sample, everything else as in inference."""

import importlib
import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax.errors import InvalidRngError

import snn_dropout as sd
from tests.depth import cases
from tests.neurons import LIF, Net

EXAMPLES = Path(__file__).parents[1] / "examples"
KEY = jax.random.key(8)
RNGS = {"dropout": KEY}


class Normalised(nn.Module):
    """A network with running averages; `train` reaches all of its layers."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        x = sd.Dropout(0.5)(4 * LIF()(4 * x), deterministic=not train)
        connected = sd.DropConnectLinear(16, 8, p=0.3, invariant=True)
        return nn.Dense(3)(connected(x, deterministic=not train))


MODEL = Normalised()


@pytest.fixture(scope="module")
def x_seq():
    return jax.random.normal(jax.random.key(1), (5, 4, 6))


@pytest.fixture(scope="module")
def variables(x_seq):
    made = MODEL.init(jax.random.key(2), x_seq[0])
    statistics = jax.tree.map(lambda leaf: leaf + 0.5, made["batch_stats"])
    return {"params": made["params"], "batch_stats": statistics}


class Averaged(nn.Module):
    """The same, called as in training but for its running averages."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(16)(x))
        x = sd.Dropout(0.5)(4 * LIF()(4 * x), deterministic=False)
        connected = sd.DropConnectLinear(16, 8, p=0.3, invariant=True)
        return nn.Dense(3)(connected(x, deterministic=False))


@cases("samples, at_once", [(5, 2), (6, 3), (3, 8), (1, 1)], short=[(5, 2)])
def test_it_is_what_a_loop_over_simulations_finds(variables, x_seq, samples, at_once):
    scores = []
    for number in range(samples):
        rngs = {"dropout": jax.random.fold_in(KEY, number)}
        y_seq, _ = sd.simulate(Averaged(), variables, x_seq, rngs=rngs)
        scores.append(np.asarray(y_seq.mean(0), np.float64))
    scores = np.stack(scores)
    odds = np.exp(scores)
    each = odds / odds.sum(-1, keepdims=True)
    mean = each.mean(0)
    entropy = -(mean * np.log(mean)).sum(-1)
    information = entropy - (-(each * np.log(each)).sum(-1)).mean(0)

    found = jax.jit(
        lambda x_seq: sd.monte_carlo(
            MODEL, variables, x_seq, rngs=RNGS, samples=samples, at_once=at_once
        )
    )(x_seq)
    expected = scores.mean(0), scores.var(0), entropy, information
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert samples == 1 or (found.variance > 0).all()
    assert (found.mutual_information >= 0).all()


@pytest.mark.exhaustive
def test_fields_do_not_matter(x_seq):
    """Layers whose field says inference drop as those that are told to train."""
    inference, training = (
        nn.Sequential(
            [
                sd.Dropout(0.5, deterministic=deterministic),
                sd.DropConnectLinear(6, 3, deterministic=deterministic),
            ]
        )
        for deterministic in (True, False)
    )
    params = training.init(KEY, x_seq[0])

    @jax.jit
    def both(params):
        return [
            sd.monte_carlo(model, params, x_seq, rngs=RNGS, samples=3)
            for model in (inference, training)
        ]

    found, expected = both(params)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (found.variance > 0).any()


@pytest.mark.exhaustive
def test_a_parameter_may_be_called_as_a_mask_is(x_seq):
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x):
            mask = self.param("mask", nn.initializers.ones, x.shape[-1:])
            return sd.Dropout(0.5, deterministic=True)(x * mask[None])

    variables = Masked().init(KEY, x_seq[0])
    found = sd.monte_carlo(Masked(), variables, x_seq, rngs=RNGS, samples=2)
    assert (found.variance > 0).any()


@pytest.mark.exhaustive
def test_what_drops_nothing_is_certain(x_seq):
    model = Net(p=0.0)
    variables = model.init(KEY, x_seq[0])
    found = sd.monte_carlo(model, variables, x_seq, rngs=None, samples=4, at_once=2)
    y_seq, _ = sd.simulate(model, variables, x_seq)
    np.testing.assert_allclose(found.mean, y_seq.mean(0), rtol=1e-6)
    assert not found.variance.any()
    np.testing.assert_allclose(found.mutual_information, 0, atol=1e-6)


@cases("inference_first", [True, False], short=[True])
@pytest.mark.exhaustive
def test_a_lifted_jit_does_not_mix_it_up_with_inference(x_seq, inference_first):
    """It reuses what it traced for a call of the same signature."""
    model = nn.jit(Net, static_argnames="train")()
    variables = model.init(KEY, x_seq[0])

    def certain(rngs):
        y_seq, _ = sd.simulate(model, variables, x_seq, rngs=rngs)
        plain, _ = sd.simulate(Net(), variables, x_seq)
        np.testing.assert_allclose(y_seq, plain, atol=1e-5)

    if inference_first:
        certain(RNGS)
    for _ in range(2):
        found = sd.monte_carlo(model, variables, x_seq, rngs=RNGS, samples=4)
        assert (found.variance > 1e-6).any()
    certain(RNGS)


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_samples(variables):
    x_seq = jnp.ones((5, 64, 6))

    def memory(samples):
        def run(x_seq, key):
            rngs = {"dropout": key}
            return sd.monte_carlo(MODEL, variables, x_seq, rngs=rngs, samples=samples)

        compiled = jax.jit(run).lower(x_seq, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(800) < 1.1 * memory(16)


def test_scores_are_those_of_the_caller(x_seq):
    """They see the outputs of all steps, and nothing else is made of them."""

    def model(deterministic):
        drop = sd.Dropout(0.5, deterministic=deterministic)
        return nn.Sequential([nn.Dense(4), drop, nn.Dense(3)])

    samples, variables = 3, model(True).init(KEY, x_seq[0])

    def scores(y_seq):
        return y_seq[-1] - 2 * y_seq[0]

    @jax.jit
    def both(x_seq):
        def one(number):
            rngs = {"dropout": jax.random.fold_in(KEY, number)}
            y_seq, _ = sd.simulate(model(False), variables, x_seq, rngs=rngs)
            return scores(y_seq)

        given = {"rngs": RNGS, "samples": samples, "scores": scores}
        found = sd.monte_carlo(model(True), variables, x_seq, **given)
        return found, jax.vmap(one)(jnp.arange(samples))

    found, each = both(x_seq)
    assert (each.var(0) > 0).any()
    np.testing.assert_allclose(found.mean, each.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, each.var(0), rtol=1e-5, atol=1e-6)


def one_output(step_mode="s", deterministic=True):
    drop = sd.Dropout(0.5, step_mode, deterministic=deterministic)
    return nn.Sequential([nn.Dense(6), drop, nn.Dense(1)])


@pytest.fixture(scope="module")
def one(x_seq):
    return jax.jit(one_output().init)(KEY, x_seq[0])


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_one_output_is_no_distribution_over_classes(x_seq, one, step_mode):
    model = one_output(step_mode)
    for shape, scores in {
        (4, 1): lambda y_seq: y_seq.mean(0),
        (4, 0): lambda y_seq: y_seq.mean(0)[:, :0],
        (4,): lambda y_seq: y_seq.mean((0, 2)),
        (): jnp.sum,
    }.items():
        message = re.escape(f"[N, K] for two or more, but returned shape {shape},")
        with pytest.raises(ValueError, match=message + r".*jnp\.insert\(.*entropies=False"):
            sd.monte_carlo(
                model, one, x_seq, rngs=RNGS, samples=2, step_mode=step_mode, scores=scores
            )


@pytest.mark.exhaustive
def test_the_logit_of_a_yes_or_no_has_two_classes(x_seq, one):
    """What the message says to type; for outputs without an axis too."""

    def logit(y_seq):
        return jnp.insert(y_seq.mean(0), 0, 0.0, axis=-1)

    def squeezed(y_seq):
        y_seq = y_seq[..., 0]
        return jnp.insert(y_seq.mean(0)[:, None], 0, 0.0, axis=-1)

    model, given = one_output(), {"rngs": RNGS, "samples": 4}
    found = sd.monte_carlo(model, one, x_seq, scores=logit, **given)
    again = sd.monte_carlo(model, one, x_seq, scores=squeezed, **given)
    for ours, theirs in zip(found, again, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    training = one_output(deterministic=False)
    keys = [{"dropout": jax.random.fold_in(KEY, n)} for n in range(4)]
    logits = [sd.simulate(training, one, x_seq, rngs=rngs)[0].mean(0) for rngs in keys]
    yes = 1 / (1 + np.exp(-np.stack(logits)[..., 0]))
    each = scipy.special.entr([yes, 1 - yes]).sum(0).mean(0)
    whole = scipy.special.entr([yes.mean(0), 1 - yes.mean(0)]).sum(0)
    np.testing.assert_allclose(found.variance[:, 1], np.var(logits, 0)[:, 0], rtol=1e-4)
    np.testing.assert_allclose(found.predictive_entropy, whole, rtol=1e-4)
    np.testing.assert_allclose(found.mutual_information, whole - each, atol=1e-5)
    assert found.mutual_information.min() > 1e-4


@pytest.mark.exhaustive
def test_a_regression_has_mean_and_variance_alone(x_seq, one):
    run = partial(sd.monte_carlo, one_output(), one, x_seq, rngs=RNGS, samples=3, at_once=2)
    both = run(scores=lambda y_seq: jnp.insert(y_seq.mean(0), 0, 0.0, axis=-1))
    numbers = both.mean[:, 1:], both.variance[:, 1:]
    for scores, (mean, variance) in (
        (lambda y_seq: y_seq.mean(0), numbers),
        (lambda y_seq: y_seq.mean(0)[2, 0], (part[2, 0] for part in numbers)),
    ):
        found = run(scores=scores, entropies=False)
        assert found.predictive_entropy is None
        assert found.mutual_information is None
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.variance, variance, rtol=1e-4)
    for flag in (None, 0, "mean"):
        with pytest.raises(TypeError, match=r"`entropies` must be True or False, whether"):
            run(entropies=flag)


def test_bad_input_is_named(variables, x_seq):
    def run(variables=variables, samples=2, **kwargs):
        return sd.monte_carlo(
            MODEL, variables, x_seq, **{"rngs": RNGS, **kwargs}, samples=samples
        )

    with pytest.raises(ValueError, match="`samples` must be 1 or more, but got 0"):
        run(samples=0)
    with pytest.raises(TypeError, match="`at_once` must be a static Python integer"):
        run(at_once=1.5)
    state = sd.init_state(MODEL, variables, x_seq[0], rngs=RNGS, train=True)
    with pytest.raises(
        ValueError, match=r"hold no mask.*state/Dropout_0/mask.*reset_masks"
    ):
        run({**variables, "state": state})
    assert run({**variables, "state": sd.reset_masks(state)}).mean.shape == (4, 3)
    for rngs in (None, {}, KEY):
        with pytest.raises(InvalidRngError, match="'dropout'"):
            run(rngs=rngs)
    with pytest.raises(TypeError, match="`scores` must return one array of floats"):
        run(scores=lambda y_seq: y_seq > 0)
    with pytest.raises(ValueError, match="`scores` must return an array whose last axis"):
        run(scores=jnp.sum)


def test_the_example_prints_its_table_and_writes_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("uncertainty")
    picture = tmp_path / "folder" / "x.png"
    with jax.numpy_rank_promotion("allow"):
        example.main(["--epochs=1", "--samples=3", "--steps=2", f"--output={picture}"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^ +(\d+) [%°] +(\S+) % +(\S+) nats +(\S+) nats$", printed, re.M)
    assert [int(row[0]) for row in rows] == [
        0,
        20,
        40,
        60,
        80,
        100,
        0,
        15,
        30,
        45,
        60,
        75,
        90,
    ]
    assert rows[0][1:] == rows[6][1:], "both start from the clean digits"
    assert rows[0][1:] != rows[5][1:]
    assert all(0 <= float(row[3]) <= float(row[2]) <= 2.31 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    for option, message in (
        ("--samples=0", r"--samples must be 1 or more, but got 0; .* --samples 64"),
        ("--p=1", r"--p must be in \[0, 1\), but got 1\.0; .* --p 0\.5"),
        ("--output=x.jpg", r"ends in \.png, but got x\.jpg; .* output/uncertainty\.png"),
        (f"--output={__file__}/x.png", "in a folder that exists or can be made, but"),
    ):
        with pytest.raises(SystemExit, match=r"^2$"):
            example.main([option])
        assert re.search(message, capsys.readouterr().err)
