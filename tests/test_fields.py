"""What is not given: the default of every argument, and what each field alone changes."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout import functional
from tests.depth import cases
from tests.neurons import LIF

RNGS = {"dropout": jax.random.key(5)}

LAYER = {
    "step_mode": "s",
    "deterministic": None,
    "rng_collection": "dropout",
    "state_collection": "state",
}
DROPOUT = {**LAYER, "scale": True}
CHANNELS = {**DROPOUT, "p": 0.2, "channel_axis": -1}
REQUIRED = inspect.Parameter.empty
DEFAULTS = {
    sd.Dropout: {**DROPOUT, "p": 0.5, "broadcast_dims": ()},
    sd.DropPath: {**DROPOUT, "p": 0.2},
    sd.Dropout1d: CHANNELS,
    sd.Dropout2d: CHANNELS,
    sd.Dropout3d: CHANNELS,
    sd.DropConnectLinear: {
        **LAYER,
        "in_features": REQUIRED,
        "out_features": REQUIRED,
        "use_bias": True,
        "p": 0.5,
        "samples_num": 1024,
        "invariant": False,
        "bias_init": None,
        "dtype": None,
        "param_dtype": jnp.float32,
        "inference": "sample",
    },
    sd.MultiStep: {"module": REQUIRED, "state_collections": ("state",)},
    sd.simulate: {"rngs": None, "mutable": ()},
    sd.init_state: {"rngs": REQUIRED, "state_collection": "state"},
    sd.monte_carlo: {"rngs": REQUIRED, "samples": REQUIRED, "at_once": 8},
    functional.Threshold: {"theta": 0.0},
    functional.draw_mask: {"p": REQUIRED, "out_sharding": None},
    functional.apply_mask: {"p": REQUIRED, "scale": True},
    functional.draw_bits: {"p": REQUIRED, "out_sharding": None},
    functional.moments: {"bias": REQUIRED, "p": REQUIRED},
    functional.sampled_activation: {"samples": REQUIRED},
}


@pytest.mark.short
@pytest.mark.parametrize("item", DEFAULTS, ids=lambda item: item.__name__)
def test_defaults_are_those_of_the_documentation(item):
    parameters = inspect.signature(item).parameters
    found = {name: parameters[name].default for name in DEFAULTS[item]}
    assert found == DEFAULTS[item]


def test_the_first_arguments_may_be_given_by_position():
    """In the order of SpikingJelly's layers and of the functions' documentation."""
    fields = list(inspect.signature(sd.DropConnectLinear).parameters)
    assert fields[:7] == [
        "in_features",
        "out_features",
        "use_bias",
        "p",
        "samples_num",
        "invariant",
        "activation",
    ]
    for layer in (sd.Dropout, sd.Dropout1d, sd.Dropout2d, sd.Dropout3d, sd.DropPath):
        assert list(inspect.signature(layer).parameters)[:2] == ["p", "step_mode"]
    ours = ["p", "step_mode", "deterministic", "rng_collection", "state_collection"]
    for layer, own in ((sd.Dropout, "broadcast_dims"), (sd.Dropout2d, "channel_axis")):
        assert list(inspect.signature(layer).parameters)[:6] == [*ours, own]
    assert sd.DropConnectLinear(1, 1).activation is nn.relu


@cases("activation", [None, LIF()], short=[None])
@pytest.mark.parametrize(
    ("dtype", "param_dtype", "x_dtype", "expected"),
    [
        (jnp.bfloat16, jnp.float32, jnp.float32, jnp.bfloat16),
        (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.float32),
        (None, jnp.float32, jnp.bfloat16, jnp.float32),
        (None, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (None, jnp.bfloat16, jnp.int8, jnp.bfloat16),
    ],
)
def test_dtype_is_that_of_the_computation(
    activation, dtype, param_dtype, x_dtype, expected
):
    """That asked for, else that of input and parameters together, in every kind of call."""
    fields = {"dtype": dtype, "param_dtype": param_dtype, "samples_num": 2}
    layer = sd.DropConnectLinear(3, 4, activation=activation, **fields)
    x = jnp.ones((2, 3), x_dtype)

    def run(p, deterministic):
        def made(x):
            one = layer.clone(p=p)
            variables = one.init(RNGS["dropout"], x, deterministic)
            kept = {"rngs": RNGS, "mutable": ["state"]}
            return variables, one.apply(variables, x, deterministic, **kept)[0]

        return jax.eval_shape(made, x)

    for p, deterministic in ((0.5, False), (0.5, True), (0.0, False)):
        variables, y = run(p, deterministic)
        assert y.dtype == expected
        assert {leaf.dtype for leaf in variables["params"].values()} == {
            jnp.dtype(param_dtype)
        }


def test_samples_of_neurons_lie_in_the_collection_that_is_named():
    layer = sd.DropConnectLinear(
        3,
        4,
        activation=LIF("cells"),
        samples_num=5,
        deterministic=True,
        state_collection="cells",
    )
    x = jnp.ones((2, 3))
    variables = layer.init(jax.random.key(0), x)
    assert variables.keys() == {"params", "cells"}
    _, updated = layer.apply(variables, x, rngs=RNGS, mutable=["cells"])
    shapes = jax.tree.map(jnp.shape, updated)
    assert shapes["cells"]["samples"] == {"0": {"cells": {"v": (2, 5, 4)}}}


class Noise(nn.Module):
    """A neuron whose output is nothing but noise of its own."""

    @nn.compact
    def __call__(self, z):
        return jax.random.normal(self.make_rng("dropout"), z.shape)


@cases("way", ["m", "simulate"], short=["m"])
def test_no_two_samples_or_steps_of_a_random_neuron_have_the_same_noise(way):
    """Averages of S draws: their variance is 1 / S, and steps are independent."""
    steps, samples, outputs = 4, 8, 500
    layer = sd.DropConnectLinear(
        1, outputs, activation=Noise(), samples_num=samples, deterministic=True
    )
    variables = {"params": {"kernel": jnp.ones((1, outputs)), "bias": jnp.ones(outputs)}}
    x_seq = jnp.ones((steps, 2, 1))

    @jax.jit
    def run(x_seq):
        if way == "m":
            return layer.clone(step_mode="m").apply(variables, x_seq, rngs=RNGS)
        return sd.simulate(layer, variables, x_seq, rngs=RNGS)[0]

    z = np.asarray(run(x_seq)).reshape(steps, -1) * np.sqrt(samples)
    found = z @ z.T / z.shape[1]
    # Six deviations of a correlation; a shared draw of 8 gives an eighth or more.
    assert np.abs(found - np.eye(steps)).max() < 6 * np.sqrt(2 / z.shape[1])
