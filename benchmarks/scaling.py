"""Curves: cost against time steps, batch, units, probability and samples."""

import csv
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.workloads import (
    ANALYTIC,
    COPY,
    FLAX_SHARED,
    OURS,
    SAMPLED,
    SPIKINGJELLY,
    WORKLOADS,
)

COLORS = {
    **{OURS: "C0", COPY: "k", SPIKINGJELLY: "C1", FLAX_SHARED: "C2"},
    **{SAMPLED: "C4", ANALYTIC: "C3"},
}
# The settings that the title of a panel tells.
FIXED = {"steps", "examples", "units", "inputs", "outputs", "p"}
BY_NAME = {workload.name: workload for workload in WORKLOADS}
COLUMNS = ("curve", "value", "implementation", "ms")
Point = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """The cost of a workload against one setting.

    Attributes:
      setting: the name of the setting.
      axis: what the plot calls it, and the unit.
      values: its values.
      workload: the name of the workload.
      settings: other settings than the workload's.
      labels: the implementations of the workload that are drawn.
    """

    setting: str
    axis: str
    values: tuple[Any, ...]
    workload: str
    settings: dict[str, Any]
    labels: tuple[str, ...]


_DROPOUTS = (OURS, COPY, SPIKINGJELLY, FLAX_SHARED)
_INFERENCES = (SAMPLED, ANALYTIC, SPIKINGJELLY)
_UNITS = {"units": 1024}

CURVES = (
    Curve("steps", "time steps T", (1, 2, 4, 8, 16, 32, 64), "dropout", _UNITS, _DROPOUTS),
    Curve("examples", "batch N", (1, 4, 16, 64, 256), "dropout", _UNITS, _DROPOUTS),
    Curve("units", "units", (16, 64, 256, 1024, 4096), "dropout", {}, _DROPOUTS),
    Curve(
        "p",
        "probability p of being dropped",
        (0.05, 0.125, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9),
        "dropout",
        {},
        _DROPOUTS,
    ),
    Curve(
        "samples",
        "samples_num",
        (1, 4, 16, 64, 256, 1024),
        "dropconnect-inference",
        {"steps": 1},
        _INFERENCES,
    ),
)


def measure(how: Sequence[Any], *, small: bool) -> Iterator[Point]:
    """Measures all curves.

    Args:
      how: the last arguments of ``processes.measure``.
      small: the first two values of each only, and toy sizes.

    Yields:
      One value and implementation after the other, with the names of ``COLUMNS``.
    """
    for curve in CURVES:
        workload = BY_NAME[curve.workload]
        values = curve.values[:2] if small else curve.values
        others = (workload.small() if small else workload.settings) | curve.settings
        chosen = [{**others, curve.setting: value} for value in values]
        runs = {label: workload.runs[label] for label in curve.labels}
        measured = processes.measure(runs, chosen, *how)
        for value, results in zip(values, measured, strict=True):
            print(f"{curve.axis} = {value}", file=sys.stderr, flush=True)
            for label, result in results.items():
                if "ms" in result:
                    point = (curve.setting, value, label, result["ms"])
                    yield dict(zip(COLUMNS, point, strict=True))
                else:
                    print(f"  {label}: {result}", file=sys.stderr)


def write(folder: Path, points: Iterator[Point], note: str) -> None:
    """Writes ``scaling.csv`` and, where matplotlib is installed, ``scaling.png``.

    Args:
      folder: where.
      points: from :func:`measure`.
      note: the machine, for the foot of the plot.
    """
    points = list(points)
    with (folder / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(points)
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is absent", file=sys.stderr)
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(13, 8), layout="constrained")
    for curve, panel in zip(CURVES, panels.flat, strict=False):
        _draw(panel, curve, [point for point in points if point["curve"] == curve.setting])
    panels.flat[-1].axis("off")
    lines = {line.get_label(): line for panel in panels.flat for line in panel.lines}
    panels.flat[-1].legend(lines.values(), lines.keys(), loc="upper left", frameon=False)
    figure.supxlabel(note, fontsize=8)
    figure.savefig(folder / "scaling.png", dpi=110)
    pyplot.close(figure)


def _draw(panel: Any, curve: Curve, points: Sequence[Point]) -> None:
    from matplotlib.ticker import LogLocator

    by_step = curve.setting == "steps"
    costs: dict[str, dict[Any, float]] = {label: {} for label in curve.labels}
    for point in points:
        parts = point["value"] if by_step else 1
        costs[point["implementation"]][point["value"]] = point["ms"] / parts
    for label, cost in costs.items():
        panel.plot(cost.keys(), cost.values(), COLORS[label] + "o-", label=label)
    if by_step:
        # What ours costs more than a copy at T = 1 is the mask, which the steps share.
        mask = costs[OURS][1] - costs[COPY][1]
        expected = [cost + mask / steps for steps, cost in costs[COPY].items()]
        panel.plot(costs[COPY].keys(), expected, "k:", label="a copy and 1/T of the mask")
    workload = BY_NAME[curve.workload]
    others = {**workload.settings, **curve.settings}
    words = [f"{key}={n}" for key, n in others.items() if key in FIXED - {curve.setting}]
    panel.set_title(f"{workload.title.split(',')[0]}\n{', '.join(words)}", fontsize=9)
    panel.set(xlabel=curve.axis, ylabel="ms a time step" if by_step else "ms a call")
    panel.set_yscale("log")
    if curve.setting != "p":
        panel.set_xscale("log", base=2)
        panel.set_xticks(curve.values, map(str, curve.values))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    panel.grid(alpha=0.3)
