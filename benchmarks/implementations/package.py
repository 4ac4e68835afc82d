"""The package itself: how long it takes to import."""

import subprocess
import sys

from benchmarks.implementations import Task

PROGRAM = """
import time, jax, flax.linen
start = time.perf_counter()
import snn_dropout
print(time.perf_counter() - start)
"""


def importing() -> Task:
    """Imports the package in a new process that has imported jax and flax."""

    def call(number: int) -> float:
        command = [sys.executable, "-c", PROGRAM]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return float(found.stdout)

    return Task(call, check=lambda: None)
