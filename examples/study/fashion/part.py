"""From the command line to the results of this part."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from study.fashion import images
from study.fashion.names import QUESTIONS
from study.fashion.plan import Job, Settings, cost, described, in_parts, plan, quick
from study.fashion.report import report
from study.fashion.work import measure
from study.names import CONDITIONS, FASHION
from study.results import Results
from study.running import run


def prepare(
    options: argparse.Namespace, versions: Mapping[str, str]
) -> Callable[[], list[Path]]:
    """Loads the images and opens the results; returns the work.

    Raises:
      ValueError: images are missing or broken, or the results are of other settings.
    """
    if FASHION not in options.data:
        return list
    settings = Settings(first_seed=options.first_seed)
    if options.quick:
        settings = quick(settings)
    folder = options.data_dir or images.FOLDER
    if options.quick and options.data_dir is None and not folder.exists():
        settings, data = settings._replace(images="made"), images.made()
    else:
        data = images.published(folder)
    results = Results(options.output / FASHION, described(settings, versions))

    def do(job: Job) -> str | None:
        if results.has(job.unit, job.seed):
            return None
        values = measure(job, settings, data, results)
        of_seed = {name: [value] for name, value in values.items()}
        results.add(job.unit, of_seed, [job.seed])
        unit = job.unit
        return (
            f"{unit.table}, {unit.data}, {unit.variant}, T = {unit.steps}, "
            f"{CONDITIONS[unit.condition]}, p = {unit.p}, seed {job.seed}"
        )

    def work() -> list[Path]:
        jobs = plan(settings, options.questions, options.conditions)
        run(in_parts(jobs), do, lambda job: cost(job, settings))
        results.sort([job.unit for job in plan(settings, QUESTIONS, CONDITIONS)])
        return report(results.rows, options.output / FASHION)

    return work
