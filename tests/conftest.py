import gc
import os
import shutil
from pathlib import Path

# Most of the time of the tests is compilation. In half of that time programs are compiled
# with little optimisation (but see `pytest_runtest_setup`), and each is compiled once, for
# all processes and for the next run: what it is compiled from is part of its name.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Which line of Python made an operation is in no result, and takes a tenth of the time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax
import pytest

from tests import compiler, depth

# Eight devices where there is one: sharding is tested without an accelerator.
os.environ.setdefault("XLA_FLAGS", compiler.EIGHT_DEVICES)

LITTLE_OPTIMISED = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0"
PROGRAMS = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
MOST_BYTES = 2**30  # of programs, before they are thrown away


def pytest_addoption(parser):
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="run every row, combination and size, not only those that stand for the rest",
    )


def pytest_configure(config):
    compiler.reuse_contexts()
    if not config.getoption("--exhaustive") or config.option.markexpr == "not optimised":
        os.environ["XLA_FLAGS"] += f" {compiler.LITTLE_WORK}"
    # What traces leave behind is many objects and little garbage: to look for it as often
    # as usual takes a tenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    if not hasattr(config, "workerinput") and size_of(PROGRAMS) > MOST_BYTES:
        shutil.rmtree(PROGRAMS)


def size_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir()) if folder.exists() else 0


def pytest_collection_modifyitems(config, items):
    silent = depth.without_a_depth(items)
    if silent:
        raise pytest.UsageError(
            "a test of many cases must say which stand for the rest, by `depth.cases` or "
            f"the mark `short`, but these do not: {', '.join(silent)}"
        )
    if not config.getoption("--exhaustive"):
        left_out = [item for item in items if depth.is_exhaustive(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not depth.is_exhaustive(item)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    wanted = item.config.getoption("--exhaustive") and item.get_closest_marker("optimised")
    little = LITTLE_OPTIMISED and not wanted
    if jax.config.read("jax_disable_most_optimizations") != little:
        jax.config.update("jax_disable_most_optimizations", little)
        jax.clear_caches()  # of programs that are not compiled this way


@pytest.fixture(autouse=True, scope="session")
def _strict_rank_promotion():
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)
