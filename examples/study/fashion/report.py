"""What is reported of this part, as far as the rows are enough for it."""

from collections.abc import Sequence
from pathlib import Path

from study.fashion.comparisons import Values
from study.fashion.pictures import curves, draw_chosen, draw_curves, draw_holding, draw_time
from study.fashion.tables import all_tables
from study.names import LIKELIHOOD
from study.report import Draw, write_report
from study.results import Row


def report(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes what the rows are enough for; returns the paths."""
    pictures: dict[str, Draw] = {}
    if curves(rows):
        pictures["curves"] = draw_curves
    if any(Values(rows, LIKELIHOOD).compare_chosen()):
        pictures["differences"] = draw_chosen
    if len({setting.steps for setting in curves(rows)}) > 1:
        pictures |= {"time": draw_time, "holding": draw_holding}
    return write_report(rows, folder, all_tables(rows), pictures)
