"""The study of held masks: at a toy size, its parts, and the page that reports it."""

import json
import os
import re
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import snn_dropout as sd
from tests import compiler

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "ablation.py"
sys.path.insert(0, str(PROGRAM.parent))

import ablation  # noqa: E402
from study import names, running, statistics  # noqa: E402
from study.fashion import plan as fashion  # noqa: E402
from study.fashion import tables as fashion_tables  # noqa: E402
from study.fashion.names import QUESTIONS  # noqa: E402
from study.results import Results, Row, Unit, read_rows  # noqa: E402
from study.small import data as data_sets  # noqa: E402
from study.small import inference, measures, part, plan, tables, training, work  # noqa: E402
from study.small.network import Network  # noqa: E402

sys.path.remove(str(PROGRAM.parent))

PUBLISHED = ROOT / "docs" / "ablation" / "small"
PAIR = (names.PER_STEP, names.HELD)
SMALL_TABLES = ("mechanism", "ablation", "differences", "inference", "uncertainty")
SMALL_TABLES += ("selection", "equal-p", "inference-differences")
FASHION_TABLES = (
    "tested",
    "differences",
    "equal-p",
    "selection",
    "training",
    "uncertainty",
)
SMALL_DATA = [name for name in names.DATA if name != names.FASHION]


def run(folder, *options):
    """Runs the program as its user does, but for the compiler, which does not optimise."""
    flags = f"--xla_backend_optimization_level=0 {compiler.LITTLE_WORK}"
    return subprocess.run(
        [sys.executable, PROGRAM, "--quick", "--output", folder, *options],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.exhaustive
def test_quick_run(tmp_path):
    """All tables and pictures."""
    pytest.importorskip("sktime", reason="the vowels are in the extra 'study'")
    folder = tmp_path / "new" / "folder"
    printed = run(folder)
    assert printed.stderr == ""
    written = {
        str(Path(line).relative_to(folder))
        for line in re.findall(r"^written: (.*)$", printed.stdout, re.M)
    }
    made = {"small": SMALL_TABLES, "fashion": FASHION_TABLES}
    pictures = {
        *(f"small/{name}.png" for name in ("mechanism", "differences", "selection")),
        *(f"fashion/{name}.png" for name in ("curves", "differences", "time", "holding")),
    }
    tables_of_both = {
        f"{part}/{name}{end}"
        for part, of_part in made.items()
        for name in of_part
        for end in (".csv", ".md")
    }
    assert written == tables_of_both | pictures
    for picture in pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    path = folder / "small" / "results.csv"
    planned = plan.plan(plan.QUICK, SMALL_DATA, list(names.CONDITIONS))
    assert len({row.unit for row in read_rows(path)}) == len(planned)
    larger = read_rows(folder / "fashion" / "results.csv")
    toy = fashion.quick(fashion.Settings())
    jobs = fashion.plan(toy, QUESTIONS, names.CONDITIONS)
    assert {(row.unit, row.seed) for row in larger} == set(jobs)
    for rows in (read_rows(path), larger):
        assert not np.isnan([row.value for row in rows]).any()

    # A run that is interrupted before its last unit goes on to the same numbers.
    whole = path.read_text()
    lines = whole.splitlines()
    last = lines[-1].split(",")[:6]
    kept = [line for line in lines if line.split(",")[:6] != last]
    path.write_text("\n".join(kept) + "\n")
    assert len(re.findall(r" of \d+ ", run(folder).stdout)) == 1

    def without_times(text):
        return [line for line in text.splitlines() if names.TIME not in line]

    assert without_times(path.read_text()) == without_times(whole)

    # Settings that are not those of the file are named, and nothing is overwritten.
    with pytest.raises(
        SystemExit, match=r"settings\.json is of other settings: seeds is 2 "
    ):
        ablation.main(["--output", str(folder), "--data", "digits"])
    assert without_times(path.read_text()) == without_times(whole)


def test_results_without_settings_are_refused(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "results.csv").write_text("")
    with pytest.raises(SystemExit, match=r"results\.csv has no settings\.json beside it"):
        ablation.main(["--output", str(tmp_path), "--data", "digits"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], r"invalid choice: '?mnist'?.*digits.*vowels"),
        (["--conditions", "zoneout"], r"invalid choice: '?zoneout'?.*per-step.*held"),
        (["--updates", "0"], r"--updates must be 1 or more, not 0"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        ablation.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_missing_extra_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sktime.datasets", None)
    work.load.cache_clear()
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[study\]'"):
        ablation.main(["--quick", "--output", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        ValueError, match=r"must have the columns \('table', .* but has \['a'"
    ):
        read_rows(tmp_path / "results.csv")


def test_missing_parameters_are_named(tmp_path):
    results = Results(tmp_path, {})
    unit = Unit(names.TEST, "digits", 4, "held", 0.5, names.LIF)
    with pytest.raises(
        ValueError, match=r"params/digits-4-held-0\.5-lif\.msgpack is missing"
    ):
        results.load_params(unit)


# The design: what conditions share, and what is kept apart.


def network(condition, p=0.5, **fields):
    return Network(condition, p, layers=2, units=6, classes=10, **fields)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rectified", [False, True])
def test_conditions_start_from_the_same_parameters(rectified):
    first, *others = (
        network(condition, rectified=rectified).init(
            jax.random.key(1), jnp.ones((1, 64)), train=False
        )["params"]
        for condition in names.CONDITIONS
    )
    for other in others:
        chex.assert_trees_all_equal(first, other)
    of_seeds = training.first_params(64, 2, 6, 10, (0, 1))
    chex.assert_trees_all_equal(jax.tree.map(itemgetter(1), of_seeds), first)


@pytest.mark.exhaustive
def test_conditions_are_one_network_where_nothing_is_dropped():
    examples = data_sets.load("digits", 3).train
    key = jax.random.key(2)
    params = network("none").init(key, jnp.ones((1, 64)), train=False)["params"]

    def logits(condition):
        few = data_sets.take(examples, np.arange(5))
        return training.scores(network(condition, 0.0), 3, few, params, key, train=True)

    for condition in names.CONDITIONS:
        chex.assert_trees_all_close(logits(condition), logits("none"), atol=1e-6)


def test_scaled_weights_are_the_mean_of_the_masks():
    x, key = jnp.ones((1, 64)), jax.random.key(0)
    dropped = network("dropconnect-fresh", 0.25, inference="mean")
    params = network("none").init(key, x, train=False)["params"]
    scaled = jax.tree.map(lambda leaf: leaf, params)
    for layer in ("hidden_1", "hidden_2"):
        scaled[layer] = jax.tree.map(lambda leaf: 0.75 * leaf, params[layer])
    expected = network("none").apply({"params": scaled}, x, train=False, mutable=["state"])
    found = dropped.apply({"params": params}, x, train=False, mutable=["state"])
    chex.assert_trees_all_close(found[0], expected[0], atol=1e-6)


def test_training_validation_and_test_examples_are_apart():
    data = data_sets.load("digits", 4)
    small = data_sets.load("digits-200", 4)
    rows = [{tuple(row) for row in np.asarray(part.inputs)} for part in (*data, *small)]
    train, test, few, same_test = rows
    assert len(train) + len(test) == 1797
    assert not train & test
    assert len(few) == 200
    assert few < train
    assert same_test == test
    fit, validation = data_sets.fit_and_validation(data.train)
    assert sorted([*fit, *validation]) == list(range(len(data.train.labels)))
    assert len(validation) == 180


def test_the_seeds_that_choose_p_are_not_those_of_the_tests():
    selection = work.seeds_of(Unit(names.SELECTION, "", 1, "", 0.1, ""), plan.Settings())
    test = work.seeds_of(Unit(names.TEST, "", 1, "", 0.1, ""), plan.Settings())
    assert len(test) >= 10
    assert not set(selection) & set(test)


def test_vowels_are_as_published_and_padded_with_nothing():
    pytest.importorskip("sktime")
    data = data_sets.load("vowels", 29)
    assert data.train.inputs.shape == (270, 29, 12)
    assert data.test.inputs.shape == (370, 29, 12)
    assert np.unique(data.train.labels).tolist() == list(range(9))
    lengths = np.concatenate([data.train.lengths, data.test.lengths])
    assert (lengths.min(), lengths.max()) == (7, 29)
    real = np.arange(29) < np.asarray(data.train.lengths)[:, None]
    assert (np.asarray(data.train.inputs)[~real] == 0).all()
    heard = np.asarray(data.train.inputs)[real]
    np.testing.assert_allclose(heard.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(heard.std(0), 1, atol=1e-5)


def test_steps_behind_the_end_do_not_count():
    inputs = jnp.zeros((2, 4, 3))
    examples = data_sets.Examples(inputs, jnp.zeros(2), jnp.array([2, 4]))
    x_seq, weights = data_sets.present(examples, jax.random.key(0), 4)
    assert x_seq.shape == (4, 2, 3)
    np.testing.assert_allclose(weights.T, [[0.5, 0.5, 0, 0], [0.25] * 4])


def test_pixels_are_rates():
    examples = data_sets.Examples(
        jnp.array([[0.0, 0.3, 1.0]]), jnp.zeros(1), jnp.array([9])
    )
    x_seq, _ = data_sets.present(examples, jax.random.key(0), 4000)
    np.testing.assert_allclose(x_seq.mean(axis=(0, 1)), [0, 0.3, 1], atol=0.03)
    assert set(np.unique(x_seq)) == {0, 1}


def test_batches_of_a_seed_pass_through_all_examples():
    indices = np.arange(100, 164)
    batches = training.draw_batches(indices, np.array([3, 4]), updates=5)
    assert batches.shape == (2, 5, 32)
    for one in batches:
        assert sorted(one[:2].ravel()) == indices.tolist()
        assert sorted(one[2:4].ravel()) == indices.tolist()
    assert (batches[0] != batches[1]).any()
    again = training.draw_batches(indices, np.array([4]), updates=5)
    np.testing.assert_array_equal(again[0], batches[1])


@pytest.mark.exhaustive
def test_seeds_together_are_seeds_alone():
    examples = data_sets.load("digits", 2).train
    seeds = np.arange(2)
    keys = training.keys_of(seeds)
    batches = training.draw_batches(np.arange(64), seeds, updates=2)
    subject = network("held"), 2, examples
    params = training.first_params(64, 2, 6, 10, (0, 1))
    alone = jax.jit(training.train, static_argnums=(0, 1))
    expected = []
    for seed in seeds:
        own = jax.tree.map(itemgetter(seed), params)
        expected.append(alone(*subject, own, batches[seed], keys[seed]))
    found = training.over_seeds(training.train, *subject, params, batches, keys)
    chex.assert_trees_all_close(
        found, jax.tree.map(lambda *of: jnp.stack(of), *expected), atol=1e-5
    )


def test_what_a_unit_needs_is_done_before_it():
    planned = plan.plan(plan.Settings(), SMALL_DATA, list(names.CONDITIONS))
    done = set()
    for chains in plan.in_turn(planned):
        of_part = set()
        for chain in chains:
            before = set(done)  # of other chains nothing is known
            for unit in chain:
                steps = unit.steps
                if unit.table not in (names.SELECTION, names.TEST):
                    steps = plan.Settings().studied_steps
                    relu = unit.variant.startswith(names.RELU)
                    trained = unit._replace(
                        table=names.TEST,
                        steps=steps,
                        variant=names.RELU if relu else names.LIF,
                    )
                    assert trained in before, unit
                if unit.p is None and unit.condition != names.NONE:
                    choice = unit._replace(
                        table=names.SELECTION, steps=steps, variant=names.LIF
                    )
                    assert all(choice._replace(p=p) in before for p in plan.Settings().p)
                before.add(unit)
            of_part |= set(chain)
        assert not done & of_part
        done |= of_part
    assert done == set(planned)


def test_a_unit_that_fails_ends_the_run(monkeypatch, tmp_path):
    tried = []

    def fail(unit, *_):
        tried.append(unit)
        raise RuntimeError("broken")

    monkeypatch.setattr(part, "measure", fail)
    options = ablation.parse_options(
        ["--quick", "--data", names.DIGITS, names.DIGITS_200, "--output", str(tmp_path)]
    )
    with pytest.raises(RuntimeError, match="broken"):
        part.prepare(options, {})()
    assert {unit.data for unit in tried} == {names.DIGITS}, "later parts do not begin"


@pytest.mark.exhaustive
def test_progress_counts_what_was_done_before_and_says_how_much_is_left(capsys):
    def do(job):
        return None if job == 1 else f"job {job}"

    running.run([[[1, 2]], [[3]]], do, cost=lambda job: 10 * job)
    printed = capsys.readouterr().out
    found = re.findall(r"(\d) of 3 .* min, about (\d+) more  (.*)", printed)
    assert [(count, words) for count, _, words in found] == [("2", "job 2"), ("3", "job 3")]
    assert found[-1][1] == "0"


def test_rows_are_brought_into_the_order_of_the_plan(tmp_path):
    planned = plan.plan(plan.QUICK, ["digits"], ["none", "held"])
    results = Results(tmp_path, {})
    for unit in reversed(planned):
        results.add(unit._replace(p=unit.p or 0.5), {"x": [1.0, 2.0]}, [0, 1])
    results.sort(planned)
    assert [row.unit._replace(p=None) for row in results.rows[::2]] == [
        unit._replace(p=None) for unit in planned
    ]
    assert read_rows(tmp_path / "results.csv") == results.rows


# The measures and the statistics.


def subject(condition, p=0.5, steps=16, units=32, count=20):
    examples = data_sets.take(data_sets.load("digits", steps).test, np.arange(count))
    model = Network(condition, p, layers=2, units=units, classes=10)
    keys = training.keys_of(np.arange(2))
    params = training.first_params(64, 2, units, 10, (0, 1))
    return measures.Subject(model, steps, examples, params, keys)


@pytest.mark.exhaustive
@pytest.mark.parametrize("condition", ["per-step", "dropconnect-held"])
def test_inference_a_few_at_a_time_is_that_of_all_at_once(condition):
    few = subject(condition, steps=3, units=6, count=33)  # three batches of eleven

    def all_at_once(network, steps, examples, params, key):
        input_key, dropout_key = jax.random.split(key)
        x_seq, weights = data_sets.present(examples, input_key, steps)
        variables, rngs = {"params": params}, {"dropout": dropout_key}
        y_seq, _ = sd.simulate(network, variables, x_seq, rngs=rngs, train=False)
        return jnp.einsum("tn,tnk->nk", weights, y_seq)

    logits = few.run(all_at_once)
    assert logits.shape == (2, 33, 10)
    np.testing.assert_allclose(few.run(measures._way(None)), logits, atol=1e-5)
    losses = -jax.nn.log_softmax(logits)[:, np.arange(33), few.examples.labels].mean(1)
    found = measures.judge(few)
    np.testing.assert_allclose(found[names.LIKELIHOOD], losses, rtol=1e-5)
    accuracies = (logits.argmax(-1) == few.examples.labels[None]).mean(1)
    np.testing.assert_allclose(found[names.ACCURACY], 100 * accuracies, rtol=1e-5)


@pytest.mark.exhaustive
def test_spread_of_held_masks_is_the_larger():
    per_step, held = (measures.spread(subject(condition), 16) for condition in PAIR)
    for of_seed in zip(per_step[names.SPREAD], held[names.SPREAD], strict=True):
        assert of_seed[1] > 1.5 * of_seed[0]
    np.testing.assert_allclose(
        held[names.STEP_SPREAD], per_step[names.STEP_SPREAD], rtol=0.4
    )


@pytest.mark.exhaustive
def test_spread_is_nothing_without_dropout():
    found = measures.spread(subject("none"), 3)
    # But for the rounding of means.
    np.testing.assert_allclose(found[names.SPREAD], 0, atol=1e-6)
    np.testing.assert_allclose(found[names.STEP_SPREAD], 0, atol=1e-6)


@pytest.mark.exhaustive
def test_monte_carlo_draws_masks_of_both_kinds():
    """Flax's dropout is no layer of the package, and must be sampled all the same."""
    for condition in PAIR:
        one, many = (subject(condition).run(measures._monte_carlo(n)) for n in (1, 4))
        assert (one.variance == 0).all()
        assert (many.variance > 0).any()


@pytest.mark.exhaustive
def test_entropy_that_rises_gives_the_whole_area(monkeypatch):
    def blank(images):
        return np.zeros_like(images)

    monkeypatch.setattr(
        measures, "CHANGES", {"blank": blank, "none": lambda images: images}
    )
    found = measures.separate(subject("none", units=64), 1)
    np.testing.assert_allclose(found["none"], 0.5)
    assert (found["blank"] > 0.9).all()


def test_interval_is_students():
    values = [1.0, 2.0, 4.0, 4.5]
    found = statistics.estimate(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(
        (found.mean - found.half_width, found.mean + found.half_width), (low, high)
    )
    assert statistics.estimate([2.0]).text(1) == "2.0"
    assert not statistics.estimate([-1.0, 2.0]).clear
    assert statistics.estimate([1.0, 1.1]).clear


def rows_of(table, condition, p, values, measure=names.LIKELIHOOD):
    unit = Unit(table, "digits", 4, condition, p, names.LIF)
    return [Row(unit, measure, seed, value) for seed, value in enumerate(values)]


def test_p_is_chosen_by_the_least_mean_loss_in_validation():
    rows = [
        *rows_of(names.SELECTION, "held", 0.1, [1.0, 3.0]),
        *rows_of(names.SELECTION, "held", 0.3, [1.5, 1.9]),
        *rows_of(names.SELECTION, "per-step", 0.5, [0.1, 0.1]),
        *rows_of(names.TEST, "held", 0.5, [0.0, 0.0]),
    ]
    assert statistics.choose_p(rows, "digits", 4, "held") == 0.3
    assert statistics.choose_p(rows, "digits", 4, "per-step") == 0.5


def test_differences_are_paired_by_seed():
    rows = [
        *rows_of(names.TEST, "held", 0.1, [90.0, 80.0, 70.0], names.ACCURACY),
        *rows_of(names.TEST, "per-step", 0.5, [89.0, 79.0, 69.0], names.ACCURACY),
    ]
    found = tables.paired(rows, names.ACCURACY)["digits", 4, "held", "per-step"]
    assert found == (1.0, 0.0)


def test_ways_of_inference_are_compared_with_scaled_weights_seed_by_seed():
    def rows(way, accuracies):
        unit = Unit(names.INFERENCE, "digits", 4, names.CONNECT_HELD, 0.1, f"lif: {way}")
        return [
            Row(unit, measure, seed, value)
            for measure in (names.ACCURACY, names.LIKELIHOOD)
            for seed, value in enumerate(accuracies)
        ]

    made = inference.inference_differences(
        rows(names.SCALED_WEIGHTS, [80.0, 70.0]) + rows("16 samples", [82.0, 72.0])
    )
    expected = ("DropConnect, held", "LIF", "16 samples", "**+2.00 ± 0.00**")
    assert [line[:4] for line in made.lines] == [expected]


# The page.


def test_published_run_is_the_program_at_its_defaults():
    settings = json.loads((PUBLISHED / "settings.json").read_text())
    settings.pop("versions")
    assert settings == json.loads(json.dumps(plan.Settings()._asdict()))
    units = {row.unit for row in read_rows(PUBLISHED / "results.csv")}
    planned = plan.plan(plan.Settings(), SMALL_DATA, list(names.CONDITIONS))
    assert len(units) == len(planned)
    assert {unit._replace(p=None) for unit in units} == {
        u._replace(p=None) for u in planned
    }


def test_page_tells_the_sizes_of_the_published_run():
    page = " ".join((ROOT / "docs" / "does-it-matter.md").read_text().split())
    sizes = plan.Settings()
    for words in (
        f"two hidden layers of {sizes.units} LIF neurons",
        f"{sizes.updates} updates with {training.BATCH_SIZE} examples",
        f"over {sizes.selection_seeds} seeds. Then {sizes.seeds} other seeds",
        f"trained at T = {sizes.studied_steps}. They see the same {work.SPREAD_EXAMPLES}",
        f"under {sizes.masks} masks",
        f"over {sizes.masks} simulations",
    ):
        assert words in page, words


def published_tables():
    """Makes the tables of the page, and one of a longer run."""
    made = tables.all_tables(read_rows(PUBLISHED / "results.csv"))
    longer = [
        row
        for row in read_rows(PUBLISHED / "800-updates" / "results.csv")
        if row.unit.condition in (names.NONE, *PAIR)
    ]
    by_name = {table.name: table for table in tables.all_tables(longer)}
    larger = fashion_tables.all_tables(fashion_rows("fashion"))
    others = fashion_tables.all_tables(fashion_rows("fashion-other-seeds"))
    shown = [table for table in others if table.name in OF_OTHER_SEEDS]
    return [*made, by_name["differences"], *larger, *shown]


OF_OTHER_SEEDS = ("tested", "differences", "uncertainty")


# Of the larger networks: which seeds they start from, and what they answer.
RUNS = {"fashion": (0, QUESTIONS), "fashion-other-seeds": (100, ["uncertainty"])}


def fashion_rows(name):
    """Reads what is published of the larger networks."""
    return read_rows(PUBLISHED.parent / name / "results.csv")


@pytest.mark.parametrize("name", RUNS)
def test_published_run_on_fashion_mnist_is_of_the_plan(name):
    first_seed, questions = RUNS[name]
    planned = fashion.Settings(first_seed=first_seed)
    settings = json.loads((PUBLISHED.parent / name / "settings.json").read_text())
    expected = fashion.described(planned, settings["versions"])
    assert settings == json.loads(json.dumps(expected))
    jobs = fashion.plan(planned, questions, names.CONDITIONS)
    done = {fashion.Job(row.unit, row.seed) for row in fashion_rows(name)}
    assert done <= set(jobs)
    units = {job.unit for job in done}
    assert done == {job for job in jobs if job.unit in units}, "not all of their seeds"


def test_page_has_the_tables_of_the_published_numbers():
    page = (ROOT / "docs" / "does-it-matter.md").read_text()
    for table in published_tables():
        assert table.markdown() in page, table.name


def test_every_decimal_of_the_prose_is_in_a_table():
    page = (ROOT / "docs" / "does-it-matter.md").read_text()
    prose = re.sub(r"^(\|.*|```[\s\S]*?^```)$", "", page, flags=re.M)
    words = "".join(table.markdown() for table in published_tables())
    known = set(re.findall(r"\d+\.\d+", words))
    known |= set(map(str, plan.Settings().p))
    versions = json.loads((PUBLISHED / "settings.json").read_text())["versions"]
    for version in versions.values():
        prose = prose.replace(version, "")
    assert set(re.findall(r"\d+\.\d+", prose)) <= known
