"""The spiking network of ``network`` for Flax NNX, of the same names and parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import snn_dropout.nnx as sdn
from benchmarks.implementations import Task
from benchmarks.implementations.jax_tasks import jitted_task
from benchmarks.implementations.network import (
    CLASSES,
    Forward,
    arguments_of,
    check,
    spike,
    training_step,
)


class Membrane(nnx.Variable[jax.Array]):
    """The membrane of neurons."""


class LIF(nnx.Module):
    """Leaky integrate and fire, reset to 0; at rest until its first input."""

    def __init__(self) -> None:
        self.v = Membrane(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs one step."""
        v = self.v.get_value()
        potential = v + (x - v) / 2
        fired = spike(potential - 1)
        self.v.set_value(potential * (1 - fired))
        return fired


class Net(nnx.Module):
    """One step of the network, under the names that linen gives."""

    def __init__(self, inputs: int, hidden: int, p: float, rngs: nnx.Rngs) -> None:
        self.Dense_0 = nnx.Linear(inputs, hidden, rngs=rngs)
        self.Dense_1 = nnx.Linear(hidden, hidden, rngs=rngs)
        self.Dense_2 = nnx.Linear(hidden, CLASSES, rngs=rngs)
        self.LIF_0, self.LIF_1, self.LIF_2 = LIF(), LIF(), LIF()
        self.Dropout_0, self.Dropout_1 = sdn.Dropout(p), sdn.Dropout(p)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs one step."""
        x = self.Dropout_0(self.LIF_0(self.Dense_0(x)))
        x = self.Dropout_1(self.LIF_1(self.Dense_1(x)))
        return self.LIF_2(self.Dense_2(x))


def by_simulate(net: Net) -> Forward:
    """Runs single steps by ``simulate``, from rest, with the parameters of linen."""
    graphdef, trained, rest = nnx.split(net, nnx.Param, ...)

    def forward(params, x_seq, key):
        values = jax.tree.map(lambda value: value, trained)
        nnx.replace_by_pure_dict(values, params)
        model = nnx.merge(graphdef, values, rest, copy=True)
        # Around `simulate`, which alone leaves no mask to be checked.
        with sdn.simulation(model, x_seq[0], key=key):
            y_seq = sdn.simulate(model, x_seq)
            layers = (model.Dropout_0, model.Dropout_1)
            return y_seq, [layer.mask.get_value() for layer in layers]

    return forward


def train(inputs: int, hidden: int, p: float, **settings: Any) -> Task:
    """Makes one training step."""
    _, arguments = arguments_of(inputs=inputs, hidden=hidden, p=p, **settings)
    net = Net(inputs, hidden, p, nnx.Rngs(0))
    step = training_step(by_simulate(net))
    return jitted_task(step, arguments, lambda jitted: check(jitted, arguments, p))
