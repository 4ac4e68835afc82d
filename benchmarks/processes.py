"""One process an implementation, pinned to the same cores; they take turns."""

import contextlib
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks import child
from benchmarks.implementations import missing_packages
from benchmarks.workloads import ONE_CORE

SPAWN = multiprocessing.get_context("spawn")
# Rounds end after that time too, but never before there are so many.
MOST_SECONDS, FEWEST_ROUNDS = 60, 5

# Of one implementation: "ms", "MiB", "programs", each where it is known; or why there is
# nothing to know: "absent", "refused", "failed".
Result = dict[str, Any]


def default_device() -> tuple[str, str]:
    """Returns the platform and the kind of JAX's default device.

    A process of its own looks it up: this one only waits, and holds no device.
    """
    program = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)"
    found = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )
    platform, kind = found.stdout.strip().split(maxsplit=1)
    return platform, kind


class Child:
    """The process of one implementation; see ``child.serve``."""

    def __init__(self, target: str, cores: Sequence[int]) -> None:
        self._connection, other = SPAWN.Pipe()
        self._process = SPAWN.Process(target=child.serve, args=(other, target, cores))
        self._process.start()
        other.close()

    def ask(self, question: dict[str, Any] | int) -> Result:
        """Asks, and waits for the answer; a process that died gives ``failed``."""
        try:
            self._connection.send(question)
            answer: Result = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return {"failed": f"the process ended, status {self._process.exitcode}"}
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()


def measure(
    runs: dict[str, str],
    settings: Sequence[dict[str, Any]],
    cores: Sequence[int],
    platform: str,
    repeats: int,
) -> Iterator[dict[str, Result]]:
    """Measures implementations side by side.

    Args:
      runs: the implementations, by label, see ``implementations.load``.
      settings: the arguments of all of them, one workload after the other.
      cores: what each process is pinned to.
      platform: of JAX's default device.
      repeats: the number of rounds; in a round each implementation has its turn.

    Yields:
      The result of each label, for each of the settings.
    """
    absent = {label: why_absent(target, platform) for label, target in runs.items()}
    with contextlib.ExitStack() as stack:
        children = {}
        for label, target in runs.items():
            if not absent[label]:
                own = cores[:1] if label.endswith(ONE_CORE) else cores
                children[label] = Child(target, own)
                stack.callback(children[label].close)
        for chosen in settings:
            results = {label: {"absent": reason} for label, reason in absent.items()}
            for label in children:
                results[label] = children[label].ask(chosen)
            _take_turns(children, results, repeats)
            yield results


def why_absent(target: str, platform: str) -> str:
    """Says why an implementation can not be measured here; nothing if it can."""
    if platform != "cpu" and "torch" in target:
        return "compared on the CPU only"
    return ", ".join(missing_packages(target))


def _take_turns(
    children: dict[str, Child], results: dict[str, Result], repeats: int
) -> None:
    """Adds medians to the results of all implementations that were not refused."""
    times: dict[str, list[float]] = {
        label: [] for label in children if not {"refused", "failed"} & results[label].keys()
    }
    started = time.monotonic()
    for number in range(repeats):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > MOST_SECONDS:
            break
        for label in list(times):
            answer = children[label].ask(number)
            if "failed" in answer:
                results[label] = answer
                del times[label]
            else:
                times[label].append(answer["ms"])
    for label, measured in times.items():
        results[label]["ms"] = median(measured)
