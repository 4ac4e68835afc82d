"""What lives longer than a call: checkpoints, many samples, and state that is handed on."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests.depth import cases
from tests.nnx.catalogue import KEY, LIF, Net, holds_nothing, linen_net, masks_of, net

X_SEQ = jax.random.normal(jax.random.key(1), (6, 4, 6))


def stream(rngs):
    """Held masks of both kinds, neurons, and a stream that moves on."""
    return nnx.Sequential(
        sdn.Dropout(0.3),
        sdn.DropConnectLinear(6, 6, invariant=True, activation=LIF(), rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
    )


def test_a_checkpoint_in_the_middle_of_a_sequence_resumes_bit_for_bit(tmp_path):
    model = stream(nnx.Rngs(0))
    sdn.init_masks(model, 4 * X_SEQ[0], key=KEY)
    first = sdn.simulate(model, 4 * X_SEQ[:3])

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(model))
    rest = sdn.simulate(model, 4 * X_SEQ[3:])

    resumed = stream(nnx.Rngs(7))
    sdn.init_masks(resumed, 4 * X_SEQ[0], key=jax.random.key(9))  # as a template
    sdn.simulate(resumed, 4 * X_SEQ[:1])
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(resumed, checkpointer.restore(tmp_path / "state", nnx.state(resumed)))
    np.testing.assert_array_equal(sdn.simulate(resumed, 4 * X_SEQ[3:]), rest)
    assert first.shape == rest.shape
    assert (rest != 0).any()

    without = stream(nnx.Rngs(7))  # no masks in the template: that is an error
    with ocp.StandardCheckpointer() as checkpointer, pytest.raises(ValueError):  # noqa: PT011
        checkpointer.restore(tmp_path / "state", nnx.state(without))


def test_monte_carlo_is_that_of_linen():
    linen, params = linen_net(X_SEQ[0])
    rngs = {"dropout": KEY}
    expected = jax.jit(
        lambda x: sd.monte_carlo(linen, {"params": params}, x, rngs=rngs, samples=3)
    )(X_SEQ)
    model = net(params)
    before = nnx.state(model)
    found = nnx.jit(lambda model, x: sdn.monte_carlo(model, x, key=KEY, samples=3))(
        model, X_SEQ
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert (found.variance > 0).any()
    for one, other in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_array_equal(one, other)


class Told(nnx.Module):
    """Its layers are told what to do by the call; another dropout and averages beside."""

    def __init__(self, step_mode="s", *, rngs):
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = sdn.Dropout(0.5, step_mode=step_mode)
        self.fresh = sdn.DropConnectLinear(6, 3, step_mode=step_mode, rngs=rngs)
        self.theirs = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train=False):
        flag = {"deterministic": not train}
        x = self.drop(self.norm(x), **flag)
        return self.theirs(self.fresh(x, **flag))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_monte_carlo_drops_whatever_the_call_says_and_nothing_else(step_mode):
    model = Told(step_mode, rngs=nnx.Rngs(0))
    model.train()
    averages = model.norm.mean.get_value()

    @nnx.jit
    def variance(model):
        run = sdn.monte_carlo(model, X_SEQ, key=KEY, samples=2, step_mode=step_mode)
        return run.variance

    model.fresh.p = 0.0
    assert (variance(model) > 0).any(), "masks are held, and others in each sample"
    np.testing.assert_array_equal(model.norm.mean.get_value(), averages)
    assert not model.drop.deterministic
    assert holds_nothing(model)
    model.drop.p, model.fresh.p = 0.0, 0.5
    assert (variance(model) > 0).any(), "lost connections are new in each sample"
    model.fresh.p = 0.0
    np.testing.assert_allclose(variance(model), 0, atol=1e-12)


# Layers whose state is handed on.


class Sequential(nnx.Module):
    """As that of spyx: state by state, and no call with a state of None."""

    def __init__(self, *layers):
        self.layers = nnx.List(layers)

    def initial_state(self, batch_size):
        return [
            layer.initial_state(batch_size) if hasattr(layer, "initial_state") else None
            for layer in self.layers
        ]

    def __call__(self, x, state):
        after = []
        for layer, own in zip(self.layers, state, strict=True):
            x, own = (layer(x), None) if own is None else layer(x, own)
            after.append(own)
        return x, after


def run(model, x_seq):
    """As that of spyx: a raw scan that closes over the model."""
    state = model.initial_state(x_seq.shape[1])

    def step(state, x):
        y, state = model(x, state)
        return state, y

    return jax.lax.scan(step, state, x_seq)[1]


def carried(p=0.5):
    rngs = nnx.Rngs(0)
    return Sequential(nnx.Linear(6, 32, rngs=rngs), sdn.Carried(sdn.Dropout(p, rngs=rngs)))


@cases("run", [run, nnx.jit(run)], ids=["eager", "jit"], short=lambda r: r is run)
def test_a_carried_layer_holds_its_mask_in_a_raw_scan_and_has_another_in_the_next(run):
    model, ones = carried(), jnp.ones((5, 4, 6))
    first, second = run(model, ones), run(model, ones)
    for y_seq in (first, second):
        assert (y_seq == y_seq[:1]).all()
        assert 0.3 < (y_seq == 0).mean() < 0.7
    assert (first != second).any()
    model.eval()
    np.testing.assert_allclose(run(model, ones)[0], model.layers[0](ones[0]), rtol=1e-6)
    assert model.layers[1].initial_state(4) == ()


def test_a_carried_layer_trains():
    model = carried()

    @nnx.jit
    def gradient(model):
        return nnx.grad(lambda model: (run(model, X_SEQ) ** 2).mean())(model)

    first, second = gradient(model), gradient(model)
    kernels = [grads.layers[0].kernel.get_value() for grads in (first, second)]
    assert (kernels[0] != kernels[1]).any()
    assert jnp.isfinite(kernels[0]).all()


def test_under_plain_jit_a_stream_stands_still():
    """Why a key is an argument elsewhere: written down as it is."""
    graphdef, state = nnx.split(carried())
    plain = jax.jit(lambda state, x: run(nnx.merge(graphdef, state, copy=True), x))
    ones = jnp.ones((5, 4, 6))
    np.testing.assert_array_equal(plain(state, ones), plain(state, ones))


def test_a_carried_layer_takes_no_other_mode_or_missing_stream():
    with pytest.raises(ValueError, match="made without `rngs`"):
        sdn.Carried(sdn.Dropout(0.5)).initial_state(2)


def test_masks_of_equal_key_and_path_are_equal_in_copies():
    model = Net(rngs=nnx.Rngs(0))
    sdn.init_masks(model, X_SEQ[0], key=KEY)
    clone = nnx.clone(model)
    for path, mask in masks_of(clone).items():
        np.testing.assert_array_equal(mask, masks_of(model)[path])
