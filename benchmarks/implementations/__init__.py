"""What is measured: functions that take the settings of a workload and return a ``Task``.

Modules import their package only when they are loaded, so an absent rival costs nothing.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# What has to be importable for a module here to be loaded, beside this package's needs.
PACKAGES = {
    "network": ("optax",),
    "nnx_network": ("optax",),
    "brainstate_fixed": ("brainstate",),
    "torch_spikingjelly": ("torch", "spikingjelly"),
}


@dataclass(frozen=True)
class Task:
    """One implementation of one workload, ready to be measured.

    Attributes:
      call: makes the call of a number, and returns the seconds that it took.
      check: raises ``checks.WrongResultError`` unless results are right.
      known: what is known after the check: ``MiB``, the memory that the compiled program
        needs beside arguments and results; ``programs`` that a second call compiles.
    """

    call: Callable[[int], float]
    check: Callable[[], None]
    known: Mapping[str, float] = field(default_factory=dict)


def timed(
    run: Callable[..., Any], prepare: Callable[[int], tuple[Any, ...]] = lambda number: ()
) -> Callable[[int], float]:
    """Makes the ``call`` of a task.

    Args:
      run: does the work, and returns when its result is there.
      prepare: makes the arguments of a call from its number, untimed.

    Returns:
      The function.
    """

    def call(number: int) -> float:
        arguments = prepare(number)
        start = time.perf_counter()
        result = run(*arguments)
        seconds = time.perf_counter() - start
        # Not before: to free it is no part of the work.
        del result
        return seconds

    return call


def missing_packages(target: str) -> list[str]:
    """Returns which packages a target lacks."""
    packages = PACKAGES.get(target.split(":")[0], ())
    return [name for name in packages if importlib.util.find_spec(name) is None]


def load(target: str, settings: dict[str, Any]) -> Task:
    """Builds the task of a target.

    Args:
      target: ``module:function``, or ``module:function argument``; a module of this
        package or, with dots, any other.
      settings: further arguments of the function.

    Returns:
      The task, compiled where that is possible.
    """
    module, function, *arguments = target.replace(":", " ").split()
    name = module if "." in module else f"{__name__}.{module}"
    task: Task = getattr(importlib.import_module(name), function)(*arguments, **settings)
    return task
