"""What is left of another simulation, and meets this one: it goes, or raises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import snn_dropout.nnx as sdn
from tests.depth import cases

KEY, OTHER = jax.random.key(0), jax.random.key(1)
X = jnp.ones((4, 60))


class Leaky(nnx.Module):
    def __init__(self, units):
        self.v = nnx.Variable(jnp.zeros((4, units)))
        self.mean = nnx.Variable(jnp.zeros(units))

    def __call__(self, x):
        self.v.set_value(0.5 * (self.v[...] + x))
        self.mean.set_value(0.9 * self.mean[...] + 0.1 * x.mean(0))
        return self.v[...]


def model(units=6):
    return nnx.Sequential(Leaky(units), sdn.Dropout(0.5))


@cases("train", [True, False], short=[True])
def test_one_example_does_not_meet_the_neurons_of_a_batch(train):
    net = model()
    if not train:
        net.eval()
    with jax.numpy_rank_promotion("allow"):
        sdn.simulate(net, jnp.ones((3, 4, 6)), key=KEY)
        with pytest.raises(ValueError, match=r"0/v is of a batch of 4.*one example"):
            sdn.simulate(net, jnp.ones((3, 1, 6)), key=KEY)
        net.layers[0].v.set_value(jnp.zeros((1, 6)))  # as it says
        assert sdn.simulate(net, jnp.ones((3, 1, 6)), key=KEY).shape == (3, 1, 6)


def test_one_example_does_not_meet_a_batch_beside_averages_of_as_many_features():
    net = model(units=4)
    with jax.numpy_rank_promotion("allow"):
        sdn.simulate(net, jnp.ones((3, 4, 4)), key=KEY)
        with pytest.raises(ValueError, match=r"0/v is of a batch of 4.*one example"):
            sdn.simulate(net, jnp.ones((3, 1, 4)), key=KEY)


def test_a_membrane_that_starts_as_a_number_starts_at_it():
    class Resting(nnx.Module):
        def __init__(self):
            self.v = nnx.Variable(jnp.float32(-65.0))

        def __call__(self, x):
            self.v.set_value(self.v.get_value() + x)
            return self.v.get_value()

    y_seq = sdn.simulate(Resting(), jnp.ones((3, 4, 6)))
    np.testing.assert_array_equal(y_seq[:, 0, 0], [-64.0, -63.0, -62.0])


def test_features_of_one_example_without_a_batch_are_no_batch():
    class Unbatched(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(1, 4, rngs=nnx.Rngs(0))
            self.v = nnx.Variable(jnp.zeros(4))

        def __call__(self, x):
            self.v.set_value(0.5 * self.v[...] + self.linear(x))
            return self.v[...]

    with jax.numpy_rank_promotion("allow"):
        assert sdn.simulate(Unbatched(), jnp.ones((3, 1))).shape == (3, 4)


def test_masks_of_single_numbers_restart_too():
    layer = sdn.Dropout(0.5)
    sdn.init_masks(layer, jnp.ones(64), key=KEY)
    before, done = layer.mask[...], jnp.arange(64) < 32
    sdn.reset_rows(done, layer, key=OTHER)
    fresh = sdn.Dropout(0.5)
    sdn.init_masks(fresh, jnp.ones(64), key=OTHER)
    np.testing.assert_array_equal(layer.mask[...], jnp.where(done, fresh.mask[...], before))


@pytest.mark.parametrize(
    "leave_out", [lambda layer: layer.eval(), lambda layer: setattr(layer, "p", 0.0)]
)
def test_what_new_masks_do_not_reach_loses_its_own(leave_out):
    layer = sdn.Dropout(0.5)
    sdn.init_masks(layer, X, key=KEY)
    leave_out(layer)
    sdn.init_masks(layer, X, key=OTHER)
    assert layer.mask is None
    layer.train()
    layer.p = 0.5
    with pytest.raises(RuntimeError, match="must have its mask before the first step"):
        layer(X)


def test_a_simulation_with_a_key_finds_no_mask_also_where_it_would_draw_none():
    layer = sdn.Dropout(0.5)
    sdn.init_masks(layer, X, key=KEY)
    layer.eval()
    opened = sdn.simulation(layer, X, key=OTHER)
    with (
        pytest.raises(ValueError, match=r"the model holds one already, at Dropout"),
        opened,
    ):
        pass
    with sdn.simulation(layer, X):  # without a key: the stream goes on
        assert layer.mask is not None


def test_a_mask_without_a_batch_axis_has_no_rows():
    layer = sdn.Dropout(0.5)
    sdn.init_masks(layer, jnp.ones(()), key=KEY)
    with pytest.raises(ValueError, match=r"with a batch axis.*Dropout.*`x\[None\]`"):
        sdn.reset_rows(jnp.ones(1, bool), layer, key=OTHER)
    sdn.init_masks(layer, jnp.ones(())[None], key=KEY)  # as it says
    sdn.reset_rows(jnp.ones(1, bool), layer, key=OTHER)
    sdn.init_masks(layer, jnp.ones((0, 3)), key=KEY)
    sdn.reset_rows(jnp.ones(0, bool), layer, key=OTHER)


def test_two_layers_of_one_name_raise():
    class Two(nnx.Module):
        def __init__(self):
            self.drop = nnx.List([sdn.Dropout(0.5)])
            self.drop_0 = sdn.Dropout(0.5)

        def __call__(self, x):
            return self.drop_0(self.drop[0](x))

    with pytest.raises(ValueError, match=r"name of its own, but two are drop_0: .*rename"):
        sdn.simulate(Two(), X[None], key=KEY)


def test_a_mask_for_all_examples_is_named():
    class Both(nnx.Module):
        def __init__(self):
            self.shared = sdn.Dropout(0.5, broadcast_dims=(0,))
            self.own = sdn.Dropout(0.5)

        def __call__(self, x):
            return self.own(self.shared(x))

    net, done = Both(), jnp.arange(4) == 1
    sdn.init_masks(net, X, key=KEY)
    with pytest.raises(ValueError, match=r"shared is one row.*reset_rows\(done, model"):
        sdn.reset_rows(done, net, key=OTHER)
    before = net.own.mask[...]
    sdn.reset_rows(done, net.own, key=OTHER)  # as it says
    np.testing.assert_array_equal((net.own.mask[...] == before).all(1), ~done)


def test_a_carried_layer_follows_training_and_inference():
    layer = sdn.Carried(sdn.Dropout(0.5, rngs=nnx.Rngs(0)))
    state = layer.initial_state(4)
    assert (layer(X, state)[0] == 0).any()
    layer.eval()
    np.testing.assert_array_equal(layer(X, state)[0], X)
    nothing = layer.initial_state(4)
    layer.train()
    with pytest.raises(ValueError, match=r"got \(\).*`model.train\(\)` before"):
        layer(X, nothing)


def test_a_carried_layer_takes_single_steps_of_its_rank():
    with pytest.raises(ValueError, match=r"must be in mode 's'.*take the batch for time"):
        sdn.Carried(sdn.Dropout(0.5, step_mode="m", rngs=nnx.Rngs(0)))
    channels = sdn.Carried(sdn.Dropout2d(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"`x` of Dropout2d must be \[N, H, W, C\]"):
        channels(X, channels.initial_state(4))


@pytest.mark.parametrize("p", [50.0, -1, float("nan"), jnp.float32(50), np.float32(-1)])
def test_a_rate_is_checked_when_it_is_set(p):
    layer = sdn.Dropout(0.5)
    with pytest.raises(ValueError, match=r"`p` must be"):
        layer.p = p
    assert layer.p == 0.5
