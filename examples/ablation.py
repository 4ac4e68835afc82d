"""Measures whether holding the mask matters: an ablation of dropout in spiking networks.

Five conditions differ in one thing: no dropout, Flax's dropout with a new mask at every
time step, the held dropout of ``snn_dropout``, and DropConnect, fresh and held. They share
seeds, first parameters, batches and input spikes. The probability ``p`` is chosen on a
part of the training data; the test data are shown to the networks of the chosen ``p``.

It writes every number (``results.csv``), the tables (CSV and Markdown) and the pictures. A
run that was interrupted goes on where it was. From the root of the repository::

  python -m pip install -e '.[study]'
  python examples/ablation.py

The parts are in ``study/``. ``--quick`` does the same at a toy size, to see that it runs.
"""

import argparse
import importlib.metadata
import itertools
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event

try:
    import jax
    from study.names import CONDITIONS, DATA, VOWELS
    from study.plan import QUICK, Settings, in_turn, plan
    from study.report import write_report
    from study.results import Results, Unit
    from study.work import load, measure, seeds_of, with_p
except ImportError as error:
    raise SystemExit(
        f"This example could not start: {error}. Install what it needs with\n"
        f"  python -m pip install -e '.[study]'"
    ) from error


def versions() -> dict[str, str]:
    """Returns the versions of what the numbers depend on."""
    names = ("snn_dropout", "jax", "flax", "optax", "scikit-learn")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"Python": platform.python_version(), **found}


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description="Measures whether holding the mask of dropout matters.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a toy size, to see that it runs")
    add("--data", nargs="+", choices=DATA, default=list(DATA), help="data sets")
    add(
        "--conditions",
        nargs="+",
        choices=CONDITIONS,
        default=list(CONDITIONS),
        help="what networks are trained with",
    )
    defaults = f"{Settings().updates}, or {QUICK.updates} if quick"
    add("--updates", type=int, help=f"of a training (default: {defaults})")
    add("--output", type=Path, help="folder (default: output/ablation or output/quick)")
    options = parser.parse_args(argv)
    if options.updates is not None and options.updates < 1:
        parser.error(f"--updates must be 1 or more, not {options.updates}")
    if options.output is None:
        options.output = Path("output", "quick" if options.quick else "ablation")
    return options


def run(planned: Sequence[Unit], settings: Settings, results: Results) -> None:
    """Does the units that are not done yet, as many at once as there are devices."""
    start, done, stopped = time.perf_counter(), itertools.count(1), Event()
    devices: SimpleQueue[jax.Device] = SimpleQueue()
    for device in jax.devices():
        devices.put(device)

    def follow(chain: Sequence[Unit]) -> None:
        device = devices.get()
        try:
            with jax.default_device(device):
                for unit in chain:
                    if not stopped.is_set():
                        do(with_p(unit, settings, results))
        finally:
            devices.put(device)

    def do(unit: Unit) -> None:
        if results.has(unit):
            next(done)
            return
        results.add(unit, measure(unit, settings, results), seeds_of(unit, settings))
        minutes = (time.perf_counter() - start) / 60
        words = f"T = {unit.steps}, {unit.condition}, p = {unit.p}, {unit.variant}"
        print(
            f"{next(done):3} of {len(planned)}  {minutes:5.1f} min  "
            f"{unit.table}, {unit.data}, {words}",
            flush=True,
        )

    for chains in in_turn(planned):
        with ThreadPoolExecutor(len(jax.devices())) as pool:
            try:
                list(pool.map(follow, chains))
            except BaseException:
                stopped.set()  # not the whole chain is waited for
                raise
        jax.clear_caches()  # what is compiled is not used again, and fills the memory
    results.sort(planned)


def main(argv: Sequence[str] | None = None) -> None:
    """Does the work that is not done yet, then writes tables and pictures."""
    options = parse_options(argv)
    settings = QUICK if options.quick else Settings()
    if options.updates is not None:
        settings = settings._replace(updates=options.updates)
    if VOWELS in options.data:
        load(VOWELS, settings.vowel_steps)  # what is missing is said before the work
    try:
        results = Results(options.output, settings._asdict() | {"versions": versions()})
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    run(plan(settings, options.data, options.conditions), settings, results)
    for path in write_report(results.rows, options.output):
        print(f"written: {path}")


if __name__ == "__main__":
    # One device for each core, each with its own part of the work.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    main()
