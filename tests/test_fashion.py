"""The part of the study on Fashion-MNIST: its images, its networks, its plan."""

import gzip
import re
import sys
import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import ablation  # noqa: E402
from study import names  # noqa: E402
from study.fashion import images, outliers, plan, tables, training, work  # noqa: E402
from study.fashion.comparisons import ENDS, Setting, Values, at_end  # noqa: E402
from study.fashion.names import (  # noqa: E402
    BEST_UPDATE,
    BOTH,
    ENSEMBLE,
    FEED_FORWARD,
    OUTPUTS,
    QUESTIONS,
    RECURRENT,
    TRAINING_LOSS,
)
from study.fashion.network import Network, RecurrentLIF, without_dropout  # noqa: E402
from study.results import Row, Unit  # noqa: E402

sys.path.remove(str(EXAMPLES))

PAIR = (names.PER_STEP, names.HELD)
ALL_JOBS = plan.plan(plan.Settings(), QUESTIONS, names.CONDITIONS)


# The images.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four small files that pass for the published ones."""
    monkeypatch.setattr(images, "CHECKSUMS", dict(images.CHECKSUMS))
    images.published.cache_clear()
    random = np.random.default_rng(0)
    for name, count in zip(images.CHECKSUMS, (5, 5, 3, 3), strict=True):
        header, size = (16, 784) if "images" in name else (8, 1)
        content = bytes(header) + random.integers(0, 10, count * size, np.uint8).tobytes()
        images.CHECKSUMS[name] = zlib.crc32(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def test_files_are_read_compressed_or_not(folder):
    data = images.published(folder)
    assert data.train.pixels.shape == (5, 784)
    assert data.test.labels.shape == (3,)
    packed = folder / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(packed.read_bytes())
    np.testing.assert_array_equal(
        data.train.pixels.ravel(), np.frombuffer(content[16:], np.uint8) / np.float32(255)
    )
    packed.with_suffix("").write_bytes(content)
    packed.unlink()
    images.published.cache_clear()
    chex.assert_trees_all_equal(images.published(folder), data)


def half(path):
    path.write_bytes(path.read_bytes()[:-20])


def other(path):
    path.write_bytes(gzip.compress(b"not a picture"))


def changed(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (half, r"could not be read whole: .*--reinstall"),
        (other, r"is not the published file .* its 13 bytes have the CRC-32 "),
        (changed, r"is not the published file .* or not all of it"),
        (Path.unlink, r"is missing: .*t10k-labels.*apt-get install .*--data-dir"),
    ],
)
def test_broken_files_are_named(folder, harm, message):
    name = "t10k-images-idx3-ubyte.gz"
    harm(folder / name)
    with pytest.raises(SystemExit, match=rf"(?s){name} {message}"):
        ablation.main(
            ["--data", "fashion", "--data-dir", str(folder), "--output", str(folder / "o")]
        )
    assert not (folder / "o").exists()


def test_a_missing_folder_says_both_ways(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)no folder .*apt-get install .*--data-dir"):
        ablation.main(
            ["--data", "fashion", "--data-dir", str(tmp_path / "none"), "--quick"]
        )


@pytest.mark.skipif(not images.FOLDER.exists(), reason="the package is not installed")
def test_the_package_holds_all_images():
    images.published.cache_clear()
    data = images.published(images.FOLDER)
    assert data.train.pixels.shape == (60_000, 784)
    assert data.test.pixels.shape == (10_000, 784)
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert (data.train.pixels.min(), data.train.pixels.max()) == (0, 1)


def test_images_to_fit_and_to_validate_are_apart():
    data = images.made().train
    rows = [
        {tuple(row) for row in part.pixels}
        for size in (50, 200)
        for part in images.split(data, size, 100, seed=3)
    ]
    small, validation, large, same = rows
    assert [len(one) for one in rows] == [50, 100, 200, 100]
    assert small < large
    assert validation == same
    assert not large & validation
    other_seed, _ = images.split(data, 50, 100, seed=4)
    assert small != {tuple(row) for row in other_seed.pixels}
    with pytest.raises(ValueError, match=r"301 images .* 100 .* more than the 400"):
        images.split(data, 301, 100, seed=3)


def test_outliers_are_digits_of_the_size_of_the_images():
    found = images.outliers()
    assert found.shape == (1797, 784)
    assert found.min() >= 0
    assert 0.9 < found.max() <= 1
    square = found.reshape(-1, 28, 28)
    assert (square[:, :2] == 0).all()
    assert square[:, 2:-2].any()


# The networks.


def network(condition, p=0.5, place=OUTPUTS, recurrent=False, steps=28):
    return Network(condition, p, place, steps, units=6, recurrent=recurrent)


def shown(recurrent, count=3):
    return training.shown(jnp.asarray(images.made().test.pixels[:count]), recurrent)


@pytest.mark.exhaustive
@pytest.mark.parametrize("recurrent", [False, True])
def test_conditions_start_from_the_same_parameters(recurrent):
    rows, key = shown(recurrent), jax.random.key(5)
    plain = training.first_params(network(names.NONE, recurrent=recurrent), 5)
    conditions = PAIR if recurrent else names.CONDITIONS
    for condition in conditions:
        made = network(condition, recurrent=recurrent, place=BOTH)
        found = jax.jit(made.init, static_argnames="train")(key, rows, train=False)
        chex.assert_trees_all_equal(found["params"], plain)


def scores(model, params, rows, seed=0, train=True):
    rngs = {"dropout": jax.random.key(seed)}
    return jax.jit(model.apply, static_argnames="train")(
        {"params": params}, rows, train=train, rngs=rngs
    )


@pytest.mark.exhaustive
def test_conditions_are_one_network_where_nothing_is_dropped():
    rows = shown(False)
    params = training.first_params(network(names.NONE), 0)
    expected = scores(network(names.NONE), params, rows)
    assert expected.shape == (28, 3, 10)
    for condition in names.CONDITIONS:
        found = scores(network(condition, 0.0), params, rows)
        chex.assert_trees_all_close(found, expected, atol=1e-6)
        found = scores(network(condition, 0.5), params, rows, train=False)
        if "connect" not in condition:  # whose weights are scaled
            chex.assert_trees_all_close(found, expected, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("condition", PAIR)
def test_places_are_what_is_dropped(condition):
    """All that can be dropped is, so what is left is what is not."""
    rows = shown(True)
    params = training.first_params(network(names.NONE, recurrent=True), 0)
    params = jax.tree.map(lambda leaf: 4 * leaf, params)
    params["readout"]["bias"] += 1

    def of(place):
        return scores(network(condition, 1.0, place, recurrent=True), params, rows)

    loose = jax.tree.map(lambda leaf: leaf, params)
    for number in (1, 2):
        loose[f"neurons_{number}"]["recurrent"]["kernel"] *= 0
    plain = without_dropout(network(condition, recurrent=True))
    chex.assert_trees_all_close(of(RECURRENT), scores(plain, loose, rows), atol=1e-5)
    for place in (OUTPUTS, BOTH):
        np.testing.assert_allclose(of(place), 1, atol=1e-6)
    assert (jnp.abs(scores(plain, params, rows) - of(RECURRENT)) > 0.01).any()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("condition", "same"), [(names.HELD, True), (names.PER_STEP, False)]
)
def test_recurrent_masks_are_held_or_new_at_every_step(condition, same):
    neurons = sd.MultiStep(RecurrentLIF(condition, 0.5, parent=None))
    current = jnp.full((12, 4, 50), 2.0)  # enough to fire, if nobody inhibits
    params = {"recurrent": {"kernel": -100 * jnp.eye(50)}}
    spikes = scores(neurons, params, current)
    uninhibited = spikes[1:] == 1
    always = uninhibited.all(axis=0).mean()
    assert (0.3 < always < 0.7) if condition == names.HELD else (always < 0.02)


# Training.


@pytest.mark.exhaustive
def test_the_best_parameters_are_those_of_the_least_loss():
    data = images.made().train
    fit, validation = images.split(data, 64, 50, seed=0)
    # Wrong labels: the better it fits, the worse in validation; the best are not the last.
    validation = validation._replace(labels=(validation.labels + 5) % 10)
    model = network(names.NONE, 0.0, steps=2).copy(units=32)
    batches = training.draw_batches(64, 0, rounds=4, updates=32)
    assert batches.shape == (4, 8, 32)
    assert sorted(batches[0, :2].ravel()) == list(range(64))
    first = training.first_params(model, 0)
    trained = training.train(model, fit, validation, first, batches, jax.random.key(0))

    def loss(params):
        log_probs = training.log_probabilities(model, params, validation.pixels)
        return -log_probs[np.arange(50), validation.labels].mean()

    np.testing.assert_allclose(loss(trained.last), trained.losses[-1], rtol=1e-5)
    np.testing.assert_allclose(loss(trained.best), trained.losses.min(), rtol=1e-5)
    assert 0 < trained.losses.argmin() < 3


def test_batches_of_images_are_judged_as_all_at_once():
    model = network(names.NONE, 0.0, steps=2)
    params = training.first_params(model, 0)
    pixels = images.made().train.pixels[:250]
    logits = scores(model, params, training.shown(jnp.asarray(pixels), False)).mean(0)
    found = training.log_probabilities(model, params, pixels)
    np.testing.assert_allclose(found, jax.nn.log_softmax(logits), atol=1e-5)


def test_outliers_of_higher_entropy_have_the_whole_area():
    sure = np.log(np.full((4, 10), 1e-4) + np.eye(10)[:4])
    unsure = np.log(np.full((3, 10), 0.1))
    (area,) = outliers.area_of_one(sure, unsure).values()
    assert area == 1
    members = np.stack([sure, sure])
    apart = np.log(np.full((2, 3, 10), 1e-4) + np.eye(10)[[[0, 1, 2], [3, 4, 5]]])
    assert set(outliers.area_of_many(members, apart).values()) == {1}


# The plan.


def test_selection_and_test_share_no_seed():
    seeds = {
        table: {job.seed for job in ALL_JOBS if job.unit.table == table}
        for table in (names.SELECTION, names.TEST)
    }
    assert not seeds[names.SELECTION] & seeds[names.TEST]
    again = plan.plan(plan.Settings(first_seed=100), QUESTIONS, names.CONDITIONS)
    assert not {job.seed for job in again} & set.union(*seeds.values())


def test_every_p_that_can_be_chosen_is_tested():
    def settings(table, condition):
        return {
            (job.unit.data, job.unit.steps, job.unit.variant, job.unit.p)
            for job in ALL_JOBS
            if (job.unit.table, job.unit.condition) == (table, condition)
        }

    for condition in (names.NONE, *PAIR):
        assert settings(names.SELECTION, condition) <= settings(names.TEST, condition)


def test_an_ensemble_comes_after_its_members():
    parts = plan.in_parts(ALL_JOBS)
    assert [job for part in parts for chain in part for job in chain] == ALL_JOBS
    assert len(set(ALL_JOBS)) == len(ALL_JOBS)
    before = set()
    for part in parts:
        for chain in part:
            for job in chain:
                if job.unit.table == ENSEMBLE:
                    member = job.unit._replace(table=names.TEST)
                    for seed in range(plan.Settings().members):
                        assert plan.Job(member, seed) in before
        before |= {job for chain in part for job in chain}


def test_questions_and_conditions_choose_a_part_of_the_plan():
    found = plan.plan(plan.Settings(), ["connections"], names.CONDITIONS)
    assert {job.unit.condition for job in found} == set(names.CONDITIONS) - {
        names.NONE,
        *PAIR,
    }
    found = plan.plan(plan.Settings(), QUESTIONS, [names.HELD])
    assert {job.unit.condition for job in found} == {names.HELD}
    assert all(plan.cost(job, plan.Settings()) > 0 for job in ALL_JOBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions", "space"], r"invalid choice: '?space'?.*overfitting.*time"),
        (["--first-seed", "-1"], r"--first-seed must be 0 to 999, not -1"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        ablation.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_results_of_another_plan_are_named_and_kept(tmp_path):
    settings = plan.Settings()
    other = settings.blocks[1]._replace(updates=5)
    changed = settings._replace(blocks=(settings.blocks[0], other, *settings.blocks[2:]))
    work.Results(tmp_path, plan.described(settings, {}))
    before = (tmp_path / "settings.json").read_text()
    with pytest.raises(ValueError, match=r"part 2, updates is 4000 there and 5 now\."):
        work.Results(tmp_path, plan.described(changed, {}))
    assert (tmp_path / "settings.json").read_text() == before


def test_a_feed_forward_network_sees_an_image_as_one_row():
    assert shown(False).shape == (1, 3, 784)
    rows = shown(True)
    assert rows.shape == (28, 3, 28)
    np.testing.assert_array_equal(rows[:, 0].ravel(), images.made().test.pixels[0])
    assert FEED_FORWARD not in plan.PLACES


# The comparisons.

SETTING = Setting("fashion-5000", 8, FEED_FORWARD)


def rows_of(table, condition, p, values, measure=names.LIKELIHOOD):
    unit = Unit(table, *SETTING[:2], condition, p, FEED_FORWARD)
    return [Row(unit, measure, seed, value) for seed, value in enumerate(values)]


def some_rows(measure=names.LIKELIHOOD, sign=1):
    def of(table, condition, p, values):
        return rows_of(table, condition, p, [sign * v for v in values], measure)

    return [
        *of(names.SELECTION, names.HELD, 0.2, [1.0, 3.0]),
        *of(names.SELECTION, names.HELD, 0.5, [1.5, 2.5]),  # the same mean
        *of(names.SELECTION, names.HELD, 0.7, [0.9, 9.0]),
        *of(names.SELECTION, names.PER_STEP, 0.2, [2.0, 2.0]),
        *of(names.SELECTION, names.PER_STEP, 0.5, [1.0, 1.0]),
        *of(names.TEST, names.NONE, 0.0, [5.0, 6.0]),
        *of(names.TEST, names.HELD, 0.2, [4.0, 5.5]),
        *of(names.TEST, names.HELD, 0.5, [0.0, 0.0]),
        *of(names.TEST, names.PER_STEP, 0.2, [8.0, 8.0]),
        *of(names.TEST, names.PER_STEP, 0.5, [4.5, 6.5]),
    ]


@pytest.mark.parametrize(("measure", "sign"), [(names.LIKELIHOOD, 1), (names.ACCURACY, -1)])
@pytest.mark.parametrize("end", ENDS)
def test_p_is_chosen_by_validation_and_by_nothing_else(measure, sign, end):
    values = Values(some_rows(at_end(measure, end), sign), at_end(measure, end))
    assert values.choose(SETTING, names.HELD) == 0.2
    assert values.choose(SETTING, names.PER_STEP) == 0.5
    assert values.choose(SETTING, names.CONNECT_HELD) is None


def test_settings_whose_p_is_not_chosen_are_not_compared_as_if_it_were():
    rows = [row for row in some_rows() if row.unit.table == names.TEST]
    values = Values(rows, names.LIKELIHOOD)
    assert values.settings() == [SETTING]
    assert list(values.compare_chosen()) == []
    assert len(list(values.compare_at_equal_p())) == 6


def test_comparisons_are_paired_by_seed():
    values = Values(some_rows(), names.LIKELIHOOD)
    chosen = {(one, other): found for _, one, other, found in values.compare_chosen()}
    # Seed by seed 0.5 and 1 less; and where both have p = 0.2, by 4 and 2.5.
    assert chosen[names.HELD, names.PER_STEP].mean == -0.75
    assert chosen[names.HELD, names.NONE].mean == -0.75
    equal = {
        (p, one, other): found for _, p, one, other, found in values.compare_at_equal_p()
    }
    assert equal[0.2, names.HELD, names.PER_STEP].mean == -3.25
    assert equal[0.5, names.PER_STEP, names.NONE].mean == 0


def test_comparisons_wait_for_all_seeds():
    rows = [
        row
        for row in some_rows()
        if (row.unit.table, row.unit.condition, row.seed) != (names.TEST, names.HELD, 1)
    ]
    found = Values(rows, names.LIKELIHOOD).compare_chosen()
    assert [pair for _, *pair, _ in found] == [[names.PER_STEP, names.NONE]]


def test_recurrent_networks_without_dropout_stand_for_all_places():
    rows = []
    for place in plan.PLACES:
        unit = Unit(names.TEST, "fashion-5000", 28, names.HELD, 0.2, place)
        rows += [Row(unit, names.LIKELIHOOD, seed, 1.0) for seed in (0, 1)]
    unit = unit._replace(condition=names.NONE, p=0.0, variant=OUTPUTS)
    rows += [Row(unit, names.LIKELIHOOD, seed, 3.0) for seed in (0, 1)]
    found = list(Values(rows, names.LIKELIHOOD).compare_at_equal_p())
    assert [setting.variant for setting, *_ in found] == list(plan.PLACES)
    assert {difference.mean for *_, difference in found} == {-2}


def test_tables_need_no_more_than_is_done():
    assert tables.all_tables([]) == []
    made = []
    for measure in (*tables.DIGITS, TRAINING_LOSS, BEST_UPDATE):
        sign = -1 if measure == names.ACCURACY else 1
        for end in ENDS:
            made += some_rows(at_end(measure, end), sign)
    found = {table.name: table for table in tables.all_tables(made)}
    assert set(found) == {"tested", "differences", "equal-p", "selection", "training"}
    held = next(line for line in found["tested"].lines if line[2] == "dropout, held")
    assert held[:4] == ("5,000 images, T = 8", ENDS[0], "dropout, held", "0.2")
    assert held[4].startswith("4.7500 ±")


@pytest.mark.exhaustive
def test_a_quick_run_makes_images_where_there_are_none(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(images, "FOLDER", tmp_path / "none")
    arguments = ["--quick", "--data", "fashion", "--questions", "uncertainty"]
    arguments += ["--conditions", "none", "--output", str(tmp_path)]
    ablation.main(arguments)
    assert " 4 of 4 " in capsys.readouterr().out
    results = tmp_path / "fashion" / "results.csv"
    whole = results.read_text()
    assert '"images": "made"' in (tmp_path / "fashion" / "settings.json").read_text()

    # What was interrupted goes on where it was, to the same numbers.
    kept = [line for line in whole.splitlines() if not line.startswith("test,")]
    results.write_text("\n".join(kept) + "\n")
    ablation.main(arguments)
    assert len(re.findall(r" of 4 ", capsys.readouterr().out)) == 2
    assert results.read_text() == whole

    # Numbers of other seeds are not gone on with.
    with pytest.raises(SystemExit, match=r"first_seed is 0 there and 7 now\. Nothing was"):
        ablation.main([*arguments, "--first-seed", "7"])
    assert results.read_text() == whole
