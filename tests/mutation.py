"""Do the tests bite? Defects that nobody chose, each run against the tests that reach it.

``mutants.py`` has defects made by hand. Here they are drawn at random from all that the
operators of ``mutation_operators.py`` make of the library. Run from the root of the
project, first to learn which tests reach which line, then to try the sample::

  python -m tests.mutation --reach
  python -m tests.mutation

``--exhaustive`` tries at that depth what survived the short one: what the short one kills
the exhaustive one kills too. ``mutation_survivors.toml`` says of each
mutant that survived once which test kills it now, or why it is no defect. What was learnt
and tried is kept in ``.cache/mutation``: a run that is broken off goes on where it was,
and a mutant is tried again when its file has changed. The exit status is 1 if a mutant
survives that the table does not explain.

A mutant meets the tests in this order: the one that killed it last, those of the file
that tests its file, those of the same folder; the quickest first.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mutants import ROOT, copy_of_the_project, run_tests
from tests.mutation_operators import Mutant, all_mutants, digests, sample
from tests.mutation_reach import function_of, learn, load

KEPT = ROOT / ".cache" / "mutation" / "results.jsonl"
TABLE = Path(__file__).with_name("mutation_survivors.toml")
# Most mutants die early, where there is no need to collect all tests.
FIRST = 40
ORDER = "MUTATION_ORDER"  # the file that names the tests to run, in order
TIMEOUT = 10.0  # times what the tests take otherwise, and two minutes


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs the tests that are asked for, in that order, where this file is a plug-in."""
    names = Path(os.environ[ORDER]).read_text().splitlines()
    by_name = {item.nodeid: item for item in items}
    chosen = [by_name[name] for name in names if name in by_name]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def attempt(
    mutant: Mutant,
    original: Path,
    tests: list[str],
    durations: dict[str, float],
    depth: list[str],
) -> str:
    """Runs tests on a mutant of a copy, and returns which kills it, or nothing."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of_the_project(Path(temporary), original)
        file = folder / "snn_dropout" / mutant.file
        file.write_text(mutant.apply(file.read_text()))
        for part in (tests[:FIRST], tests[FIRST:]):
            if not part:
                continue
            timeout = 120 + TIMEOUT * sum(durations.get(test, 0) for test in part)
            status, output = _run(folder, part, *depth, "-x", timeout=timeout)
            if status is None:
                return "time out"
            if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                killers = _failed(output)
                if not killers and "snn_dropout" not in output:
                    raise RuntimeError(f"pytest gave no verdict but {status}\n{output}")
                return killers[0] if killers else "import"
    return ""


def _run(
    folder: Path, tests: list[str], *options: str, timeout: float | None = None
) -> tuple[int | None, str]:
    """Runs tests in the order given, but file by file: they share what takes long."""
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    order = folder / "order.txt"
    order.write_text("\n".join(sorted(tests, key=lambda t: files.index(t.split("::")[0]))))
    plugin = ("--doctest-modules", "-p", "tests.mutation", "-n", "0", "-rfE")
    return run_tests(
        folder, files, *options, *plugin, timeout=timeout, settings={ORDER: str(order)}
    )


def _failed(output: str) -> list[str]:
    lines = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return [line.split(" ", 1)[1].split(" - ")[0] for line in lines]


class Results:
    """What was tried: verdicts by mutant and depth, a line each in a file."""

    def __init__(self, file: Path = KEPT) -> None:
        self.file = file
        self.sources = digests(ROOT)
        self.records: dict[tuple[str, str], dict[str, str]] = {}
        if file.exists():
            for line in file.read_text().splitlines():
                record = json.loads(line)
                self.records[record["mutant"], record["depth"]] = record

    def killer(self, mutant: Mutant, depth: str) -> str | None:
        """Returns what killed a mutant, "" for nothing; None if it was not tried."""
        record = self.records.get((mutant.name, depth))
        fresh = record is not None and record["source"] == self.sources[mutant.file]
        return record["killer"] if fresh else None

    def last_killer(self, mutant: Mutant, depth: str) -> str:
        """Returns what killed a mutant, were its file another one then."""
        return self.records.get((mutant.name, depth), {}).get("killer", "")

    def killers(self, depth: str) -> set[str]:
        """Returns all tests that have killed a mutant."""
        killers = {r["killer"] for (_, d), r in self.records.items() if d == depth}
        return {killer for killer in killers if "::" in killer}

    def forget(self, killers: Iterable[str]) -> None:
        """Forgets what these tests have killed."""
        gone = set(killers)
        self.records = {k: r for k, r in self.records.items() if r["killer"] not in gone}
        lines = (json.dumps(record) + "\n" for record in self.records.values())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("".join(lines))

    def add(self, mutant: Mutant, depth: str, killer: str) -> None:
        """Keeps a verdict."""
        record = {
            "mutant": mutant.name,
            "depth": depth,
            "killer": killer,
            "source": self.sources[mutant.file],
        }
        self.records[mutant.name, depth] = record
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")


def survivors_table() -> dict[str, dict[str, str]]:
    """Reads which mutants are no defects, and which tests kill the others now."""
    return tomllib.loads(TABLE.read_text()) if TABLE.exists() else {}


def run(
    chosen: list[Mutant], depth: list[str], processes: int, again: bool, quick: bool
) -> Results:
    """Tries mutants that were not tried yet."""
    reach, table = load(), survivors_table()
    results = Results()
    word = "exhaustive" if depth else "short"

    def settle(mutant: Mutant, original: Path) -> None:
        known, row = results.killer(mutant, word), table.get(mutant.name, {})
        if known or (known == "" and not again) or "equivalent" in row:
            return
        tests = reach.tests_of(mutant, collected, results.sources[mutant.file])
        for first in (results.last_killer(mutant, word), row.get("killed by", "")):
            named = [t for t in collected if first in (t, function_of(t))]
            tests = named + [test for test in tests if test not in named]
        tests = tests[:FIRST] if quick else tests
        start = time.monotonic()
        killer = attempt(mutant, original, tests, reach.durations, depth)
        if killer or not quick:
            results.add(mutant, word, killer)
        took = f"{time.monotonic() - start:4.0f} s"
        print(f"{took} {'killed  ' if killer else 'SURVIVED'} {mutant.name}", flush=True)
        print(f"                {killer or f'{len(tests)} tests'}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        original = copy_of_the_project(Path(temporary))
        collected = _collect(original, depth)
        results.forget(results.killers(word).difference(collected))
        before = results.killers(word)
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda mutant: settle(mutant, original), chosen))
        _, output = _run(original, sorted(results.killers(word) - before), *depth)
        if failed := _failed(output):
            results.forget(failed)
            raise RuntimeError(f"these fail without a mutant too: {', '.join(failed)}")
    return results


def _collect(original: Path, depth: list[str]) -> list[str]:
    everything = ["tests", "snn_dropout", "--doctest-modules", "--collect-only"]
    status, output = run_tests(original, everything, *depth)
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests can not be collected as it is\n{output}")
    return [line for line in output.splitlines() if "::" in line]


def report(chosen: list[Mutant], results: Results, word: str) -> int:
    """Prints how many of the mutants are killed, and returns how many are unexplained."""
    table = survivors_table()
    equivalent = [m for m in chosen if "equivalent" in table.get(m.name, {})]
    defects = [m for m in chosen if m not in equivalent]
    killers = {m.name: results.killer(m, "short") for m in defects}
    if word == "exhaustive":
        killers = {m.name: killers[m.name] or results.killer(m, word) for m in defects}
    killed = [m for m in defects if killers[m.name]]
    survivors = [m for m in defects if killers[m.name] == ""]
    late = sum(killers[m.name] == "time out" for m in killed)
    print(f"\n{len(chosen)} mutants, of which {len(equivalent)} are equivalent.")
    tried = len(killed) + len(survivors)
    print(f"Killed by the {word} depth: {len(killed)} of {tried} ({late} by the time)")
    if left := len(defects) - tried:
        print(f"Not tried: {left}")
    by_operator = Counter(m.operator for m in chosen if m in killed or m in survivors)
    for operator, count in by_operator.most_common():
        dead = sum(m.operator == operator for m in killed)
        print(f"  {operator}: {dead} of {count}")
    for mutant in survivors:
        print(f"SURVIVED {mutant.name}")
    return len(survivors)


def main() -> int:
    """Learns which tests reach which line, or tries the sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only mutants with these in their names")
    parser.add_argument("--reach", action="store_true", help="learn, and try nothing")
    parser.add_argument("--exhaustive", action="store_true", help="at that depth")
    parser.add_argument("--again", action="store_true", help="try survivors once more")
    parser.add_argument("--report", action="store_true", help="report, and try nothing")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"run the nearest {FIRST} tests only, and keep what they kill",
    )
    parser.add_argument("--sample", type=int, default=220, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="tests at a time")
    arguments = parser.parse_args()
    depth = ["--exhaustive", "-m", "exhaustive"] if arguments.exhaustive else []
    if arguments.reach:
        learn(arguments.processes)
        return 0
    chosen = sample(all_mutants(ROOT), arguments.sample, arguments.seed)
    chosen = [m for m in chosen if all(word in m.name for word in arguments.words)]
    results = Results()
    if arguments.exhaustive:
        tried = [m for m in chosen if results.killer(m, "short") == ""]
    else:
        tried = chosen
    if not arguments.report:
        results = run(tried, depth, arguments.processes, arguments.again, arguments.quick)
    return 1 if report(chosen, results, "exhaustive" if depth else "short") else 0


if __name__ == "__main__":
    sys.exit(main())
