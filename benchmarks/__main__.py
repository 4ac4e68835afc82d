"""``python -m benchmarks``: the package and its rivals, side by side."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import processes, scaling, table
from benchmarks.workloads import WORKLOADS


def cores(text: str) -> list[int]:
    """Reads a list of cores such as ``0`` or ``0,1``."""
    try:
        chosen = sorted({int(part) for part in text.split(",")})
    except ValueError:
        message = f"{text!r} is no list of cores; write for example 0 or 0,1"
        raise argparse.ArgumentTypeError(message) from None
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
        if not set(chosen) <= usable:
            message = f"{text!r} names a core that is not among {sorted(usable)}"
            raise argparse.ArgumentTypeError(message)
    return chosen


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def folder(text: str) -> Path:
    """Reads the path of a folder, which may not exist yet."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder")
    return path


def options() -> argparse.ArgumentParser:
    """Describes the options."""
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures snn_dropout beside its rivals: one process an "
        "implementation, pinned to the same cores, taking turns; medians of warm calls. "
        "Rivals that are not installed are named as absent.",
        epilog="workloads: " + ", ".join(names),
    )
    add = parser.add_argument
    add(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=names,
        default=names,
        help="measure these workloads, of those listed below",
    )
    add("--repeats", type=positive, default=40, help="rounds (default: %(default)s)")
    add(
        "--cores",
        type=cores,
        default=[0],
        metavar="N[,N]",
        help="what every process is pinned to (default: 0); with several, ours on the "
        "first of them alone stands beside it",
    )
    add("--scaling", action="store_true", help="measure curves in place of the table")
    add("--small", action="store_true", help="toy sizes, to try the command")
    add(
        "--output",
        type=folder,
        default=Path("output/benchmarks"),
        metavar="FOLDER",
        help="where the results are written too (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 1 if anything was refused."""
    chosen = options().parse_args(arguments)
    platform, kind = processes.default_device()
    heading = f"{table.machine(platform, kind, chosen.cores)}; {table.versions()}"
    if chosen.small:
        heading += "; toy sizes, not those of the titles"
    print(heading, flush=True)
    chosen.output.mkdir(parents=True, exist_ok=True)
    how = (chosen.cores, platform, chosen.repeats)
    if chosen.scaling:
        points = scaling.measure(how, small=chosen.small)
        scaling.write(chosen.output, points, heading)
        print(f"written to {chosen.output}")
        return 0

    lines, wrong = [], False
    for workload in WORKLOADS:
        if workload.name not in chosen.only:
            continue
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        if platform == "cpu" and len(chosen.cores) > 1:
            workload = workload.beside_one_core()
        settings = workload.small() if chosen.small else workload.settings
        (results,) = processes.measure(workload.runs, [settings], *how)
        targets = () if chosen.small or platform != "cpu" else workload.targets
        lines += table.lines(workload.title, results, targets, platform)
        wrong |= any({"refused", "failed"} & result.keys() for result in results.values())
    print("\n" + table.markdown(lines))
    table.write(chosen.output, heading, lines)
    print(f"\nwritten to {chosen.output}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
