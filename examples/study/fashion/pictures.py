"""The pictures of this part."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.fashion.comparisons import ENDS, Setting, Values, at_end
from study.fashion.names import FEED_FORWARD
from study.names import ACCURACY, CONDITIONS, HELD, LIKELIHOOD, NONE, PER_STEP
from study.pictures import COLORS, SHORT, draw_differences, draw_intervals
from study.results import Row
from study.statistics import Estimate, estimate

LOOKS = {ENDS[0]: "o-", ENDS[1]: "o--"}
INTERVALS = "mean and 95 % interval over seeds"


def curves(rows: Sequence[Row]) -> list[Setting]:
    """Lists the settings of which the test loss is drawn against ``p``."""
    values = Values(rows, LIKELIHOOD)
    return sorted(
        (
            setting
            for setting in values.settings()
            if setting.variant == FEED_FORWARD
            and all(len(values.grid(setting, c)) > 1 for c in (PER_STEP, HELD))
        ),
        key=lambda setting: (int(setting.data.split("-")[1]), setting.steps),
    )


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draws the test loss against ``p``, a panel for each setting."""
    settings = curves(rows)
    columns = min(3, len(settings))
    lines = -(-len(settings) // columns)
    figure = Figure(
        figsize=(max(8, 3.8 * columns), 3.3 * lines + 0.7), layout="constrained"
    )
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(settings) :]:
        axes.axis("off")
    for axes, setting in zip(panels, settings, strict=False):
        _draw_losses(axes, rows, setting)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title=INTERVALS)
    figure.savefig(path, dpi=110)


def draw_chosen(rows: Sequence[Row], path: Path) -> None:
    """Draws the differences at the chosen ``p``, with their intervals."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure in zip(panels, (ACCURACY, LIKELIHOOD), strict=True):
        found: dict[tuple[str, str], dict[str, Estimate]] = {}
        places: list[str] = []
        for end in ENDS:
            values = Values(rows, at_end(measure, end))
            for setting, one, other, difference in values.compare_chosen():
                places.append(f"{setting.text()},\n{end}")
                found.setdefault((one, other), {})[places[-1]] = difference
        draw_differences(axes, list(dict.fromkeys(places)), found)
    panels[0].set(xlabel="difference in test accuracy (points)", title="better: right")
    panels[1].set(xlabel="difference in test loss (nats)", title="better: left")
    handles, labels = panels[0].get_legend_handles_labels()
    title = f"each at the p that validation chose; {INTERVALS}"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, title=title)
    figure.savefig(path, dpi=110)


def draw_time(rows: Sequence[Row], path: Path) -> None:
    """Draws held minus every step at the same ``p`` against the time steps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    _draw_growth(axes, rows)
    axes.legend()
    figure.savefig(path, dpi=110)


def draw_holding(rows: Sequence[Row], path: Path) -> None:
    """Draws what holding does in one setting, and how it changes with the time steps."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    left, right = (panel.subplots() for panel in panels)
    setting = _studied(rows)
    _draw_losses(left, rows, setting)
    left.set_title(f"Fashion-MNIST, {setting.text()}")
    _draw_growth(right, rows)
    right.set_title("the same p, all updates; below 0 held is better")
    for panel, axes, columns in zip(panels, (left, right), (2, 4), strict=True):
        handles, labels = axes.get_legend_handles_labels()
        looks = {"ncols": columns, "fontsize": "small", "handlelength": 1.5}
        panel.legend(handles, labels, loc="outside lower center", **looks)
    figure.savefig(path, dpi=110)


def _studied(rows: Sequence[Row]) -> Setting:
    """Finds the setting with most ``p``, of the data with most numbers of time steps."""
    values, settings = Values(rows, LIKELIHOOD), curves(rows)
    sizes = Counter(setting.data for setting in settings)
    return max(settings, key=lambda it: (sizes[it.data], len(values.grid(it, HELD))))


def _draw_losses(axes: Axes, rows: Sequence[Row], setting: Setting) -> None:
    for end, look in LOOKS.items():
        values = Values(rows, at_end(LIKELIHOOD, end))
        for condition in (NONE, PER_STEP, HELD):
            grid = values.grid(setting, condition)
            found = [estimate(values.at(setting, condition, p)) for p in grid]
            label = f"{CONDITIONS[condition]}, {end}"
            looks = {"fmt": look, "color": COLORS[condition], "label": label}
            draw_intervals(axes, grid, found, **looks)
    axes.set(title=setting.text(), xlabel="p", ylabel="test loss (nats)")


def _draw_growth(axes: Axes, rows: Sequence[Row]) -> None:
    values = Values(rows, LIKELIHOOD)
    data = _studied(rows).data
    found: dict[float, dict[int, Estimate]] = {}
    for setting, p, one, other, difference in values.compare_at_equal_p():
        is_of_data = (setting.data, setting.variant) == (data, FEED_FORWARD)
        if is_of_data and (one, other) == (HELD, PER_STEP):
            found.setdefault(p, {})[setting.steps] = difference
    for shift, (p, of_steps) in enumerate(sorted(found.items())):
        if len(of_steps) > 1:
            steps = sorted(of_steps)
            places = [count * 1.02**shift for count in steps]
            estimates = [of_steps[count] for count in steps]
            draw_intervals(axes, places, estimates, fmt="o-", label=f"p = {p}")
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xscale="log", xlabel="time steps T")
    axes.set_xticks([4, 8, 16, 32], ["4", "8", "16", "32"], minor=False)
    axes.minorticks_off()
    axes.set_ylabel(f"test loss (nats): {SHORT[HELD]} \N{MINUS SIGN} {SHORT[PER_STEP]}")
