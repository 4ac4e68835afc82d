"""From the command line to the results of this part."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from study.names import FASHION, VOWELS
from study.results import Results, Unit
from study.running import run
from study.small.plan import QUICK, Settings, in_turn, plan
from study.small.report import report
from study.small.work import load, measure, seeds_of, with_p


def prepare(
    options: argparse.Namespace, versions: Mapping[str, str]
) -> Callable[[], list[Path]]:
    """Loads what may be missing and opens the results; returns the work.

    Raises:
      ValueError: the results are of other settings.
    """
    data = [name for name in options.data if name != FASHION]
    if not data:
        return list
    settings = QUICK if options.quick else Settings()
    if options.updates is not None:
        settings = settings._replace(updates=options.updates)
    if VOWELS in data:
        load(VOWELS, settings.vowel_steps)
    folder = options.output / "small"
    results = Results(folder, settings._asdict() | {"versions": versions})

    def do(unit: Unit) -> str | None:
        unit = with_p(unit, settings, results)
        if results.has(unit):
            return None
        results.add(unit, measure(unit, settings, results), seeds_of(unit, settings))
        return (
            f"{unit.table}, {unit.data}, T = {unit.steps}, {unit.condition}, "
            f"p = {unit.p}, {unit.variant}"
        )

    def work() -> list[Path]:
        planned = plan(settings, data, options.conditions)
        run(list(in_turn(planned)), do, lambda unit: 1)
        results.sort(planned)
        return report(results.rows, folder)

    return work
