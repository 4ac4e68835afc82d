"""What all pictures of the study have in common."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from study.names import CONDITIONS, HELD, NONE, PER_STEP
from study.statistics import Estimate

COLORS = dict(
    zip(
        CONDITIONS, ("gray", "tab:orange", "tab:blue", "tab:red", "tab:purple"), strict=True
    )
)
DIFFERENCE_COLORS = {
    (HELD, PER_STEP): "tab:green",
    (PER_STEP, NONE): COLORS[PER_STEP],
    (HELD, NONE): COLORS[HELD],
}
SHORT = {NONE: "none", PER_STEP: "every step", HELD: "held"}


def draw_intervals(
    axes: Axes,
    places: Sequence[float],
    estimates: Sequence[Estimate],
    *,
    across: bool = False,
    **looks: Any,
) -> None:
    """Draws estimates with their intervals, upright over places or across beside them."""
    means = [one.mean for one in estimates]
    widths = [one.half_width for one in estimates]
    looks = {"fmt": "o", "capsize": 3} | looks
    if across:
        axes.errorbar(means, places, xerr=widths, **looks)
    else:
        axes.errorbar(places, means, yerr=widths, **looks)


def draw_differences(
    axes: Axes, places: Sequence[str], found: dict[tuple[str, str], dict[str, Estimate]]
) -> None:
    """Draws the differences of pairs of conditions, one line for each place."""
    for shift, ((one, other), color) in zip(
        (-0.22, 0, 0.22), DIFFERENCE_COLORS.items(), strict=True
    ):
        of_pair = found.get((one, other), {})
        lines = [line for line, place in enumerate(places) if place in of_pair]
        if lines:
            draw_intervals(
                axes,
                [line + shift for line in lines],
                [of_pair[places[line]] for line in lines],
                across=True,
                color=color,
                label=f"{SHORT[one]} \N{MINUS SIGN} {SHORT[other]}",
            )
    axes.axvline(0, color="black", lw=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(places)), places)
    axes.set_ylim(len(places) - 0.5, -0.5)
