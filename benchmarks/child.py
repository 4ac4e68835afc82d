"""One implementation in one process: checks it, then times a turn whenever asked."""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from benchmarks.checks import WrongResultError
from benchmarks.implementations import Task, load

WARM_CALLS = 3
# A turn lasts that long, if it is not made of so many calls already.
TURN_SECONDS, MOST_CALLS = 0.05, 10


def start(target: str, settings: dict[str, Any]) -> tuple[Task | None, dict[str, Any]]:
    """Builds, checks and warms a task; what is wrong is refused, and not timed.

    Args:
      target: the implementation, see ``implementations.load``.
      settings: its arguments.

    Returns:
      The task, and what is known of it, or why it is ``refused``.
    """
    task = load(target, settings)
    try:
        task.check()
    except WrongResultError as error:
        return None, {"refused": str(error)}
    for number in range(WARM_CALLS):
        task.call(number)
    return task, dict(task.known)


def turn(task: Task, number: int) -> float:
    """Times a call, and while calls are short, more of them.

    Args:
      task: the task.
      number: the number of the turn, of which keys are made.

    Returns:
      The milliseconds of a call. Of several it is the median of all but the first,
      which finds the caches as other processes have left them.
    """
    numbers = iter(range(WARM_CALLS + MOST_CALLS * number, sys.maxsize))
    calls = [task.call(next(numbers))]
    while len(calls) < MOST_CALLS and sum(calls) < TURN_SECONDS:
        calls.append(task.call(next(numbers)))
    return 1e3 * median(calls[1:] or calls)


def serve(connection: Connection, target: str, cores: Sequence[int]) -> None:
    """Answers a workload's settings by ``start``, a turn's number by ``turn``.

    Args:
      connection: to the parent, until it closes it.
      target: the implementation.
      cores: what this process is pinned to.
    """
    # Before JAX or PyTorch is imported: both make as many threads as there are cores.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    task: Task | None = None
    with contextlib.suppress(EOFError):
        while True:
            question = connection.recv()
            try:
                if isinstance(question, dict):
                    task, answer = start(target, question)
                else:
                    assert task is not None
                    answer = {"ms": turn(task, question)}
            except Exception as error:
                traceback.print_exc()
                answer = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            connection.send(answer)
