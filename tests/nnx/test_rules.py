"""The ten rules of the state, in their NNX form: a rule a test, in each mode of NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests.nnx.catalogue import (
    KEY,
    LIF,
    Membrane,
    Net,
    holds_nothing,
    linen_net,
    masks_of,
    mode,  # noqa: F401
    net,
)

X_SEQ = jax.random.normal(jax.random.key(1), (5, 4, 6))
OTHER = jax.random.key(6)


@pytest.fixture(autouse=True)
def _each_mode(mode):  # noqa: F811
    return mode


@pytest.fixture
def model():
    return Net(rngs=nnx.Rngs(0))


def copied(model):
    return nnx.merge(*nnx.split(model), copy=True)


def same(one, other):
    return one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


def test_rule_1_a_model_that_is_made_holds_no_mask(model):
    assert holds_nothing(model)
    assert model.Dropout_0.mask is None
    assert sdn.Dropout(0.5).rngs is None  # and needs no stream


def test_rule_2_masks_are_drawn_before_the_first_step_and_only_read(model):
    with sdn.simulation(model, X_SEQ[0], key=KEY):
        before = masks_of(model)
        assert set(before) == {
            (layer, name) for layer in ("Dropout_0", "last") for name in ("mask", "mask_p")
        }
        for x in X_SEQ:
            model(x)
        assert same(masks_of(model), before)


def test_rule_2_making_masks_moves_nothing_else(model):
    model.LIF_0(jnp.ones((4, 16)))
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    sdn.init_masks(model, X_SEQ[0], key=KEY)
    sdn.reset_masks(model)
    after = jax.tree.leaves(nnx.state(model))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rule_3_a_new_simulation_has_new_masks_and_the_same_key_the_same(model):
    y_seq = sdn.simulate(copied(model), X_SEQ, key=KEY)
    np.testing.assert_array_equal(sdn.simulate(copied(model), X_SEQ, key=KEY), y_seq)
    assert (sdn.simulate(copied(model), X_SEQ, key=OTHER) != y_seq).any()
    assert holds_nothing(model)


def test_rule_3_rows_restart_alone(model):
    sdn.init_masks(model, X_SEQ[0], key=OTHER)
    fresh = masks_of(model)
    sdn.init_masks(model, X_SEQ[0], key=KEY)
    before = masks_of(model)
    done = jnp.array([False, True, False, True])
    sdn.reset_rows(done, model, key=OTHER)
    for path, mask in masks_of(model).items():
        np.testing.assert_array_equal(mask[1::2], fresh[path][1::2])
        np.testing.assert_array_equal(mask[::2], before[path][::2])


def test_rule_4_a_scan_of_ones_own_runs_inside_of_a_simulation(model):
    expected = sdn.simulate(copied(model), X_SEQ, key=KEY)
    sdn.simulate(model, X_SEQ[:1], key=OTHER)  # membranes of their shape, and moved
    for neurons in (model.LIF_0, model.LIF_1):
        neurons.v.set_value(jnp.zeros_like(neurons.v.get_value()))
    with sdn.simulation(model, X_SEQ[0], key=KEY):
        graphdef, fixed, rest = nnx.split(model, (nnx.Param, sdn.HeldMask), ...)

        def step(rest, x):
            model = nnx.merge(graphdef, fixed, rest, copy=True)
            y = model(x)
            return nnx.split(model, (nnx.Param, sdn.HeldMask), ...)[2], y

        _, y_seq = jax.lax.scan(step, rest, X_SEQ)
    np.testing.assert_array_equal(y_seq, expected)


def test_rule_5_inference_is_the_identity_and_needs_nothing():
    layer = sdn.Dropout(0.5)
    layer.eval()
    x = jnp.array([[jnp.nan, 1.0, -0.0]])
    assert layer(x) is x
    assert layer(x.astype(bool)).dtype == jnp.bool_
    np.testing.assert_array_equal(sdn.simulate(layer, x[None]), x[None])
    sdn.init_masks(layer, x, key=KEY)
    assert holds_nothing(layer)
    layer.train()
    assert layer(x, deterministic=True) is x  # the argument comes before the attribute
    layer.eval()
    with pytest.raises(RuntimeError, match="must have its mask before the first step"):
        layer(x, deterministic=False)


def test_rule_6_mode_m_takes_the_mask_of_the_simulation_or_draws_from_its_stream():
    single, multi = sdn.Dropout(0.5), sdn.Dropout(0.5, step_mode="m", rngs=nnx.Rngs(0))
    expected = sdn.simulate(single, X_SEQ, key=KEY)
    with sdn.simulation(multi, X_SEQ, key=KEY):
        np.testing.assert_array_equal(multi(X_SEQ), expected)
        np.testing.assert_array_equal(multi(X_SEQ), expected)
    first, second = multi(X_SEQ), multi(X_SEQ)
    assert (first != second).any()
    assert ((first == 0) == (first == 0).all(0)[None]).all()
    np.testing.assert_array_equal(multi(X_SEQ, rngs=KEY), expected)


@pytest.mark.parametrize("p", [0.3, jnp.float32(0.3)])
@pytest.mark.parametrize("layer", [sdn.Dropout, sdn.DropPath, sdn.Dropout1d])
def test_rule_6_without_a_scale_nothing_is_scaled_with_and_without_a_held_mask(layer, p):
    x_seq = jnp.ones((5, 40, 6, 2))[..., : 1 if layer is sdn.DropPath else 2]
    whole = layer(p, scale=False, step_mode="m", rngs=nnx.Rngs(0))
    step = layer(p, scale=False)
    for model, run in (
        (whole, lambda: whole(x_seq)),
        (whole, lambda: whole(x_seq, rngs=KEY)),
        (whole, lambda: whole.drop(x_seq, KEY)),
        (whole, lambda: in_simulation(whole, x_seq)),
        (step, lambda: sdn.simulate(step, x_seq, key=KEY)),
        (step, lambda: step.drop(x_seq[0], KEY)),
    ):
        assert set(np.unique(run())) == {0, 1}, model.step_mode


def in_simulation(model, x_seq):
    with sdn.simulation(model, x_seq, key=KEY):
        return model(x_seq)


def test_rule_6_a_layer_draws_from_the_stream_of_its_name():
    ones = jnp.ones((2, 40, 6))
    for layer in (
        sdn.Dropout(0.5, step_mode="m", rng_collection="masks"),
        sdn.DropConnectLinear(
            6, 5, step_mode="m", rng_collection="masks", activation=None, rngs=nnx.Rngs(1)
        ),
    ):
        first, same = (layer(ones, rngs=nnx.Rngs(n, masks=1)) for n in (0, 2))
        np.testing.assert_array_equal(first, same)
        assert (layer(ones, rngs=nnx.Rngs(0, masks=2)) != first).any()
    own = [
        sdn.Dropout(
            0.5, step_mode="m", rng_collection="masks", rngs=nnx.Rngs(n, dropout=n, masks=m)
        )(ones)
        for n, m in ((0, 1), (2, 1), (0, 2))
    ]
    np.testing.assert_array_equal(own[0], own[1])
    assert (own[0] != own[2]).any()


@pytest.mark.parametrize("call", [lambda m, x: m(x), nnx.jit(lambda m, x: m(x))])
def test_rule_6_mode_s_without_a_mask_raises_and_names_who_makes_it(model, call):
    with pytest.raises(RuntimeError, match=r"simulate\(.*simulation\(.*init_masks\("):
        call(model, X_SEQ[0])


def test_rule_7_a_mask_of_another_batch_raises_and_names_both_shapes():
    model = nnx.Sequential(jnp.tanh, sdn.Dropout(0.5))
    sdn.init_masks(model, X_SEQ[0], key=KEY)
    mask = model.layers[1].mask
    with pytest.raises(ValueError, match=r"shape \(4, 6\).*needs shape \(2, 6\)"):
        model(X_SEQ[0, :2])
    with pytest.raises(ValueError, match=r"shape \(4, 6\).*needs shape \(2, 6\)"):
        sdn.simulate(model, X_SEQ[:, :2])
    sdn.init_masks(model, X_SEQ[0, :1], key=KEY)  # drawn anew, into the same Variable
    assert model.layers[1].mask is mask
    assert mask.shape == (1, 6)
    with pytest.raises(ValueError, match=r"shape \(1, 6\).*needs shape \(4, 6\)"):
        model(X_SEQ[0])  # JAX would broadcast it in silence


def test_rule_7_a_simulation_keeps_the_rate_that_it_started_with():
    layer = sdn.Dropout(0.75)
    x = jnp.ones((4, 8))
    with sdn.simulation(layer, x, key=KEY):
        before = layer(x)
        layer.p = 0.5
        np.testing.assert_array_equal(layer(x), before)
        assert set(np.unique(before)) == {0, 4}
        layer.p = 0.0
        assert layer(x) is x
    layer.p = 0.5
    assert set(np.unique(sdn.simulate(layer, x[None], key=KEY))) == {0, 2}


def test_rule_8_every_way_gives_the_masks_of_linen():
    linen, params = linen_net(X_SEQ[0])
    state = sd.init_state(
        linen, {"params": params}, X_SEQ[0], train=True, rngs={"dropout": KEY}
    )
    model = net(params)
    sdn.init_masks(model, X_SEQ[0], key=KEY)
    for layer in ("Dropout_0", "last"):
        for name in ("mask", "mask_p"):
            found = getattr(getattr(model, layer), name).get_value()
            np.testing.assert_array_equal(found, state[layer][name])


def test_rule_9_a_mask_is_not_put_into_a_model_of_another_trace(model):
    def body(carry, x):
        sdn.init_masks(model, x, key=KEY)
        return carry, model(x)

    with pytest.raises(RuntimeError, match="before the transform"):
        jax.lax.scan(body, (), X_SEQ)
    assert holds_nothing(model)

    def block(x):
        with sdn.simulation(model, x, key=KEY):
            return model(x)

    with pytest.raises(RuntimeError, match=r"nnx\.jit\(step\)\(model, x\)"):
        jax.jit(block)(X_SEQ[0])
    assert holds_nothing(model)


class Others(nnx.Module):
    """Neurons with two Variables, running averages, a counter and a stream of their own."""

    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.neurons = LIF()
        self.drop = sdn.Dropout(0.5)
        self.theirs = nnx.Dropout(0.5, rngs=rngs)
        self.steps = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.steps[...] += 1
        return self.theirs(self.drop(4 * self.neurons(4 * self.norm(x))))


def test_rule_10_what_is_no_parameter_and_no_mask_is_carried_and_updated():
    model = Others(rngs=nnx.Rngs(0))
    by_hand = copied(model)
    with sdn.simulation(by_hand, X_SEQ[0], key=KEY):
        expected = jnp.stack([by_hand(x) for x in X_SEQ])
    y_seq = sdn.simulate(model, X_SEQ, key=KEY)
    np.testing.assert_allclose(y_seq, expected, rtol=1e-5, atol=1e-5)
    assert int(model.steps[...]) == 5
    ours, theirs = nnx.state(model), nnx.state(by_hand)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert model.neurons.v.shape == (4, 6)
    second = sdn.simulate(model, X_SEQ, key=KEY)  # goes on from there
    assert int(model.steps[...]) == 10
    assert (second != y_seq).any()


def test_rule_10_neurons_may_make_their_variables_in_the_first_call():
    class Late(nnx.Module):
        def __init__(self):
            self.v = nnx.data(None)

        def __call__(self, x):
            if self.v is None:
                self.v = Membrane(jnp.zeros_like(x))
            self.v.set_value((self.v.get_value() + x) / 2)
            return self.v.get_value()

    class Model(nnx.Module):
        def __init__(self):
            self.neurons, self.drop = Late(), sdn.Dropout(0.5)

        def __call__(self, x):
            return self.drop(self.neurons(x))

    model, by_hand = Model(), Model()
    with sdn.simulation(by_hand, X_SEQ[0], key=KEY):
        expected = jnp.stack([by_hand(x) for x in X_SEQ])
    np.testing.assert_array_equal(sdn.simulate(model, X_SEQ, key=KEY), expected)
    assert holds_nothing(model)
    np.testing.assert_array_equal(
        model.neurons.v.get_value(), by_hand.neurons.v.get_value()
    )
    assert sdn.simulate(model, X_SEQ[:1], key=KEY).shape == (1, 4, 6)
    assert sdn.simulate(Model(), X_SEQ[:0], key=KEY).shape == (0, 4, 6)
