"""The results: one file of numbers, which grows by whole units and can be gone on with."""

import csv
import io
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import serialization


class Unit(NamedTuple):
    """One piece of the work, whose rows are written together.

    Attributes:
      table: the table that it belongs to.
      data: the name of the data set.
      steps: time steps of a simulation.
      condition: what the networks were trained with.
      p: the probability of being dropped; None where it is not chosen yet.
      variant: what is done with the trained networks.
    """

    table: str
    data: str
    steps: int
    condition: str
    p: float | None
    variant: str


class Row(NamedTuple):
    """One number."""

    unit: Unit
    measure: str
    seed: int
    value: float


HEADER = (*Unit._fields, "measure", "seed", "value")


def read_rows(path: Path) -> list[Row]:
    """Reads a file of results."""
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != HEADER:
            raise ValueError(
                f"{path} must have the columns {HEADER}, but has {lines.fieldnames}"
            )
        return [
            Row(
                Unit(
                    line["table"],
                    line["data"],
                    int(line["steps"]),
                    line["condition"],
                    float(line["p"]),
                    line["variant"],
                ),
                line["measure"],
                int(line["seed"]),
                float(line["value"]),
            )
            for line in lines
        ]


class Results:
    """The rows in a folder, with the settings they belong to and trained parameters."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Opens the folder, or makes it.

        Raises:
          ValueError: what lies there has other settings; nothing is overwritten.
        """
        self._folder = folder
        self._path = folder / "results.csv"
        settings_path = folder / "settings.json"
        wanted = json.dumps(settings, indent=2)
        if settings_path.exists():
            there, now = (
                _flat(json.loads(text)) for text in (settings_path.read_text(), wanted)
            )
            other = [
                f"{name} is {there.get(name)} there and {now.get(name)} now"
                for name in there | now
                if there.get(name) != now.get(name)
            ]
            if other:
                more = f"; and {len(other) - 3} more" if len(other) > 3 else ""
                raise ValueError(
                    f"{settings_path} is of other settings: {'; '.join(other[:3])}{more}. "
                    "Nothing was overwritten: type --output with another folder"
                )
        elif self._path.exists():
            raise ValueError(
                f"{self._path} has no settings.json beside it, so its settings are not "
                "known. Nothing was overwritten: type --output with another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not settings_path.exists():
            _write(settings_path, wanted.encode())
        self.rows = read_rows(self._path) if self._path.exists() else []
        self._lock = threading.Lock()

    def has(self, unit: Unit, seed: int | None = None) -> bool:
        """Says whether the rows of a unit are there, of a seed if one is named."""
        return any(row.unit == unit and seed in (None, row.seed) for row in self.rows)

    def add(
        self, unit: Unit, values: Mapping[str, Iterable[float]], seeds: Iterable[int]
    ) -> None:
        """Writes the values of a unit, by measure, one for each seed."""
        seeds = list(seeds)
        with self._lock:
            self._write_rows(
                self.rows
                + [
                    # As it will be read: a run that goes on chooses what one in a piece
                    # chooses.
                    Row(unit, measure, seed, float(f"{value:.6g}"))
                    for measure, of_seeds in values.items()
                    for seed, value in zip(seeds, of_seeds, strict=False)
                ]
            )

    def sort(self, planned: Sequence[Unit]) -> None:
        """Brings the rows into the order of the plan, in which a chosen ``p`` is None."""
        places = {unit: place for place, unit in enumerate(planned)}

        def place(row: Row) -> int:
            unchosen = row.unit._replace(p=None)
            return places.get(row.unit, places.get(unchosen, len(places)))

        with self._lock:
            self._write_rows(sorted(self.rows, key=place))

    def _write_rows(self, rows: list[Row]) -> None:
        self.rows = rows
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows((*row.unit, *row[1:]) for row in self.rows)
        _write(self._path, text.getvalue().encode())

    def save_params(self, unit: Unit, params: Any, seed: int | None = None) -> None:
        """Keeps the parameters that a unit trained, or what it found with them."""
        _write(
            self._params_path(unit, seed),
            serialization.msgpack_serialize(serialization.to_state_dict(params)),
        )

    def load_params(self, unit: Unit, seed: int | None = None) -> Any:
        """Loads what ``save_params`` kept."""
        path = self._params_path(unit, seed)
        if not path.exists():
            raise ValueError(
                f"{path} is missing, the parameters to which {self._path} has rows: type "
                "--output with another folder to train again"
            )
        return serialization.msgpack_restore(path.read_bytes())

    def _params_path(self, unit: Unit, seed: int | None) -> Path:
        words = unit[1:] if seed is None else (*unit[1:], seed)
        return self._folder / "params" / f"{'-'.join(map(str, words))}.msgpack"


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Names what is inside of a setting together with it."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        found |= {f"{name}, {key}": one for key, one in inner.items()} or {name: value}
    return found


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
