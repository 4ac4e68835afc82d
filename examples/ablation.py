"""Measures whether holding the mask matters: an ablation of dropout in spiking networks.

Five conditions differ in one thing: no dropout, Flax's dropout with a new mask at every
time step, the held dropout of ``snn_dropout``, and DropConnect, fresh and held. They share
seeds, first parameters, batches and input spikes. The probability ``p`` is chosen on a
part of the training data; the test data choose nothing.

It goes from small to large: networks that hardly overfit, on data that packages ship, and
larger ones that do, on Fashion-MNIST. Of each it writes every number (``results.csv``),
the tables (CSV and Markdown) and the pictures into a folder. A run that was interrupted
goes on where it was. From the root of the repository::

  python -m pip install -e '.[study]'
  apt-get install dataset-fashion-mnist        # or --data-dir with its four files
  python examples/ablation.py

The parts are in ``study/``. ``--quick`` does the same at a toy size, to see that it runs.
"""

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

try:
    import jax
    from study.fashion import part as fashion
    from study.fashion.images import FOLDER
    from study.fashion.names import QUESTIONS
    from study.names import CONDITIONS, DATA, FASHION
    from study.small import part as small
    from study.small.plan import QUICK, Settings
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
    add(
        "--questions",
        nargs="+",
        choices=QUESTIONS,
        default=list(QUESTIONS),
        help=f"asked of {FASHION}",
    )
    default = f"{Settings().updates}, or {QUICK.updates} if quick"
    add("--updates", type=int, help=f"of the small networks (default: {default})")
    add("--data-dir", type=Path, help=f"folder with Fashion-MNIST (default: {FOLDER})")
    add("--first-seed", type=int, default=0, help=f"of {FASHION}; others: another run")
    add("--output", type=Path, help="folder (default: output/ablation or output/quick)")
    options = parser.parse_args(argv)
    if options.updates is not None and options.updates < 1:
        parser.error(f"--updates must be 1 or more, not {options.updates}")
    if not 0 <= options.first_seed < 1000:
        parser.error(f"--first-seed must be 0 to 999, not {options.first_seed}")
    if options.output is None:
        options.output = Path("output", "quick" if options.quick else "ablation")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Does the work that is not done yet, then writes tables and pictures."""
    options = parse_options(argv)
    try:  # what is missing is said before the work
        parts = [part.prepare(options, versions()) for part in (small, fashion)]
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    for work in parts:
        for path in work():
            print(f"written: {path}")


if __name__ == "__main__":
    # One device for each core, each with its own part of the work.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    main()
