"""``python -m benchmarks.compiled``: programs for devices that are not there."""

import argparse
import contextlib
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.compiled.targets import TARGETS, Target

COLUMNS = (
    "program | temporary MiB, of at most | beside it | arguments, results "
    "| kernels, loops, products | largest array | moved MiB | cycles | cost model "
    "| exchanged | compiled in"
)


def options() -> argparse.ArgumentParser:
    """Describes the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled",
        description="Compiles the workloads for devices that are not there, one process a "
        "kind of device, and prints what their programs take.",
    )
    add = parser.add_argument
    add("--target", choices=TARGETS, help="one kind of device (default: all installed)")
    add(
        "--only",
        nargs="+",
        metavar="WORDS",
        help="programs with these words in them",
    )
    add("--chips", type=int, choices=(1, 8), help="on one chip, or data parallel on eight")
    add("--bounded", action="store_true", help="only programs that are held to a bound")
    add("--json", action="store_true", help="print a line of JSON a program, and no table")
    return parser


def compile_all(
    target: Target, chips: int, words: Sequence[str], bounded: bool
) -> Iterator[dict[str, Any]]:
    """Compiles programs in this process, a new one, and yields what they say."""
    target.prepare()
    import jax

    from benchmarks.compiled.look import look
    from benchmarks.compiled.programs import programs

    chosen = {
        name: program
        for name, program in programs().items()
        if all(word in name for word in words) and (program.bound or not bounded)
    }
    if not chosen:
        names = ", ".join(programs())
        raise SystemExit(
            f"no program has {' '.join(words)!r} in its name; there are: {names}"
        )
    mesh = target.mesh(chips)
    for name, program in chosen.items():
        with jax.set_mesh(mesh) if chips > 1 else contextlib.nullcontext():
            traced = jax.jit(program.make()).trace(*program.arguments(mesh))
            lowered = traced.lower(lowering_platforms=(target.platform,))
            start = time.monotonic()
            compiled = lowered.compile()
        seconds = time.monotonic() - start
        yield {
            "name": name,
            "chips": chips,
            **look(compiled),
            "seconds": seconds,
            "bound": program.bound,
            "limit": program.limit,
            "moves": program.moves,
            "masked": program.masked,
            "matrix_units": program.matrix_units,
        }


def absent(target: Target, install: str) -> str:
    """Returns what to type where a compiler is missing."""
    return f"{target.title}: no compiler is installed; type: {install}"


def run(
    target: Target, chips: int, words: Sequence[str] = (), *, bounded: bool
) -> list[dict[str, Any]]:
    """Compiles programs in a process of their own.

    Raises:
      RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.compiled", "--json"]
    command += ["--target", target.name, "--chips", str(chips)]
    command += ["--only", *words] if words else []
    command += ["--bounded"] if bounded else []
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{child.stdout}{child.stderr}")
    return [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]


def rows(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the rows of a table."""
    by_name = {result["name"]: result for result in results}
    for result in results:
        beside = by_name.get(result["limit"])
        bound = result["bound"]
        cells = [
            result["name"],
            f"{result['temporary']:.2f}" + (f" of {bound:g}" if bound else ""),
            f"{beside['temporary']:.2f}" if beside else "",
            f"{result['arguments']:.1f}, {result['results']:.1f}",
            f"{result['kernels']}, {result['loops']}, {result['products']}",
            f"`{result['largest']}`",
            _with_ratio(result, beside, "moved", "{:.1f}"),
            _with_ratio(result, beside, "cycles", "{:,}"),
            _with_ratio(result, beside, "microseconds", "{:.0f} us"),
            ", ".join(f"{kind} {size:,}" for kind, size in result["collectives"].items()),
            f"{result['seconds']:.1f} s",
        ]
        yield f"| {' | '.join(cells)} |"


def _with_ratio(result: Any, beside: Any, name: str, form: str) -> str:
    if not result[name]:
        return ""
    cell = form.format(result[name])
    if beside and beside[name]:
        cell += f", {result[name] / beside[name]:.2f} x"
    return cell


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table for each kind of device, or what to install for it."""
    chosen = options().parse_args(arguments)
    targets = [TARGETS[chosen.target]] if chosen.target else list(TARGETS.values())
    words = chosen.only or []
    if chosen.json:
        for target in targets:
            if install := target.missing():
                raise SystemExit(
                    f"{target.title}: no compiler is installed; type: {install}"
                )
            for result in compile_all(target, chosen.chips or 1, words, chosen.bounded):
                print(json.dumps(result), flush=True)
        return 0
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax"))
    print(f"Python {sys.version.split()[0]}, {', '.join(versions)}\n")
    for target in targets:
        if install := target.missing():
            print(absent(target, install), end="\n\n")
            continue
        for chips in [chosen.chips] if chosen.chips else [1, 8]:
            print(f"## {target.title}, {chips} chip{'s' if chips > 1 else ''}\n")
            print(f"| {COLUMNS} |\n|{'---|' * len(COLUMNS.split('|'))}")
            bounded = chosen.bounded or chips > 1
            results = run(target, chips, words, bounded=bounded)
            print(*rows(results), sep="\n", end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
