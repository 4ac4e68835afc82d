"""Two processes, connected over the loopback address: the numbers of one process."""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import hosts

ROOT = Path(__file__).parents[1]
LIMIT = 240  # seconds


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_all(commands, folder):
    """Runs programs side by side on two devices each; kills all of them if one fails."""
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        processes, logs = [], []
        for number, command in enumerate(commands):
            logs.append(folder / f"{number}.log")
            log = stack.enter_context(logs[-1].open("w"))
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            processes.append(process)
            stack.callback(process.wait)
            stack.callback(process.kill)
        end = time.monotonic() + LIMIT
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() for process in processes)
            if failed or time.monotonic() > end:
                break
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    outputs = [log.read_text() for log in logs]
    assert codes == [0] * len(codes), "\n".join(outputs)
    return outputs


@pytest.mark.exhaustive
def test_two_processes_train_as_one_does(tmp_path):
    port = str(free_port())
    run_all(
        [
            ["-m", "tests.hosts", port, str(number), str(tmp_path)]
            for number in range(hosts.PROCESSES)
        ],
        tmp_path,
    )
    found = [dict(np.load(tmp_path / f"{number}.npz")) for number in range(hosts.PROCESSES)]
    expected = hosts.train(jax.devices()[:1])
    assert all(results.keys() == expected.keys() for results in found)
    for name, value in expected.items():
        first, second = (results[name] for results in found)
        if name.startswith("mask"):
            # Each process has the masks of its own examples.
            assert len(first) == len(second) == hosts.EXAMPLES / hosts.PROCESSES
            np.testing.assert_array_equal(np.concatenate([first, second]), value)
        else:
            np.testing.assert_array_equal(first, second)
            np.testing.assert_allclose(first, value, rtol=1e-5, atol=1e-6)
    masks = [name for name in expected if name.startswith("mask")]
    assert len(masks) == 4 * hosts.UPDATES, "mask, mask_p, kernel_mask, bias_mask"


@pytest.mark.exhaustive
def test_the_example_runs_as_two_processes(tmp_path):
    options = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    example = ["examples/data_parallel.py", "--epochs", "1", *options]
    printed, silent = run_all(
        [[*example, "--process-id", str(number)] for number in range(2)], tmp_path
    )
    assert "devices: 4 (cpu), processes: 2, images a device and step: 24" in printed
    difference = re.search(r"largest difference of the losses: (\S+)", printed)
    assert float(difference[1]) < 1e-12
    assert "difference" not in silent
