"""Neurons of linen libraries with the layers of linen: each trains, its masks held.

They run where these libraries are installed, each by `pip install --no-deps`, and what they
import: slax 0.0.1; sparxml 0.1.1, on Python 3.12, which is imported as sparx.
"""

import flax.linen as nn
import jax
import numpy as np
import pytest

import snn_dropout as sd

X_SEQ = jax.random.uniform(jax.random.key(1), (6, 8, 10), maxval=4.0)  # [T, N, I]
RNGS = {"dropout": jax.random.key(0)}


@pytest.fixture(autouse=True)
def _as_they_compute():
    with jax.numpy_rank_promotion("allow"):
        yield


def train(run, params):
    """A few steps of gradient descent on the mean of the outputs."""

    @jax.jit
    def step(params, key):
        def loss(params):
            return ((run(params, {"dropout": key})[0].mean(0) - 0.5) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), value

    losses = []
    for number in range(8):
        params, value = step(params, jax.random.key(number))
        losses.append(float(value))
    assert len(set(losses)) > 1
    assert np.isfinite(losses).all()
    return losses


def test_neurons_of_slax_keep_their_state_in_another_collection():
    slax = pytest.importorskip("slax")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            x = slax.LIF(name="neurons")(nn.Dense(32)(x))
            x = sd.Dropout(0.5, name="drop")(x, deterministic=not train)
            return nn.Dense(3)(x)

    net = Net()
    params = net.init(jax.random.key(2), X_SEQ[0])["params"]

    def run(params, rngs):
        return sd.simulate(net, {"params": params}, X_SEQ, rngs=rngs, mutable=["carry"])

    _, collections = run(params, RNGS)
    assert collections["carry"]["neurons"]["Vmem"].shape == (8, 32)
    assert collections["state"]["drop"]["mask"].shape == (8, 32)
    train(run, params)


def test_neurons_of_sparx_run_over_whole_sequences():
    sparx = pytest.importorskip("sparx")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x_seq, train=True):
            x_seq = sparx.nn.LIF(name="neurons")(nn.Dense(32)(x_seq))
            drop = sd.Dropout(0.5, step_mode="m", name="drop")
            self.sow("intermediates", "dropped", drop(x_seq, deterministic=not train))
            return nn.Dense(3)(drop(x_seq, deterministic=not train))

    net = Net()
    params = net.init(jax.random.key(2), X_SEQ)["params"]

    def run(params, rngs):
        mutable = ["state", "intermediates"]
        return net.apply({"params": params}, X_SEQ, rngs=rngs, mutable=mutable)

    _, collections = run(params, RNGS)
    mask = collections["state"]["drop"]["mask"]
    (dropped,) = collections["intermediates"]["dropped"]
    assert (dropped[:, ~mask] == 0).all()
    assert (dropped[:, mask] != 0).any()
    train(run, params)
