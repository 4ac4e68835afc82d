"""Runs jobs on all devices, and says how far it is."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import jax

Chain = Sequence[Any]  # of jobs that need each other, in their order


def run(
    parts: Sequence[Sequence[Chain]],
    do: Callable[[Any], str | None],
    cost: Callable[[Any], float],
) -> None:
    """Does one part after the other, of each as many chains at once as devices.

    Args:
      parts: the work.
      do: does a job and returns words for it, or None if it was done already.
      cost: estimates what a job costs, in any unit.
    """
    devices: SimpleQueue[jax.Device] = SimpleQueue()
    for device in jax.devices():
        devices.put(device)
    jobs = [job for part in parts for chain in part for job in chain]
    progress, stopped = Progress(len(jobs), sum(map(cost, jobs))), threading.Event()

    def follow(chain: Chain) -> None:
        device = devices.get()
        try:
            with jax.default_device(device):
                for job in chain:
                    if not stopped.is_set():
                        progress.add(do(job), cost(job))
        finally:
            devices.put(device)

    for part in parts:
        with ThreadPoolExecutor(len(jax.devices())) as pool:
            try:
                list(pool.map(follow, part))
            except BaseException:
                stopped.set()  # not the whole chain is waited for
                raise
        jax.clear_caches()  # what is compiled is not used again, and fills the memory


class Progress:
    """Counts what is done, and tells how long the rest may take."""

    def __init__(self, jobs: int, cost: float) -> None:
        self._jobs, self._left = jobs, cost
        self._done, self._spent = 0, 0.0
        self._start, self._lock = time.perf_counter(), threading.Lock()

    def add(self, words: str | None, cost: float) -> None:
        """Counts a job; prints a line unless it was done already."""
        with self._lock:
            self._done += 1
            self._left -= cost
            if words is None:
                return
            self._spent += cost
            minutes = (time.perf_counter() - self._start) / 60
            # By the work of the cores, for a run may wait for others.
            of_cost = time.process_time() / 60 / self._spent / len(jax.devices())
            print(
                f"{self._done:3} of {self._jobs}  {minutes:5.1f} min, about "
                f"{max(0, self._left) * of_cost:.0f} more  {words}",
                flush=True,
            )
