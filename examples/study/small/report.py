"""What is reported of this part, as far as the rows are enough for it."""

from collections.abc import Sequence
from pathlib import Path

from study.names import HELD, MECHANISM, PER_STEP, SELECTION, TEST
from study.report import Draw, write_report
from study.results import Row
from study.small.pictures import draw_mechanism, draw_selection, draw_tested
from study.small.tables import all_tables


def report(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes what the rows are enough for; returns the paths."""

    def conditions(table: str) -> set[str]:
        return {row.unit.condition for row in rows if row.unit.table == table}

    pictures: dict[str, Draw] = {}
    if conditions(MECHANISM):
        pictures["mechanism"] = draw_mechanism
    if {PER_STEP, HELD} <= conditions(TEST):
        pictures["differences"] = draw_tested
    if conditions(SELECTION):
        pictures["selection"] = draw_selection
    return write_report(rows, folder, all_tables(rows), pictures)
