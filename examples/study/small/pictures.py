"""The pictures of the study."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from study.names import (
    ACCURACY,
    CONDITIONS,
    DATA,
    HELD,
    LIF,
    LIKELIHOOD,
    PER_STEP,
    SELECTION,
)
from study.pictures import COLORS, SHORT, draw_differences, draw_intervals
from study.results import Row, Unit
from study.small.tables import mechanism, paired
from study.statistics import Estimate, by_unit, estimate


def draw_mechanism(rows: Sequence[Row], path: Path) -> None:
    """Draws the spread over masks against the number of time steps."""
    found = mechanism(rows)
    trained = list(dict.fromkeys(key[:2] for key in found))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(trained), sharey=True, squeeze=False)[0]
    words = {PER_STEP: "steps independent: 1/√T", HELD: "steps alike: constant"}
    for axes, (condition, p) in zip(panels, trained, strict=True):
        steps = [key[2] for key in found if key[:2] == (condition, p)]
        for masks, theory in words.items():
            lines = [found[condition, p, count] for count in steps]
            draw_intervals(
                axes,
                steps,
                [line[masks] for line in lines],
                fmt="o-",
                color=COLORS[masks],
                label=f"{SHORT[masks]}, measured",
            )
            foretold = [line[f"{masks}, foretold"].mean for line in lines]
            axes.plot(steps, foretold, "--", color=COLORS[masks], label=theory)
        axes.set(
            title=f"network trained with {CONDITIONS[condition]}, p = {p}",
            xlabel="time steps T",
            xscale="log",
            yscale="log",
        )
        axes.set_xticks(steps, list(map(str, steps)), minor=False)
        axes.minorticks_off()
    low, high = panels[0].get_ylim()
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if low <= tick <= high]
    panels[0].set_yticks(ticks, list(map(str, ticks)))
    panels[0].set_ylabel("standard deviation over masks\nof the averaged scores (logits)")
    panels[-1].legend()
    figure.savefig(path, dpi=110)


def draw_tested(rows: Sequence[Row], path: Path) -> None:
    """Draws the paired differences, with their intervals."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    words = {ACCURACY: "test accuracy (percentage points)", LIKELIHOOD: LIKELIHOOD}
    for axes, (measure, unit) in zip(panels, words.items(), strict=True):
        found: dict[tuple[str, str], dict[str, Estimate]] = {}
        places = []
        for (data, steps, *pair), difference in paired(rows, measure).items():
            places.append(f"{DATA[data]}, T = {steps}")
            found.setdefault((pair[0], pair[1]), {})[places[-1]] = difference
        draw_differences(axes, list(dict.fromkeys(places)), found)
        axes.set_xlabel(f"difference in {unit}")
    panels[0].set_title("better: right")
    panels[1].set_title("better: left")
    handles, labels = panels[0].get_legend_handles_labels()
    title = "mean and 95 % interval over seeds"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, title=title)
    figure.savefig(path, dpi=110)


def draw_selection(rows: Sequence[Row], path: Path) -> None:
    """Draws the validation loss against ``p``, from which ``p`` is chosen."""
    losses = {u: v for u, v in by_unit(rows, LIKELIHOOD).items() if u.table == SELECTION}
    settings = list(dict.fromkeys(unit[1:3] for unit in losses))
    columns = min(4, len(settings))
    lines = -(-len(settings) // columns)
    figure = Figure(figsize=(3 * columns, 2.8 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(settings) :]:
        axes.axis("off")
    for axes, (data, steps) in zip(panels, settings, strict=False):
        for condition in CONDITIONS:
            grid = [u.p for u in losses if u[1:4] == (data, steps, condition)]
            if grid:
                units = [Unit(SELECTION, data, steps, condition, p, LIF) for p in grid]
                found = [estimate(losses[unit]).mean for unit in units]
                label = CONDITIONS[condition]
                axes.plot(grid, found, "o-", color=COLORS[condition], label=label)
        axes.set(title=f"{DATA[data]}, T = {steps}", xlabel="p")
    for axes in panels[::columns]:
        axes.set_ylabel("validation loss (nats)")
    handles = {}
    for axes in panels:
        handles |= {
            label: handle
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)
