"""The tables: text made of rows, and nothing else."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from study.names import (
    ACCURACY,
    CONDITIONS,
    CONNECT_FRESH,
    CONNECT_HELD,
    DATA,
    HELD,
    LIF,
    LIKELIHOOD,
    MECHANISM,
    NONE,
    PER_STEP,
    SELECTION,
    SPREAD,
    STEP_SPREAD,
    TEST,
    UNCERTAINTY,
)
from study.results import Row, Unit
from study.small.inference import inference, inference_differences
from study.statistics import Estimate, by_unit, choose_p, estimate
from study.tables import Table, apart, marked

DIFFERENCES = (  # minuend, subtrahend
    (HELD, PER_STEP),
    (PER_STEP, NONE),
    (HELD, NONE),
    (CONNECT_FRESH, NONE),
    (CONNECT_HELD, NONE),
    (CONNECT_HELD, CONNECT_FRESH),
)


def all_tables(rows: Sequence[Row]) -> list[Table]:
    """Makes every table that has a line."""
    made = (
        _mechanism(rows),
        _ablation(rows),
        _differences(rows),
        inference(rows),
        inference_differences(rows),
        _uncertainty(rows),
        _selection(rows),
        _equal_p(rows),
    )
    return [table for table in made if table.lines]


def tested(rows: Sequence[Row], measure: str) -> dict[Unit, np.ndarray]:
    """Returns the values of the main comparison, by unit."""
    return {
        unit: values
        for unit, values in by_unit(rows, measure).items()
        if unit.table == TEST and unit.variant == LIF
    }


def paired(rows: Sequence[Row], measure: str) -> dict[tuple[str, int, str, str], Estimate]:
    """Estimates differences, seed by seed: of data, steps, and two conditions."""
    values = {unit[1:4]: of_seeds for unit, of_seeds in tested(rows, measure).items()}
    return {
        (data, steps, one, other): estimate(
            values[data, steps, one] - values[data, steps, other]
        )
        for data, steps in dict.fromkeys(key[:2] for key in values)
        for one, other in DIFFERENCES
        if (data, steps, one) in values and (data, steps, other) in values
    }


def mechanism(rows: Sequence[Row]) -> dict[tuple[str, float, int], dict[str, Estimate]]:
    """Estimates spreads, measured and foretold, by training, ``p`` and time steps.

    The mean of T scores that are independent of each other spreads 1 / sqrt(T) as far as
    one of them; if they are all alike, as far as one of them.
    """
    found: dict[tuple[str, float, int], dict[str, Estimate]] = {}
    of_step = by_unit(rows, STEP_SPREAD)
    for unit, values in by_unit(rows, SPREAD).items():
        assert unit.p is not None
        line = found.setdefault((unit.condition, unit.p, unit.steps), {})
        line[unit.variant] = estimate(values)
        shrunk = np.sqrt(unit.steps) if unit.variant == PER_STEP else 1
        line[f"{unit.variant}, foretold"] = estimate(of_step[unit] / shrunk)
    return found


def _mechanism(rows: Sequence[Row]) -> Table:
    kinds = (PER_STEP, f"{PER_STEP}, foretold", HELD, f"{HELD}, foretold")
    return Table(
        MECHANISM,
        (
            "trained with",
            "T",
            "new mask every step",
            "if steps are independent",
            "held mask",
            "if steps are alike",
        ),
        [
            (
                f"{CONDITIONS[condition]}, p = {p}",
                str(steps),
                *(line[k].text(3) for k in kinds),
            )
            for (condition, p, steps), line in mechanism(rows).items()
        ],
    )


def _ablation(rows: Sequence[Row]) -> Table:
    losses = tested(rows, LIKELIHOOD)
    return Table(
        "ablation",
        ("data", "T", "trained with", "p", f"test {ACCURACY}", LIKELIHOOD),
        [
            (
                DATA[unit.data],
                str(unit.steps),
                CONDITIONS[unit.condition],
                "" if unit.condition == NONE else str(unit.p),
                estimate(values).text(2),
                estimate(losses[unit]).text(4),
            )
            for unit, values in tested(rows, ACCURACY).items()
        ],
    )


def _differences(rows: Sequence[Row]) -> Table:
    losses = paired(rows, LIKELIHOOD)
    return Table(
        "differences",
        ("data", "T", "difference", "accuracy (percentage points)", LIKELIHOOD),
        [
            (
                DATA[data],
                str(steps),
                apart(one, other),
                marked(accuracy, 2),
                marked(losses[data, steps, one, other], 4),
            )
            for (data, steps, one, other), accuracy in paired(rows, ACCURACY).items()
        ],
    )


def _uncertainty(rows: Sequence[Row]) -> Table:
    found = [row for row in rows if row.unit.table == UNCERTAINTY]
    changes = tuple(dict.fromkeys(row.measure for row in found))
    values = {
        (unit.condition, change): of_seeds
        for change in changes
        for unit, of_seeds in by_unit(found, change).items()
    }
    p = {row.unit.condition: row.unit.p for row in found}
    lines = [
        (
            CONDITIONS[condition] + ("" if condition == NONE else f", p = {p[condition]}"),
            *(estimate(values[condition, change]).text(3) for change in changes),
        )
        for condition in p
    ]
    for one, other in DIFFERENCES:
        if one in p and other in p:
            differences = (
                values[one, change] - values[other, change] for change in changes
            )
            words = apart(one, other)
            lines.append((words, *(marked(estimate(value), 3) for value in differences)))
    return Table(UNCERTAINTY, ("trained and sampled with", *changes), lines)


def _selection(rows: Sequence[Row]) -> Table:
    losses = _validation(rows)

    def cells(data: str, steps: int, condition: str) -> Iterator[str]:
        chosen = choose_p(rows, data, steps, condition)
        for p in _grid(losses):
            values = losses.get((data, steps, condition, p))
            text = "" if values is None else f"{values.mean():.4f}"
            yield f"**{text}**" if p == chosen else text

    return Table(
        SELECTION,
        ("data", "T", "trained with", *(f"p = {p}" for p in _grid(losses))),
        [
            (DATA[data], str(steps), CONDITIONS[condition], *cells(data, steps, condition))
            for data, steps, condition in dict.fromkeys(key[:3] for key in losses)
        ],
    )


def _equal_p(rows: Sequence[Row]) -> Table:
    losses = _validation(rows)

    def cells(data: str, steps: int) -> Iterator[str]:
        for p in _grid(losses):
            held, per_step = (losses.get((data, steps, c, p)) for c in (HELD, PER_STEP))
            if held is None or per_step is None:
                yield ""
            else:
                yield marked(estimate(held - per_step), 4)

    lines = [
        (DATA[data], str(steps), *cells(data, steps))
        for data, steps in dict.fromkeys(key[:2] for key in losses)
    ]
    return Table(
        "equal-p",
        ("data", "T", *(f"p = {p}" for p in _grid(losses))),
        [line for line in lines if any(line[2:])],
    )


def _validation(rows: Sequence[Row]) -> dict[tuple[str, int, str, float], np.ndarray]:
    return {
        (unit.data, unit.steps, unit.condition, unit.p or 0.0): values
        for unit, values in by_unit(rows, LIKELIHOOD).items()
        if unit.table == SELECTION
    }


def _grid(losses: Iterable[tuple[str, int, str, float]]) -> list[float]:
    return sorted({p for *_, p in losses})
