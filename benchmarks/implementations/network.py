"""A spiking network 784-512-512-10 with two dropouts: training steps, compiling, calls.

The neuron is SpikingJelly's ``LIFNode`` at its defaults with the ``ATan`` surrogate.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import snn_dropout as sd
from benchmarks import checks
from benchmarks.implementations import Task, timed
from benchmarks.implementations.jax_tasks import (
    jitted_task,
    new_key,
    programs_compiled,
    with_new_key,
)

CLASSES = 10
OPTIMIZER = optax.sgd(0.1)

# Takes parameters, inputs and a key; returns the spikes of all steps, and the masks.
Forward = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, list[jax.Array]]]


@jax.custom_jvp
def spike(v: jax.Array) -> jax.Array:
    """A step with the derivative of ``atan(pi v) / pi``."""
    return (v >= 0).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals: Any, tangents: Any) -> Any:
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + (math.pi * v) ** 2)


def dense(features: int) -> nn.Dense:
    """Makes a linear layer whose outputs reach the threshold in a few steps."""
    init = nn.initializers.variance_scaling(9.0, "fan_in", "normal")
    return nn.Dense(features, kernel_init=init)


class LIF(nn.Module):
    """Leaky integrate and fire, reset to 0."""

    @nn.compact
    def __call__(self, x):
        """Runs one step."""
        v = self.variable("state", "v", jnp.zeros_like, x, jnp.float32)
        potential = v.value + (x - v.value) / 2
        fired = spike(potential - 1)
        if not self.is_initializing():
            v.value = potential * (1 - fired)
        return fired


class Net(nn.Module):
    """One step of the network."""

    hidden: int
    p: float

    @nn.compact
    def __call__(self, x):
        """Runs one step, in training."""
        for _ in range(2):
            x = LIF()(dense(self.hidden)(x))
            x = sd.Dropout(self.p, deterministic=False)(x)
        return LIF()(dense(CLASSES)(x))


class LayerByLayer(nn.Module):
    """The same network, all steps of a layer at once."""

    hidden: int
    p: float

    @nn.compact
    def __call__(self, x_seq):
        """Runs all steps, in training."""
        for _ in range(2):
            x_seq = sd.MultiStep(LIF())(dense(self.hidden)(x_seq))
            x_seq = sd.Dropout(self.p, "m", deterministic=False)(x_seq)
        return sd.MultiStep(LIF())(dense(CLASSES)(x_seq))


def by_simulate(net: Net) -> Forward:
    """Runs single steps by ``simulate``."""

    def forward(params, x_seq, key):
        y_seq, updated = sd.simulate(net, {"params": params}, x_seq, rngs={"dropout": key})
        return y_seq, _masks(updated)

    return forward


def by_module(model: nn.Module) -> Forward:
    """Runs a module that takes all steps."""

    def forward(params, x_seq, key):
        variables, rngs = {"params": params}, {"dropout": key}
        y_seq, updated = model.apply(variables, x_seq, rngs=rngs, mutable=["state"])
        return y_seq, _masks(updated)

    return forward


def by_hand(net: Net) -> Forward:
    """Runs single steps by a hand-written ``lax.scan``, from a state made by hand."""

    def forward(params, x_seq, key):
        shapes = {"LIF_0": net.hidden, "LIF_1": net.hidden, "LIF_2": CLASSES}
        examples = x_seq.shape[1]
        state = {name: {"v": jnp.zeros((examples, n))} for name, n in shapes.items()}
        masks = jax.random.bernoulli(key, 1 - net.p, (2, examples, net.hidden))
        state |= {f"Dropout_{i}": {"mask": mask} for i, mask in enumerate(masks)}

        def step(state, x):
            y, updated = net.apply({"params": params, "state": state}, x, mutable=["state"])
            return updated["state"], y

        return jax.lax.scan(step, state, x_seq)[1], list(masks)

    return forward


OVER_TIME = {
    "simulate": by_simulate,
    "multistep": lambda net: by_module(sd.MultiStep(net)),
    "layer-by-layer": lambda net: by_module(LayerByLayer(net.hidden, net.p)),
    "hand": by_hand,
}


def _masks(updated: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(updated) if leaf.dtype == bool]


def arguments_of(
    steps: int, examples: int, inputs: int, hidden: int, p: float
) -> tuple[Net, tuple[Any, ...]]:
    """Returns the network, and parameters, optimizer's state, inputs, labels."""
    net = Net(hidden, p)
    x_seq = jax.random.bernoulli(jax.random.key(1), 0.3, (steps, examples, inputs))
    x_seq = x_seq.astype(jnp.float32)
    params = net.init(jax.random.key(0), x_seq[0])["params"]
    return net, (params, OPTIMIZER.init(params), x_seq, jnp.arange(examples) % CLASSES)


def training_step(forward: Forward) -> Callable[..., Any]:
    """Cross entropy of spike rates, and one step of gradient descent."""

    def step(params, optimizer_state, x_seq, labels, key):
        def loss(params):
            y_seq, masks = forward(params, x_seq, key)
            losses = optax.softmax_cross_entropy_with_integer_labels(y_seq.mean(0), labels)
            return losses.mean(), masks

        (value, masks), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer_state = OPTIMIZER.update(grads, optimizer_state)
        return value, masks, optax.apply_updates(params, updates), optimizer_state

    return step


def check(step: Any, arguments: tuple[Any, ...], p: float) -> None:
    """Raises unless a training step learns under masks that are right."""
    loss, masks, params, _ = step(*arguments, new_key(3))
    moved = jax.tree.map(lambda new, old: bool((new != old).any()), params, arguments[0])
    checks.check_training(float(loss), masks, p, jax.tree.leaves(moved))


def train(over_time: str, **settings: Any) -> Task:
    """Makes one training step."""
    net, arguments = arguments_of(**settings)
    step = training_step(OVER_TIME[over_time](net))
    return jitted_task(step, arguments, lambda jitted: check(jitted, arguments, net.p))


def train_without_dropout(**settings: Any) -> Task:
    """Makes one training step of the network without dropout."""
    return train("simulate", **{**settings, "p": 0.0})


def compiling(over_time: str, **settings: Any) -> Task:
    """Compiles the training step."""
    net, arguments = arguments_of(**settings)
    step = training_step(OVER_TIME[over_time](net))

    def prepare(number: int) -> tuple[Any, ...]:
        key = new_key(number)
        jax.clear_caches()
        return (key,)

    def run(key: jax.Array) -> Any:
        return jax.jit(step).lower(*arguments, key).compile()

    return Task(timed(run, prepare), lambda: check(jax.jit(step), arguments, net.p))


def calling(how: str, **settings: Any) -> Task:
    """Calls ``simulate`` again and again, 'eager' or 'jitted'."""
    net, (params, _, x_seq, _) = arguments_of(**settings)
    forward = by_simulate(net) if how == "eager" else jax.jit(by_simulate(net))
    _, masks = forward(params, x_seq, new_key(0))
    key = new_key(1)
    known = {"programs": programs_compiled(lambda: forward(params, x_seq, key))}
    call = with_new_key(forward, params, x_seq)
    return Task(call, lambda: checks.check_training(0.0, masks, net.p, []), known)
