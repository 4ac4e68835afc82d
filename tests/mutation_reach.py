"""Which tests run which lines, learnt once: a mutant needs no others.

JAX traces a function once for all calls of one signature, and so do caches and fixtures
make things once for all tests that look at them. Here each test makes all of it again, so
that it runs every line that it depends on.
"""

import functools
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mutants import ROOT, copy_of_the_project, run_tests
from tests.mutation_operators import Mutant, digests

KEPT = ROOT / ".cache" / "mutation" / "reach"
DURATIONS = "MUTATION_DURATIONS"  # the file to write how long each test takes


# What pytest does differently where this file is its plug-in.


def pytest_configure(config: pytest.Config) -> None:
    """Measures the tests."""
    config.pluginmanager.register(_Durations())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lets no test find what another one has made."""
    import jax

    jax.clear_caches()
    for name, module in list(sys.modules.items()):
        if name.startswith(("tests.", "snn_dropout.")):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Ends all fixtures with each test."""
    item.session._setupstate.teardown_exact(None)


class _Durations:
    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            passed = {k: v for k, v in self.seconds.items() if k not in self.failed}
            learnt = {"durations": passed, "failed": sorted(self.failed)}
            Path(os.environ[DURATIONS]).write_text(json.dumps(learnt))


@dataclass(frozen=True)
class Reach:
    """What was learnt of the tests.

    Attributes:
      durations: of the tests that pass, in seconds.
      failed: those that do not, or are skipped.
      lines: for each file and line the tests that run it; None stands for all of them,
        where a line is run by an import.
      sources: a digest of each file.
    """

    durations: dict[str, float]
    failed: list[str]
    lines: dict[str, dict[int, set[str] | None]]
    sources: dict[str, str]

    def tests_of(self, mutant: Mutant, tests: list[str], source: str) -> list[str]:
        """Returns the tests that may see a mutant, in the order in which to run them.

        Args:
          mutant: the mutant.
          tests: all tests that there are now. One that is not known yet counts where
            another case of it does, or where no case of it is known.
          source: the digest of the mutant's file; where it has changed since, all tests
            count that run any line of it.
        """
        lines = self.lines.get(mutant.file, {})
        if source == self.sources.get(mutant.file):
            reached = [lines[line] for line in mutant.lines if line in lines]
        else:
            reached = [names for names in lines.values() if names is not None] or [None]
        seen = set(self.durations) if None in reached else set().union(*reached)
        functions, known = ({function_of(t) for t in s} for s in (seen, self.durations))
        tried = {*self.durations, *self.failed}

        def may_see(test: str) -> bool:
            if test in tried:
                return test in seen
            return function_of(test) in functions or function_of(test) not in known

        chosen = filter(may_see, tests)
        return sorted(chosen, key=lambda test: self._distance(test, mutant.file))

    def _distance(self, test: str, file: str) -> tuple[bool, bool, float]:
        where, subject = Path(test.split("::")[0]), Path(file)
        stem = where.stem.removeprefix("test_").strip("_")
        return (
            stem != subject.stem.strip("_"),
            where.parent.name != (subject.parent.name or "tests"),
            self.durations.get(test, 1.0),
        )


def function_of(test: str) -> str:
    """Returns the test without the case."""
    return test.split("[")[0]


def learn(processes: int) -> None:
    """Runs the short depth once, in a copy, and prints the lines that it does not run."""
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of_the_project(Path(temporary))
        status, output = run_tests(
            folder,
            ["snn_dropout", "tests"],
            *("--doctest-modules", "-p", "tests.mutation_reach", "-n", str(processes)),
            *("--cov=snn_dropout", "--cov-context=test", "--cov-report=term-missing"),
            settings={
                "COVERAGE_FILE": str(KEPT / "coverage"),
                "COVERAGE_CORE": "ctrace",
                DURATIONS: str(KEPT / "durations.json"),
            },
        )
        (KEPT / "sources.json").write_text(json.dumps(digests(folder)))
    (KEPT / "output.txt").write_text(output)
    print(output[output.find("tests coverage") :])
    if status:
        print("Tests that fail without a mutant are left out.")


def load() -> Reach:
    """Reads what :func:`learn` has kept."""
    from coverage import CoverageData

    data = CoverageData(str(KEPT / "coverage"))
    data.read()
    lines = {}
    for path in data.measured_files():
        file = path.split("/snn_dropout/", 1)[1]
        lines[file] = {
            line: None if "" in contexts else {c.rsplit("|", 1)[0] for c in contexts}
            for line, contexts in data.contexts_by_lineno(path).items()
        }
    durations = json.loads((KEPT / "durations.json").read_text())
    sources = json.loads((KEPT / "sources.json").read_text())
    return Reach(**durations, lines=lines, sources=sources)
