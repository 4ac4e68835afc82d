"""Lost connections in NNX: fresh ones, both kinds of inference, and neurons inside."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests.depth import cases
from tests.nnx.catalogue import KEY, LIF, Membrane, holds_nothing, masks_of

OTHER = jax.random.key(6)
X_SEQ = 4 * jax.random.normal(jax.random.key(1), (5, 4, 6))


def layer(**fields):
    return sdn.DropConnectLinear(6, 40, **{"rngs": nnx.Rngs(0), **fields})


def test_fresh_connections_are_new_at_each_step_and_simulation():
    model = layer(activation=None)
    ones = jnp.ones((5, 4, 6))
    first = sdn.simulate(model, ones, key=KEY)
    second = sdn.simulate(model, ones, key=KEY)  # its stream has moved on
    for y, other in ((first[0], first[1]), (first, second)):
        assert (y != other).mean() > 0.9
    assert holds_nothing(model)
    whole = layer(activation=None, step_mode="m")
    y_seq = whole(ones)
    assert (y_seq[0] != y_seq[1]).mean() > 0.9
    mean = sdn.simulate(model, jnp.ones((500, 1, 6)), key=KEY).mean(0)
    expected = 0.5 * (ones[0, :1] @ model.kernel[...] + model.bias[...][None])
    np.testing.assert_allclose(mean, expected, atol=0.1)


def test_without_loss_it_is_a_linear_layer_and_takes_its_parameters():
    linear = nnx.Linear(6, 40, rngs=nnx.Rngs(3))
    model = layer(p=0.0, activation=None)
    nnx.update(model, nnx.state(linear))
    np.testing.assert_array_equal(model(X_SEQ[0]), linear(X_SEQ[0]))


@pytest.mark.parametrize("use_bias", [True, False])
def test_parameters_are_drawn_in_the_order_of_flax(use_bias):
    model = layer(use_bias=use_bias)
    bound = 6**-0.5
    assert jnp.abs(model.kernel[...]).max() <= bound
    assert (model.bias is not None) == use_bias
    kernel = jax.random.uniform(nnx.Rngs(0).params(), (6, 40), minval=-bound, maxval=bound)
    np.testing.assert_allclose(jnp.sort(model.kernel[...].ravel()).mean(), 0, atol=0.1)
    assert kernel.shape == model.kernel.shape


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 400), (400, 4)])
def test_parameters_are_bounded_by_the_number_of_inputs(inputs, outputs):
    model = sdn.DropConnectLinear(inputs, outputs, rngs=nnx.Rngs(0))
    largest = jnp.abs(model.kernel[...]).max() * inputs**0.5
    assert 0.9 < largest <= 1
    assert jnp.abs(model.bias[...]).max() <= inputs**-0.5
    assert jnp.abs(model.bias[...]).max() > 0.3 * inputs**-0.5


def test_inference_of_connections_is_that_of_linen():
    fields = {"activation": jnp.tanh, "samples_num": 4096, "p": 0.3}
    exact = layer(inference="analytic", **fields)
    sampled = layer(**fields)
    exact.eval()
    sampled.eval()
    linen = sd.DropConnectLinear(6, 40, inference="analytic", activation=jnp.tanh, p=0.3)
    params = {"kernel": exact.kernel[...], "bias": exact.bias[...]}
    expected = linen.apply({"params": params}, X_SEQ[0], True)
    np.testing.assert_allclose(exact(X_SEQ[0]), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sampled(X_SEQ[0]), expected, atol=0.1)
    assert (sampled(X_SEQ[0]) != sampled(X_SEQ[0])).any()
    np.testing.assert_array_equal(sampled(X_SEQ[0], rngs=KEY), sampled(X_SEQ[0], rngs=KEY))
    with pytest.raises(ValueError, match="must be elementwise for the exact expectation"):
        sdn.init_masks(
            layer(inference="analytic", activation=nn.softmax), X_SEQ[0], key=KEY
        )


@cases("step_mode", ["s", "m"], short=["s"])
def test_sampled_inference_steps_copies_of_the_neurons(step_mode):
    model = layer(activation=LIF(), samples_num=2000, step_mode=step_mode)
    model.eval()
    if step_mode == "s":
        y_seq = sdn.simulate(model, X_SEQ)
        with pytest.raises(RuntimeError, match="averages over copies of its neurons"):
            model(X_SEQ[0])
    else:
        y_seq = model(X_SEQ)
    assert model.samples is None
    assert model.activation.v.get_value().shape == (), "the neurons stay at rest"

    # Each sample is a simulation on normal inputs of its own.
    drawn = jax.random.normal(KEY, (2000, 5, 1, 40))
    kernel, bias = model.kernel[...], model.bias[...]
    mean = 0.5 * (X_SEQ @ kernel + bias[None, None])
    deviation = jnp.sqrt(0.25 * (X_SEQ**2 @ kernel**2 + bias[None, None] ** 2))

    def one(normals):
        neurons = LIF()
        return sdn.simulate(neurons, mean + deviation * normals)

    expected = jax.lax.map(one, drawn, batch_size=100).mean(0)
    np.testing.assert_allclose(y_seq, expected, atol=0.07)
    assert ((y_seq > 0.01) & (y_seq < 0.99)).any()


def test_copies_live_as_long_as_the_simulation_and_rows_of_them_restart():
    model = layer(activation=LIF(), samples_num=8)
    model.eval()
    with sdn.simulation(model, X_SEQ[0]):
        loop = jnp.stack([model(x) for x in X_SEQ])
        (copies,) = model.samples.get_value()
        assert copies.shape == (4, 8, 40)
        sdn.reset_rows(jnp.array([True, False, False, True]), model, key=KEY)
        (after,) = model.samples.get_value()
        assert not after[0].any()
        np.testing.assert_array_equal(after[1:3], copies[1:3])
    assert model.samples is None
    assert loop.shape == (5, 4, 40)
    assert after[1:3].any()


def test_copies_go_on_from_one_part_of_a_sequence_to_the_next():
    # As good as nothing is lost, so that all copies are one network.
    fields = {"activation": LIF(), "samples_num": 4, "p": 1e-9, "step_mode": "m"}
    model = layer(**fields)
    model.eval()
    expected = model(X_SEQ)
    with sdn.simulation(model, X_SEQ, key=KEY):
        parts = [model(X_SEQ[:2]), model(X_SEQ[2:])]
    np.testing.assert_allclose(jnp.concatenate(parts), expected, atol=1e-5)
    assert (jnp.abs(model(X_SEQ[2:]) - expected[2:]) > 0.1).any()


@pytest.mark.parametrize("use_bias", [True, False])
def test_rows_of_held_connections_restart_alone(use_bias):
    model = nnx.Sequential(
        sdn.DropConnectLinear(6, 6, use_bias=False, activation=None, rngs=nnx.Rngs(1)),
        layer(use_bias=use_bias, activation=None, invariant=True),
    )
    held = model.layers[1]

    def masks_of_a_key(key):
        sdn.init_masks(model, X_SEQ[0], key=key)
        return {name: mask for name, mask in masks_of(held).items() if name != "mask_p"}

    fresh, before = masks_of_a_key(OTHER), masks_of_a_key(KEY)
    assert len(before) == (2 if use_bias else 1)
    sdn.reset_rows(jnp.array([False, True, True, False]), model, key=OTHER)
    assert holds_nothing(model.layers[0])  # its connections are new at each step
    for name, mask in before.items():
        after = masks_of(held)[name]
        np.testing.assert_array_equal(after[1:3], fresh[name][1:3])
        np.testing.assert_array_equal(after[::3], mask[::3])
        assert (fresh[name][::3] != mask[::3]).any()
    assert (model(X_SEQ[0]) != 0).any()


@pytest.mark.parametrize(("shape", "samples"), [((), 8), ((), 4), ((40,), 8)])
def test_what_is_of_no_example_is_left_alone_where_rows_of_copies_restart(shape, samples):
    class Counting(LIF):
        def __init__(self):
            super().__init__()
            self.steps = Membrane(jnp.zeros(shape))  # its name comes before that of `v`

        def __call__(self, x):
            self.steps.set_value(self.steps.get_value() + 1)
            return super().__call__(x)

    model = layer(activation=Counting(), samples_num=samples)
    model.eval()
    with sdn.simulation(model, X_SEQ[0]):
        for x in X_SEQ:
            model(x)
        before, v_before = model.samples.get_value()
        with pytest.raises(ValueError, match="`done` must have one element for each"):
            sdn.reset_rows(jnp.ones(3, bool), model, key=KEY)
        sdn.reset_rows(jnp.array([True, False, False, True]), model, key=KEY)
        steps, v = model.samples.get_value()
    assert steps.shape == (*shape, samples)
    assert (steps == 5).all()
    np.testing.assert_array_equal(steps, before)
    assert not v[::3].any()
    np.testing.assert_array_equal(v[1:3], v_before[1:3])
    assert v_before[1:3].any()


def test_rows_of_copies_restart_beside_masks_that_are_held():
    model = layer(activation=LIF(), samples_num=8, invariant=True)
    sdn.init_masks(model, X_SEQ[0], key=KEY)
    mask = model.kernel_mask.get_value()
    model.eval()
    with sdn.simulation(model, X_SEQ[0]):
        for x in X_SEQ:
            model(x)
        (before,) = model.samples.get_value()
        sdn.reset_rows(jnp.array([True, False, False, True]), model, key=OTHER)
        (after,) = model.samples.get_value()
        assert not after[::3].any()
        np.testing.assert_array_equal(after[1:3], before[1:3])
        assert before[::3].any()
    np.testing.assert_array_equal(model.kernel_mask.get_value()[1:3], mask[1:3])
    assert (model.kernel_mask.get_value()[::3] != mask[::3]).any()


def test_neurons_that_only_count_have_no_rows_to_restart():
    class Counter(nnx.Module):
        def __init__(self):
            self.steps = Membrane(jnp.zeros(()))

        def __call__(self, x):
            self.steps.set_value(self.steps.get_value() + 1)
            return x

    model = nnx.Sequential(layer(activation=Counter(), samples_num=8), sdn.Dropout(0.5))
    model.layers[0].eval()
    sdn.init_masks(model, X_SEQ[0], key=KEY)
    mask = model.layers[1].mask.get_value()
    model(X_SEQ[0])
    sdn.reset_rows(jnp.array([True, False, False, True]), model, key=OTHER)
    (steps,) = model.layers[0].samples.get_value()
    assert steps.tolist() == [1.0] * 8
    np.testing.assert_array_equal(model.layers[1].mask.get_value()[1:3], mask[1:3])
    assert (model.layers[1].mask.get_value()[::3] != mask[::3]).any()


def test_a_view_of_the_layer_is_in_inference_and_the_layer_is_not():
    model = layer(activation=None, inference="analytic")
    view = nnx.view(model, deterministic=True)
    expected = 0.5 * (X_SEQ[0] @ model.kernel[...] + model.bias[...][None])
    np.testing.assert_allclose(view(X_SEQ[0]), expected, rtol=1e-5, atol=1e-5)
    assert (jnp.abs(model(X_SEQ[0]) - expected) > 0.1).any()
    assert not model.deterministic


def test_neurons_that_are_copied_have_all_of_their_variables_before():
    class Late(nnx.Module):
        def __init__(self):
            self.v = nnx.data(None)

        def __call__(self, x):
            if self.v is None:
                self.v = Membrane(jnp.zeros_like(x))
            return x

    model = layer(activation=Late(), samples_num=4)
    assert sdn.simulate(model, X_SEQ, key=KEY).shape == (5, 4, 40)
    model = layer(activation=Late(), samples_num=4)
    model.eval()
    with pytest.raises(ValueError, match="must be there before the first step"):
        sdn.simulate(model, X_SEQ)


def test_neurons_with_a_stream_of_their_own_are_copied_with_other_keys():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs.fork()

        def __call__(self, x):
            return jax.random.normal(self.rngs(), x.shape) + 0 * x

    model = layer(activation=Noisy(nnx.Rngs(1)), samples_num=400)
    model.eval()
    assert jnp.abs(sdn.simulate(model, X_SEQ)).max() < 0.5  # means of independent ones


def test_dropout_inside_of_the_activation_holds_its_mask():
    inner = nnx.Sequential(LIF(), sdn.Dropout(0.5))
    for step_mode in ("s", "m"):
        model = layer(activation=inner, p=0.0, step_mode=step_mode)
        x = X_SEQ[0] if step_mode == "s" else X_SEQ
        with sdn.simulation(model, x, key=KEY):
            assert inner.layers[1].mask.shape == (4, 40)
            y = model(x)
            assert (y[..., ~inner.layers[1].mask.get_value()] == 0).all()
