"""The second column of the table of layers: for each row of linen its twin for NNX."""

import dataclasses
import inspect

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests import neurons
from tests.depth import marked
from tests.neurons import spike

KEY = jax.random.key(5)
RNGS = {"dropout": KEY}


class Membrane(nnx.Variable):
    pass


class LIF(nnx.Module):
    """That of `tests.neurons`, whose membrane takes its shape from the first input."""

    def __init__(self, tau=2.0):
        self.tau = tau
        self.v = Membrane(jnp.zeros(()))

    def __call__(self, x):
        v = self.v.get_value()
        potential = v + (x - v) / self.tau
        fired = spike(potential - 1)
        self.v.set_value(potential * (1 - fired))
        return fired


class Net(nnx.Module):
    """That of `tests.neurons`, with the names that linen gives."""

    def __init__(self, inputs=6, hidden=16, out=4, p=0.5, *, rngs):
        self.Dense_0 = nnx.Linear(inputs, hidden, rngs=rngs)
        self.LIF_0 = LIF()
        self.Dropout_0 = sdn.Dropout(p)
        self.Dense_1 = nnx.Linear(hidden, out, rngs=rngs)
        self.LIF_1 = LIF()
        self.last = sdn.Dropout(p)

    def __call__(self, x, gain=4.0):
        x = self.Dropout_0(self.LIF_0(gain * self.Dense_0(x)))
        return self.last(self.LIF_1(gain * self.Dense_1(x)))


def fields_of(layer):
    """The fields of a layer of linen that its twin takes, and whether those are all."""
    kind = getattr(sdn, type(layer).__name__, None)
    taken = {
        name
        for base in (kind.__mro__ if kind else ())
        if "__init__" in vars(base)
        for name in inspect.signature(base.__init__).parameters
    }
    values = {
        field.name: getattr(layer, field.name)
        for field in dataclasses.fields(layer)
        if field.name not in ("parent", "name", "state_collection", "rng_collection")
    }
    default = {
        field.name: field.default
        for field in dataclasses.fields(layer)
        if field.name not in taken
    }
    others = [name for name in values.keys() & default if values[name] != default[name]]
    complete = kind is not None and not others
    return {name: values[name] for name in values.keys() & taken}, complete


def has_twin(row):
    return fields_of(row.layer())[1]


def twin(layer, params=None, **fields):
    """The same layer for NNX, with the same parameters."""
    own, _ = fields_of(layer)
    own["deterministic"] = bool(own["deterministic"])
    own |= fields
    if isinstance(own.get("activation"), neurons.LIF):
        own["activation"] = LIF()
    kind = getattr(sdn, type(layer).__name__)
    places = [own.pop(name) for name in ("in_features", "out_features") if name in own]
    if "DropConnect" not in type(layer).__name__:
        places = [own.pop("p")]
    made = kind(*places, **own, rngs=nnx.Rngs(0))
    take(made, params or {})
    return made


def take(model, params):
    """Gives a model the parameters of linen of the same names."""
    for path, value in flax.traverse_util.flatten_dict(params).items():
        node = model
        for name in path:
            node = getattr(node, name)
        node.set_value(value)


def linen_net(x):
    """The network of linen, and its parameters."""
    model = neurons.Net()
    return model, model.init(jax.random.key(2), x)["params"]


def net(params=None):
    model = Net(rngs=nnx.Rngs(0))
    if params is not None:
        take(model, params)
    return model


def masks_of(model):
    """All that a model holds, by path."""
    state = nnx.to_flat_state(nnx.state(model, sdn.HeldMask))
    return {path: np.asarray(variable.get_value()) for path, variable in state}


def holds_nothing(model):
    return not masks_of(model)


MODES = {"graph": (True, True), "no updates": (True, False), "tree": (False, False)}
SWITCHES = ("nnx_graph_mode", "nnx_graph_updates")


# Elsewhere tests run in the mode that Flax starts in.
@pytest.fixture(params=marked(MODES.values(), short=[MODES["tree"]]), ids=MODES)
def mode(request):
    """Each of the modes of NNX, where the Flax at hand has the switches."""
    before = {name: getattr(flax.config, name, None) for name in SWITCHES}
    if None in before.values():
        pytest.skip("this Flax has one mode")
    for name, value in zip(SWITCHES, request.param, strict=True):
        flax.config.update(name, value)
    yield request.param
    for name, value in before.items():
        flax.config.update(name, value)


class Linear(nn.Module):
    """A stack by attribute, list and dict, whose paths linen writes in its own way."""

    def setup(self):
        drop = sd.Dropout(0.5, deterministic=False)
        self.blocks = [[drop.clone(), drop.clone()], [drop.clone()]]
        self.named = {"a": drop.clone(), "b": drop.clone()}
        self.sequential = nn.Sequential([nn.Dense(6), drop.clone()])

    def __call__(self, x):
        for block in self.blocks:
            for layer in block:
                x = layer(x)
        return self.sequential(self.named["b"](self.named["a"](x)))


class Stack(nnx.Module):
    """The same for NNX."""

    def __init__(self, *, rngs):
        drops = [sdn.Dropout(0.5) for _ in range(6)]
        self.blocks = nnx.List([nnx.List(drops[:2]), nnx.List(drops[2:3])])
        self.named = nnx.Dict({"a": drops[3], "b": drops[4]})
        self.sequential = nnx.Sequential(nnx.Linear(6, 6, rngs=rngs), drops[5])

    def __call__(self, x):
        for block in self.blocks:
            for layer in block:
                x = layer(x)
        return self.sequential(self.named["b"](self.named["a"](x)))
