"""Writes tables and pictures into the folder of the results."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from study.names import HELD, MECHANISM, PER_STEP, SELECTION, TEST
from study.results import Row
from study.small.pictures import draw_differences, draw_mechanism, draw_selection
from study.small.tables import all_tables

Draw = Callable[[Sequence[Row], Path], None]


def write_report(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes what the rows are enough for; returns the paths."""
    written = []
    for table in all_tables(rows):
        markdown, plain = folder / f"{table.name}.md", folder / f"{table.name}.csv"
        markdown.write_text(table.markdown() + "\n")
        with plain.open("w", newline="") as file:
            csv.writer(file).writerows([table.columns, *table.lines])
        written += [markdown, plain]
    for name, draw in _possible_pictures(rows).items():
        draw(rows, folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    return written


def _possible_pictures(rows: Sequence[Row]) -> dict[str, Draw]:
    def conditions(table: str) -> set[str]:
        return {row.unit.condition for row in rows if row.unit.table == table}

    pictures: dict[str, Draw] = {}
    if conditions(MECHANISM):
        pictures["mechanism"] = draw_mechanism
    if {PER_STEP, HELD} <= conditions(TEST):
        pictures["differences"] = draw_differences
    if conditions(SELECTION):
        pictures["selection"] = draw_selection
    return pictures
