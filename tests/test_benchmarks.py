"""The benchmark tool at toy size: what it writes, and that it refuses what is wrong."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import __main__ as tool
from benchmarks import checks, child, processes, scaling, table, workloads
from benchmarks.implementations import (
    PACKAGES,
    load,
    missing_packages,
    network,
    nnx_network,
)
from benchmarks.implementations.dropout import applied, copy, forward_task, gradient_task
from benchmarks.implementations.jax_tasks import programs_compiled

ROOT = Path(__file__).parent.parent


def usable_cores():
    # Where processes can not be pinned, none of them says where it runs.
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


@pytest.mark.exhaustive
def test_the_tool_measures_side_by_side_and_writes_a_table(tmp_path):
    arguments = ["--small", "--repeats", "2", "--only", "dropout", "--output", tmp_path]
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--cores",
        str(usable_cores()[0]),
        *arguments,
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "table.csv").open() as file:
        lines = {line["implementation"]: line for line in csv.DictReader(file)}
    workload = workloads.WORKLOADS[0]
    assert list(lines) == list(workload.runs)
    for label, line in lines.items():
        missing = missing_packages(workload.runs[label])
        if missing:
            assert line["CPU ms"] == "absent: " + ", ".join(missing)
        else:
            assert float(line["CPU ms"]) > 0
            assert float(line["ratio to ours"]) > 0
        assert line["GPU ms"] == "not measured"
    for label in (workloads.OURS, workloads.COPY, workloads.FLAX_SHARED):
        assert float(lines[label]["temporary MiB"]) >= 0
    written = (tmp_path / "table.md").read_text()
    assert written.splitlines()[0].startswith("1 core")
    assert all(line in done.stdout for line in written.splitlines())


def test_an_absent_rival_is_named(monkeypatch):
    monkeypatch.setitem(PACKAGES, "torch_spikingjelly", ("jax", "no_such_package"))
    runs = {workloads.SPIKINGJELLY: "torch_spikingjelly:dropout"}
    (results,) = processes.measure(runs, [{}], [0], "cpu", 1)
    (line,) = table.lines("title", results, (), "cpu")
    assert line["CPU ms"] == "absent: no_such_package"


def test_rivals_on_the_cpu_are_not_compared_with_a_gpu():
    runs = {workloads.SPIKINGJELLY: "torch_spikingjelly:dropout"}
    (results,) = processes.measure(runs, [{}], [0], "gpu", 1)
    (line,) = table.lines("title", results, (), "gpu")
    assert line["GPU ms"] == "absent: compared on the CPU only"
    assert line["CPU ms"] == "not measured"


def dies():
    def call(number):
        if number >= child.WARM_CALLS:
            os._exit(3)
        return 0.1

    return child.Task(call, lambda: None)


def pinned():
    return child.Task(lambda number: 0.1, lambda: None, {"cores": usable_cores()})


@pytest.mark.exhaustive
def test_a_process_is_pinned_and_one_that_dies_fails_alone():
    functions = ("dies", "no_such_function", "pinned")
    runs = {name: f"{__name__}:{name}" for name in functions}
    runs["alone" + workloads.ONE_CORE] = runs["pinned"]
    cores = usable_cores()[-2:]
    (results,) = processes.measure(runs, [{}], cores, "cpu", 1)
    assert results["pinned"] == {"cores": cores, "ms": pytest.approx(100.0)}
    assert results["alone" + workloads.ONE_CORE]["cores"] == cores[:1]
    assert results["dies"] == {"failed": "the process ended, status 3"}
    assert results["no_such_function"]["failed"].startswith("AttributeError: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--repeats", "0"], "'0' is no whole number of at least 1"),
        (["--cores", "first"], "'first' is no list of cores; write for example 0 or 0,1"),
        (["--cores", "4096"], "'4096' names a core that is not among"),
        (["--output", __file__], "is no folder"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_bad_option_is_a_clear_error(arguments, message, capsys, monkeypatch):
    usable = lambda process: {0, 1}  # noqa: E731
    monkeypatch.setattr(tool.os, "sched_getaffinity", usable, raising=False)
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


SHAPE = (4, 8, 64)
HELD = nn.Dropout(0.5, broadcast_dims=(0,), deterministic=False)


def new_mask_at_each_step():
    return forward_task(applied(nn.Dropout(0.5, deterministic=False)), SHAPE, 0.5)


def held_mask_that_should_change():
    return forward_task(applied(HELD), SHAPE, 0.5, held=False)


def another_rate():
    other = applied(nn.Dropout(0.25, broadcast_dims=(0,), deterministic=False))
    return forward_task(lambda x, key: 1.5 * other(x, key), SHAPE, 0.5)


def no_scale():
    return forward_task(lambda x, key: 0.5 * applied(HELD)(x, key), SHAPE, 0.5)


def channels_dropped_pixel_by_pixel():
    return forward_task(applied(HELD), SHAPE, 0.5, shared=(2,))


def gradient_of_another_mask():
    forward = jax.custom_vjp(applied(HELD))

    def backward(key, dy):
        return applied(HELD)(dy, jax.random.fold_in(key, 1)), None

    forward.defvjp(lambda x, key: (forward(x, key), key), backward)
    return gradient_task(forward, SHAPE, 0.5)


def no_dropout():
    return forward_task(copy, SHAPE, 0.5)


WRONG = {
    new_mask_at_each_step: "not the same at every time step",
    held_mask_that_should_change: "elements that change over time: 0",
    another_rate: "elements kept: ",
    no_scale: "values: off",
    channels_dropped_pixel_by_pixel: "not shared over axis 2",
    gradient_of_another_mask: "gradients: off",
    no_dropout: "elements kept: 512 of 512",
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_implementation_is_refused(wrong):
    task, answer = child.start(f"{__name__}:{wrong.__name__}", {})
    assert task is None
    assert WRONG[wrong] in answer["refused"]
    (line,) = table.lines("title", {workloads.OURS: answer}, (), "cpu")
    assert line["CPU ms"].startswith("refused: ")
    assert line["ratio to ours"] == ""


@pytest.mark.exhaustive
def test_right_implementations_pass():
    settings = {"steps": 2, "examples": 16, "inputs": 32, "outputs": 64, "p": 0.5}
    for invariant in (True, False):
        load("dropconnect:training", {**settings, "invariant": invariant}).check()
    for kind in ("sample", "analytic"):
        load(f"dropconnect:inference {kind}", {**settings, "samples": 64}).check()
    gradient_task(applied(HELD), SHAPE, 0.5).check()
    for who in ("ours", "flax", "limit"):
        channels = {"steps": 2, "examples": 16, "side": 2, "channels": 32, "p": 0.2}
        load(f"dropout:dropout_2d {who}", channels).check()
    units = {"steps": 4, "examples": 8, "units": 64, "p": 0.5}
    for who in ("ours", "nnx", "flax", "limit"):
        load(f"dropout:scan {who}", units).check()


@pytest.mark.exhaustive
def test_the_network_of_nnx_is_that_of_linen():
    settings = {"steps": 3, "examples": 4, "inputs": 32, "hidden": 64, "p": 0.5}
    linen, arguments = network.arguments_of(**settings)
    model = nnx_network.Net(32, 64, 0.5, nnx.Rngs(0))
    losses, params = [], []
    for forward in (network.by_simulate(linen), nnx_network.by_simulate(model)):
        step = jax.jit(network.training_step(forward))
        network.check(step, arguments, 0.5)
        loss, _, trained, _ = step(*arguments, jax.random.key(3))
        losses.append(float(loss))
        params.append(trained)
    assert losses[0] == losses[1]
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_counts_of_connections_are_compared():
    y_seq, dx_seq = jnp.full((2, 16, 64), 16.0), jnp.full((2, 16, 32), 32.0)
    dkernel = jnp.full((32, 64), 16.0)
    checks.check_connections(y_seq, dx_seq, dkernel, 0.5, held=True)
    for bad in (
        (y_seq, dx_seq, dkernel, 0.5, False),
        (1.1 * y_seq, dx_seq, dkernel, 0.5, True),
        (y_seq, 1.1 * dx_seq, dkernel, 0.5, True),
        (y_seq, dx_seq, 1.1 * dkernel, 0.5, True),
    ):
        with pytest.raises(checks.WrongResultError):
            checks.check_connections(*bad)


def test_inference_is_compared_with_the_expectation():
    kernel, bias, x = np.full((9, 4), 0.5), np.full(4, 0.1), np.ones((3, 9))
    mean, variance = 0.5 * (x @ kernel + bias), 0.25 * (x**2 @ kernel**2 + bias**2)
    # By a sum over the normal density, in place of the closed form.
    z = np.linspace(-9, 9, 10001)
    weights = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    values = mean[..., None] + np.sqrt(variance)[..., None] * z
    right = np.maximum(values, 0) @ weights
    checks.check_inference(right, x, kernel, bias, 0.5, None)
    for wrong in (right + 0.01, mean, np.nan * right):
        with pytest.raises(checks.WrongResultError):
            checks.check_inference(wrong, x, kernel, bias, 0.5, None)


def test_training_steps_are_checked():
    masks = [np.arange(64) % 2 == 0] * 2
    checks.check_training(2.3, masks, 0.5, [True, True])
    for bad in (
        (np.nan, masks, 0.5, [True]),
        (2.3, masks[:1], 0.5, [True]),
        (2.3, [np.ones(64, bool)] * 2, 0.5, [True]),
        (2.3, masks, 0.5, [True, False]),
    ):
        with pytest.raises(checks.WrongResultError):
            checks.check_training(*bad)


def test_a_turn_of_short_calls_leaves_out_the_first():
    seconds = iter([9e-3, *(1e-3 * n / 2 for n in range(1, 10))])
    task = child.Task(call=lambda number: next(seconds), check=lambda: None)
    assert child.turn(task, 0) == pytest.approx(2.5)
    assert next(seconds, None) is None


def test_a_long_call_is_a_turn_of_its_own():
    seconds = iter([0.2, 0.3])
    task = child.Task(call=lambda number: next(seconds), check=lambda: None)
    assert child.turn(task, 0) == pytest.approx(200.0)


def test_targets_are_compared_with_the_results():
    ours, rival = {"ms": 2.0, "MiB": 1.0, "programs": 0}, {"ms": 9.0}
    results = {workloads.OURS: ours, "rival": rival, "absent": {"absent": "it"}}
    for target, words in [
        (workloads.Target("rival", at_least=4), "ours >= 4 x faster: 4.5, reached"),
        (workloads.Target("rival", at_least=5), "ours >= 5 x faster: 4.5, NOT REACHED"),
        (
            workloads.Target("rival", at_least=4, aim=5),
            "ours >= 4 x faster, aim 5: 4.5, reached",
        ),
        (
            workloads.Target("rival", at_most=0.5, aim=0.3),
            "ours <= 0.5 x this, aim 0.3: 0.222, reached, the aim too",
        ),
        (workloads.Target(at_most=1), "ours <= 1 ms: 2, NOT REACHED"),
        (workloads.Target(at_most=1, unit="MiB"), "ours <= 1 MiB: 1, reached"),
        (workloads.Target(at_most=0, unit="programs"), "ours <= 0 programs: 0, reached"),
        (workloads.Target("absent", at_most=1), "ours <= 1 x this: not measured"),
    ]:
        assert table.verdict(target, results) == words
        (line,) = (
            line
            for line in table.lines("title", results, [target], "cpu")
            if line["to reach"]
        )
        assert line["implementation"] == (target.rival or target.ours)


def test_several_cores_are_compared_with_one():
    names = {workload.name: workload for workload in workloads.WORKLOADS}
    workload = names["network"].beside_one_core()
    ours = [target.ours for target in workload.targets]
    assert ours == [workloads.SIMULATE, workloads.IN_NNX, workloads.LAYERED]
    for target in workload.targets:
        assert workload.runs[target.rival] == workload.runs[target.ours]
        results = {target.ours: {"ms": 3.0}, target.rival: {"ms": 2.0}}
        words = table.verdict(target, results)
        assert words.endswith(" <= 1.05 x this: 1.5, NOT REACHED")


def test_every_target_and_run_of_the_table_exists():
    for workload in workloads.WORKLOADS:
        assert workload.small().keys() == workload.settings.keys()
        for target in workload.targets:
            assert (target.at_most is None) != (target.at_least is None)
            assert target.ours in workload.runs
            assert target.rival is None or target.rival in workload.runs
        for run in workload.runs.values():
            module, function, *_ = run.replace(":", " ").split()
            source = ROOT / "benchmarks" / "implementations" / f"{module}.py"
            assert f"def {function}(" in source.read_text()


@pytest.mark.exhaustive
def test_curves_are_written_and_drawn(tmp_path):
    points = [
        dict(zip(scaling.COLUMNS, (curve.setting, value, label, 2.0), strict=True))
        for curve in scaling.CURVES
        for value in curve.values
        for label in curve.labels
    ]
    scaling.write(tmp_path, points, "a note")
    with (tmp_path / "scaling.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(points)
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "scaling.png").exists() == drawn


def test_compiled_programs_are_counted():
    triple, x = jax.jit(lambda x: x * 3), jnp.ones(3)
    assert programs_compiled(lambda: triple(x)) == 1
    assert programs_compiled(lambda: triple(x)) == 0
