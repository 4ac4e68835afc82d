"""From rows to comparisons of conditions: at a chosen ``p``, and at the same."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from study.fashion.names import FEED_FORWARD, STOPPED
from study.names import (
    ACCURACY,
    CONDITIONS,
    CONNECT_FRESH,
    CONNECT_HELD,
    HELD,
    NONE,
    PER_STEP,
    SELECTION,
    TEST,
)
from study.results import Row, Unit
from study.statistics import Estimate, by_unit, estimate

PAIRS = (  # minuend, subtrahend
    (HELD, PER_STEP),
    (PER_STEP, NONE),
    (HELD, NONE),
    (CONNECT_HELD, CONNECT_FRESH),
    (CONNECT_FRESH, NONE),
    (CONNECT_HELD, NONE),
)
ENDS = ("all updates", STOPPED)


class Setting(NamedTuple):
    """What conditions are compared in."""

    data: str
    steps: int
    variant: str

    def text(self) -> str:
        """Words it."""
        size = f"{int(self.data.removeprefix('fashion-')):,} images"
        if self.variant == FEED_FORWARD:
            return f"{size}, T = {self.steps}"
        return f"{size}, recurrent: {self.variant}"


class Values:
    """The values of one measure, by table, setting, condition and ``p``."""

    def __init__(self, rows: Sequence[Row], measure: str) -> None:
        self.measure = measure
        self._found = by_unit(rows, measure)

    def settings(self) -> list[Setting]:
        """Lists the settings with tests, in their order."""
        tested = (unit for unit in self._found if unit.table == TEST)
        return list(dict.fromkeys(_setting(unit) for unit in tested))

    def selected(self) -> list[Setting]:
        """Lists those in which ``p`` is chosen."""
        return [
            setting
            for setting in self.settings()
            if any(self.grid(setting, condition, SELECTION) for condition in CONDITIONS)
        ]

    def grid(self, setting: Setting, condition: str, table: str = TEST) -> list[float]:
        """Lists the ``p`` of a condition."""
        return sorted(
            unit.p or 0.0
            for unit in self._found
            if (unit.table, _setting(unit), unit.condition) == (table, setting, condition)
        )

    def at(
        self, setting: Setting, condition: str, p: float, table: str = TEST
    ) -> np.ndarray:
        """Returns the values, in the order of the seeds; none where nothing was done.

        Without dropout nothing depends on what would be dropped.
        """
        places = [setting.variant, "outputs"] if condition == NONE else [setting.variant]
        for place in places:
            unit = Unit(table, setting.data, setting.steps, condition, p, place)
            if unit in self._found:
                return self._found[unit]
        return np.array([])

    def choose(self, setting: Setting, condition: str) -> float | None:
        """Chooses the ``p`` that validation likes best, the smaller of equals."""
        if condition == NONE:
            return 0.0
        sign = -1 if self.measure.startswith(ACCURACY) else 1
        scores = {
            p: sign * self.at(setting, condition, p, SELECTION).mean()
            for p in self.grid(setting, condition, SELECTION)
        }
        return min(scores, key=lambda p: (scores[p], p)) if scores else None

    def chosen(self, setting: Setting, condition: str) -> np.ndarray:
        """Returns the tested values at the chosen ``p``."""
        p = self.choose(setting, condition)
        return np.array([]) if p is None else self.at(setting, condition, p)

    def compare_chosen(self) -> Iterator[tuple[Setting, str, str, Estimate]]:
        """Compares conditions, each at its chosen ``p``, seed by seed."""
        for setting in self.selected():
            for one, other in PAIRS:
                pair = self.chosen(setting, one), self.chosen(setting, other)
                found = _difference(*pair)
                if found is not None:
                    yield setting, one, other, found

    def compare_at_equal_p(self) -> Iterator[tuple[Setting, float, str, str, Estimate]]:
        """Compares conditions at the same ``p``, seed by seed."""
        for setting in self.settings():
            grid = {p for c in CONDITIONS for p in self.grid(setting, c)} - {0.0}
            for p in sorted(grid):
                for one, other in PAIRS:
                    pair = (
                        self.at(setting, c, 0.0 if c == NONE else p) for c in (one, other)
                    )
                    found = _difference(*pair)
                    if found is not None:
                        yield setting, p, one, other, found


def at_end(measure: str, end: str) -> str:
    """Names a measure at one end of training."""
    return measure if end == ENDS[0] else f"{measure} {STOPPED}"


def _setting(unit: Unit) -> Setting:
    return Setting(unit.data, unit.steps, unit.variant)


def _difference(one: np.ndarray, other: np.ndarray) -> Estimate | None:
    """Says nothing of a comparison of which seeds are still to be done."""
    return estimate(one - other) if 1 < len(one) == len(other) else None
