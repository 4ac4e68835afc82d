"""The tables of this part."""

from collections.abc import Sequence

from study.fashion.comparisons import ENDS, Setting, Values, at_end
from study.fashion.names import (
    BEST_UPDATE,
    DISAGREEMENT,
    ENSEMBLE,
    MASKED_OUTLIERS,
    OUTLIERS,
    TRAINING_LOSS,
)
from study.names import ACCURACY, CALIBRATION, CONDITIONS, LIKELIHOOD, NONE, SELECTION
from study.results import Row
from study.statistics import estimate
from study.tables import Table, apart, marked

POINTS = "accuracy (percentage points)"
GRID = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)  # of ``p``
DIGITS = {ACCURACY: 2, LIKELIHOOD: 4, CALIBRATION: 2}


def all_tables(rows: Sequence[Row]) -> list[Table]:
    """Makes every table that has a line."""
    made = (
        _tested(rows),
        _differences(rows),
        _equal_p(rows),
        _selection(rows),
        _training(rows),
        _uncertainty(rows),
    )
    return [table for table in made if table.lines]


def _of_end(rows: Sequence[Row], end: str) -> dict[str, Values]:
    return {measure: Values(rows, at_end(measure, end)) for measure in DIGITS}


def _tested(rows: Sequence[Row]) -> Table:
    lines = []
    for end in ENDS:
        values = _of_end(rows, end)
        losses, accuracies = values[LIKELIHOOD], values[ACCURACY]
        for setting in losses.selected():
            for condition, words in CONDITIONS.items():
                p, p_accurate = (v.choose(setting, condition) for v in (losses, accuracies))
                if p is None or p_accurate is None:
                    continue
                found = losses.at(setting, condition, p)
                accurate = accuracies.at(setting, condition, p_accurate)
                if len(found) and len(accurate):
                    calibration = values[CALIBRATION].at(setting, condition, p)
                    lines.append(
                        (
                            setting.text(),
                            end,
                            words,
                            "" if condition == NONE else str(p),
                            estimate(found).text(4),
                            estimate(calibration).text(2),
                            "" if condition == NONE else str(p_accurate),
                            estimate(accurate).text(2),
                        )
                    )
    columns = ("setting", "training", "trained with", "p for the loss", LIKELIHOOD)
    return Table("tested", (*columns, CALIBRATION, "p for accuracy", ACCURACY), lines)


def _differences(rows: Sequence[Row]) -> Table:
    lines = []
    for end in ENDS:
        values = _of_end(rows, end)
        accuracies = {tuple(key): v for *key, v in values[ACCURACY].compare_chosen()}
        for setting, one, other, loss in values[LIKELIHOOD].compare_chosen():
            accuracy = accuracies.get((setting, one, other))
            if accuracy is not None:
                pair = marked(accuracy, 2), marked(loss, 4)
                lines.append((setting.text(), end, apart(one, other), *pair))
    columns = ("setting", "training", "difference, each at its p", POINTS, LIKELIHOOD)
    return Table("differences", columns, lines)


def _equal_p(rows: Sequence[Row]) -> Table:
    lines: dict[tuple[str, ...], list[str]] = {}
    for end in ENDS:
        for measure in (ACCURACY, LIKELIHOOD):
            values = Values(rows, at_end(measure, end))
            for setting, p, one, other, found in values.compare_at_equal_p():
                key = (setting.text(), str(p), apart(one, other))
                lines.setdefault(key, []).append(marked(found, DIGITS[measure]))
    columns = ("setting", "p", "difference at the same p")
    measures = (f"{name}, {end}" for end in ENDS for name in (POINTS, LIKELIHOOD))
    return Table("equal-p", (*columns, *measures), [(*k, *v) for k, v in lines.items()])


def _selection(rows: Sequence[Row]) -> Table:
    lines = []
    for end in ENDS:
        for measure in (LIKELIHOOD, ACCURACY):
            values = Values(rows, at_end(measure, end))
            for setting in values.selected():
                for condition, words in CONDITIONS.items():
                    grid = values.grid(setting, condition, SELECTION)
                    chosen = values.choose(setting, condition)
                    cells = []
                    for p in GRID:
                        found = values.at(setting, condition, p, SELECTION)
                        text = f"{found.mean():.{DIGITS[measure]}f}" if len(found) else ""
                        cells.append(f"**{text}**" if text and p == chosen else text)
                    if grid:
                        lines.append((setting.text(), end, measure, words, *cells))
    columns = ("setting", "training", "in validation", "trained with")
    return Table("selection", (*columns, *(f"p = {p}" for p in GRID)), lines)


def _training(rows: Sequence[Row]) -> Table:
    fitted, losses = Values(rows, TRAINING_LOSS), Values(rows, LIKELIHOOD)
    stopped = Values(rows, at_end(LIKELIHOOD, ENDS[1]))
    updates = Values(rows, BEST_UPDATE)
    lines = []
    for setting in losses.settings():
        for condition, words in CONDITIONS.items():
            for p in losses.grid(setting, condition):
                found = (v.at(setting, condition, p) for v in (fitted, losses, stopped))
                cells = (estimate(values).text(4) for values in found)
                update = estimate(updates.at(setting, condition, p)).text(0)
                name = words if condition == NONE else f"{words}, p = {p}"
                lines.append((setting.text(), name, *cells, update))
    columns = ("setting", "trained with", TRAINING_LOSS, f"test {LIKELIHOOD}")
    return Table("training", (*columns, f"test, {ENDS[1]}", BEST_UPDATE), lines)


def _uncertainty(rows: Sequence[Row]) -> Table:
    losses = Values(rows, LIKELIHOOD)
    measures = (CALIBRATION, OUTLIERS, MASKED_OUTLIERS, DISAGREEMENT)
    values = [Values(rows, measure) for measure in measures]
    lines = []
    for setting in values[1].settings():
        for condition, words in CONDITIONS.items():
            p = losses.choose(setting, condition)
            if p is None or not len(losses.at(setting, condition, p)):
                continue
            name = words if condition == NONE else f"{words}, p = {p}"
            lines.append((name, *_cells(values, setting, condition, p)))
        lines += _ensembles(rows, measures)
        for one, other in {
            (one, other): 0 for *_, one, other, _ in losses.compare_chosen()
        }:
            pairs = [
                [v.at(setting, c, losses.choose(setting, c) or 0.0) for c in (one, other)]
                for v in values
            ]
            cells = tuple(
                marked(estimate(a - b), digits) if 1 < len(a) == len(b) else ""
                for (a, b), digits in zip(pairs, (2, 4, 4, 4), strict=True)
            )
            if any(cells):
                lines.append((apart(one, other), *cells))
    return Table("uncertainty", ("trained with", *measures), lines)


def _cells(
    values: Sequence[Values], setting: Setting, condition: str, p: float
) -> tuple[str, ...]:
    found = (v.at(setting, condition, p) for v in values)
    return tuple(
        estimate(one).text(digits) if len(one) else ""
        for one, digits in zip(found, (2, 4, 4, 4), strict=True)
    )


def _ensembles(rows: Sequence[Row], measures: Sequence[str]) -> list[tuple[str, ...]]:
    found = {row.measure: row.value for row in rows if row.unit.table == ENSEMBLE}
    if not found:
        return []
    digits = (2, 4, 4, 4)
    cells = (
        f"{found[m]:.{d}f}" if m in found else ""
        for m, d in zip(measures, digits, strict=True)
    )
    return [("no dropout, an ensemble", *cells)]
