"""The results as a table: Markdown to read, CSV to read by programs."""

import csv
import importlib.metadata
import os
import platform as this_machine
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.processes import Result
from benchmarks.workloads import OURS, Target

PACKAGES = ("jax", "flax", "torch", "spikingjelly", "brainstate")
HEADER = (
    "workload",
    "implementation",
    "CPU ms",
    "GPU ms",
    "ratio to ours",
    "temporary MiB",
    "to reach",
)


def machine(platform: str, kind: str, cores: Sequence[int]) -> str:
    """Describes the machine in a line."""
    count = f"{len(cores)} core{'s' if len(cores) > 1 else ''}"
    pinned = count if hasattr(os, "sched_setaffinity") else f"{count} asked for, not pinned"
    info = Path("/proc/cpuinfo")
    wide = " with AVX-512" if info.exists() and "avx512f" in info.read_text() else ""
    cpu = f"{pinned} of a CPU ({this_machine.machine()}{wide})"
    return f"{cpu}, GPU: {'not measured' if platform == 'cpu' else kind}"


def versions() -> str:
    """Lists versions of Python and of packages, and how memory is allocated if told."""
    found = [f"Python {this_machine.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    told = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    found += [f"{name}={os.environ[name]}" for name in os.environ if name.startswith(told)]
    return ", ".join(found)


def lines(
    title: str, results: dict[str, Result], targets: Sequence[Target], platform: str
) -> Iterator[dict[str, str]]:
    """Yields one line an implementation, with the cells that ``HEADER`` names."""
    measured, other = ("CPU ms", "GPU ms")[:: 1 if platform == "cpu" else -1]
    first = next(iter(results))
    for label, result in results.items():
        line = dict.fromkeys(HEADER, "")
        line |= {"workload": title, "implementation": label, other: "not measured"}
        for reason in ("absent", "refused", "failed"):
            if reason in result:
                line[measured] = f"{reason}: {result[reason]}"
        if "ms" in result:
            line[measured] = number(result["ms"])
            if "ms" in results[first]:
                line["ratio to ours"] = number(result["ms"] / results[first]["ms"])
        if "MiB" in result:
            line["temporary MiB"] = number(result["MiB"])
        here = [target for target in targets if label == (target.rival or target.ours)]
        line["to reach"] = "; ".join(verdict(target, results) for target in here)
        yield line


def verdict(target: Target, results: dict[str, Result]) -> str:
    """Says what is to be reached, what was measured, and whether that reaches it."""
    value = results[target.ours].get(target.unit)
    least, unit = target.at_least is not None, f" {target.unit}"
    if target.rival is not None:
        rival = results[target.rival].get(target.unit)
        if value is not None and rival is not None:
            value = rival / value if least else value / rival
        else:
            value = None
        unit = " x faster" if least else " x this"

    def holds(limit: float) -> bool:
        return value >= limit if least else value <= limit

    who = target.ours.removeprefix(OURS).removeprefix(", ") or "ours"
    bound = target.at_least if least else target.at_most
    words = f"{who} {'>=' if least else '<='} {bound:g}{unit}"
    words += "" if target.aim is None else f", aim {target.aim:g}"
    if value is None:
        return f"{words}: not measured"
    outcome = "reached" if holds(bound) else "NOT REACHED"
    if target.aim is not None and holds(target.aim):
        outcome += ", the aim too"
    return f"{words}: {number(value)}, {outcome}"


def number(value: float) -> str:
    """Writes a number with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def markdown(table: Sequence[dict[str, str]]) -> str:
    """Returns lines as an aligned Markdown table; a title stands in its first line."""
    rows, before = [], None
    for line in table:
        title = "" if line["workload"] == before else line["workload"]
        before = line["workload"]
        rows.append([title, *(line[name] for name in HEADER[1:])])
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]

    def row(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    return "\n".join([row(HEADER), row(["-" * width for width in widths]), *map(row, rows)])


def write(folder: Path, heading: str, table: Sequence[dict[str, str]]) -> None:
    """Writes ``table.md`` and ``table.csv`` to a folder."""
    (folder / "table.md").write_text(f"{heading}\n\n{markdown(table)}\n")
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(table)
