"""Weights from SpikingJelly and back, held against numbers that SpikingJelly computed."""

from pathlib import Path

import jax
import numpy as np
import pytest

import snn_dropout as sd

REFERENCE = Path(__file__).parent / "data" / "spikingjelly-2.0.0.npz"
STATE = {"weight": np.arange(12.0, dtype=np.float32).reshape(3, 4), "bias": np.ones(3)}


def test_converted_weights_infer_as_they_do_in_spikingjelly():
    with np.load(REFERENCE) as arrays:
        case = {
            name.split("/")[1]: value
            for name, value in arrays.items()
            if name.startswith("dropconnect_inference/")
        }
    params = sd.from_spikingjelly({name: case[name] for name in ("weight", "bias")})
    outputs, inputs = case["weight"].shape
    layer = sd.DropConnectLinear(
        inputs, outputs, p=float(case["p"]), activation=None, inference="analytic"
    )
    y = layer.apply({"params": params}, case["x"], deterministic=True)
    np.testing.assert_allclose(y, case["mean"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [("weight", "bias"), ("weight",)])
def test_there_and_back_is_the_identity(names):
    state = {name: STATE[name] for name in names}
    params = sd.from_spikingjelly(state)
    layer = sd.DropConnectLinear(4, 3, use_bias="bias" in names)
    made = layer.init(jax.random.key(0), np.ones((1, 4)), deterministic=True)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, made)
    assert params["kernel"][3, 1] == state["weight"][1, 3]
    back = sd.to_spikingjelly(jax.tree.map(np.asarray, params))
    assert back.keys() == state.keys()
    for name in names:
        np.testing.assert_array_equal(back[name], state[name])
        assert back[name].dtype == state[name].dtype
        assert back[name].flags.writeable


def test_the_arrays_are_new():
    params = sd.from_spikingjelly(STATE)
    params["kernel"][:] = 0
    params["bias"][:] = 0
    assert STATE["weight"].any()
    assert STATE["bias"].all()
    back = sd.to_spikingjelly(jax.tree.map(jax.numpy.asarray, params))
    assert all(leaf.flags.writeable for leaf in back.values())


KERNEL = {"kernel": np.ones((4, 3)), "bias": np.ones(3)}


@pytest.mark.short
@pytest.mark.parametrize(
    ("convert", "given", "error", "message"),
    [
        (
            sd.from_spikingjelly,
            np.ones((3, 4)),
            TypeError,
            r"`state_dict` must be a map.*pass `layer\.state_dict\(\)` of",
        ),
        (sd.to_spikingjelly, None, TypeError, r"`params` must be a mapping.*\['params'\]"),
        (sd.from_spikingjelly, {}, ValueError, r"must hold 'weight'.*holds \[\]"),
        (sd.from_spikingjelly, KERNEL, ValueError, r"holds \['bias', 'kernel'\]"),
        (sd.to_spikingjelly, STATE, ValueError, r"must hold 'kernel'.*'weight'"),
        (sd.from_spikingjelly, {"fc.weight": 1}, ValueError, "of a single layer"),
        (sd.from_spikingjelly, {"weight": np.ones(3)}, ValueError, r"\[O, I\].*\(3,\)"),
        (
            sd.from_spikingjelly,
            {"weight": np.ones((4, 3)), "bias": np.ones(3)},
            ValueError,
            r"O = 4 outputs.*\(3,\); is 'weight' transposed",
        ),
        (
            sd.to_spikingjelly,
            {"kernel": np.ones((3, 4)), "bias": np.ones(3)},
            ValueError,
            r"O = 4 outputs.*\(3,\); is 'kernel' transposed",
        ),
    ],
)
def test_what_does_not_fit_is_named(convert, given, error, message):
    with pytest.raises(error, match=message):
        convert(given)
