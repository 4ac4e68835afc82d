"""Writes tables and pictures into the folder of the results."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from study.results import Row
from study.tables import Table

Draw = Callable[[Sequence[Row], Path], None]


def write_report(
    rows: Sequence[Row],
    folder: Path,
    tables: Sequence[Table],
    pictures: Mapping[str, Draw],
) -> list[Path]:
    """Writes every table in Markdown and CSV, and every picture; returns the paths."""
    written = []
    for table in tables:
        markdown, plain = folder / f"{table.name}.md", folder / f"{table.name}.csv"
        markdown.write_text(table.markdown() + "\n")
        with plain.open("w", newline="") as file:
            csv.writer(file).writerows([table.columns, *table.lines])
        written += [markdown, plain]
    for name, draw in pictures.items():
        draw(rows, folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    return written
