"""From rows to means over seeds, their intervals, and the choice of ``p``."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from study.names import LIKELIHOOD, SELECTION
from study.results import Row, Unit

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its interval (NaN for one seed)."""

    mean: float
    half_width: float

    def text(self, digits: int, sign: str = "") -> str:
        """Words it as mean and half width."""
        if np.isnan(self.half_width):
            return f"{self.mean:{sign}.{digits}f}"
        return f"{self.mean:{sign}.{digits}f} ± {self.half_width:.{digits}f}"

    @property
    def clear(self) -> bool:
        """Whether zero lies outside the interval."""
        return abs(self.mean) > self.half_width


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Estimates the mean with a two-sided 95 % interval of Student's t over seeds."""
    values = np.asarray(values, float)
    count = len(values)
    if count == 1:
        return Estimate(float(values[0]), float("nan"))
    error = values.std(ddof=1) / np.sqrt(count)
    return Estimate(
        float(values.mean()), float(error * student.ppf((1 + LEVEL) / 2, count - 1))
    )


def by_unit(rows: Sequence[Row], measure: str) -> dict[Unit, np.ndarray]:
    """Collects the values of a measure by unit, in the order of the seeds."""
    found: dict[Unit, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row.measure == measure:
            found[row.unit][row.seed] = row.value
    return {unit: np.array([of[seed] for seed in sorted(of)]) for unit, of in found.items()}


def choose_p(rows: Sequence[Row], data: str, steps: int, condition: str) -> float:
    """Chooses the ``p`` with the least mean negative log-likelihood in validation."""
    losses = {
        unit.p: values.mean()
        for unit, values in by_unit(rows, LIKELIHOOD).items()
        if unit[:4] == (SELECTION, data, steps, condition)
    }
    return min(losses, key=lambda p: (losses[p], p)) if losses else 0.0
