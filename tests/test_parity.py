"""SpikingJelly 2.0.0 on PyTorch, by injecting the masks that it drew."""

from pathlib import Path

import jax
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases

REFERENCE = Path(__file__).parent / "data" / "spikingjelly-2.0.0.npz"


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


def close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-6)


@pytest.mark.optimised
@pytest.mark.parametrize("case", ["dropout", "dropout2d"])
@cases("way", ["m", "simulate"], short=["simulate"])
def test_dropout_equals_spikingjelly(reference, case, way):
    array = {
        name.split("/")[1]: value
        for name, value in reference.items()
        if name.startswith(f"{case}/")
    }
    p, mask = float(array["p"]), array["mask"] != 0
    if case == "dropout2d":
        assert (mask == mask[:, :, :1, :1]).all(), "torch drops whole channels"
        mask = mask[:, :, :1, :1]

    def run(x_seq, deterministic):
        variables = {"state": {"mask": mask}}
        fields = {"channel_axis": 1} if case == "dropout2d" else {}
        layer = {"dropout": sd.Dropout, "dropout2d": sd.Dropout2d}[case]
        if way == "m":
            return layer(p, "m", **fields).apply(variables, x_seq, deterministic)
        return sd.simulate(layer(p, **fields), variables, x_seq, deterministic)[0]

    x_seq = array["x_seq"]
    y_seq, pullback = jax.vjp(lambda x: run(x, False), x_seq)
    close(y_seq, array["y_seq"])
    close(pullback(array["grad_y_seq"])[0], array["grad_x_seq"])
    # A second chunk without a reset meets the same mask.
    second = array["second_chunk_y_seq"]
    assert ((second != 0) <= np.broadcast_to(mask, second.shape)).all()
    close(run(second * np.float32(1 - p), False), second)
    close(run(x_seq, True), array["eval_y_seq"])
