"""`DropConnectLinear`: what it adds to the laws."""

import sys
from pathlib import Path

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

import snn_dropout as sd
from snn_dropout import functional
from tests.depth import cases
from tests.neurons import LIF, AdaptiveLIF, loop

KEY = jax.random.key(0)
RNGS = {"dropout": KEY}


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "data" / "spikingjelly-2.0.0.npz") as arrays:
        return dict(arrays)


def case(reference, name):
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)}


def params_of(array):
    """SpikingJelly's weight [O, I] and bias as the parameters of a linen layer."""
    bias = {"bias": jnp.asarray(array["bias"])} if "bias" in array else {}
    return {"kernel": jnp.asarray(array["weight"].T), **bias}


def masks_of(array, t):
    """The masks that SpikingJelly drew at step `t`, as the state that holds them."""
    kernel_mask = functional.pack_bits(jnp.asarray(array["mask_w_seq"][t].swapaxes(1, 2)))
    bias = {"bias_mask": jnp.asarray(array["mask_b_seq"][t])} if "bias" in array else {}
    return {"kernel_mask": kernel_mask, **bias}


def within(count, n, q, alpha=1e-9):
    return (
        scipy.stats.binom.ppf(alpha / 2, n, q)
        <= count
        <= scipy.stats.binom.isf(alpha / 2, n, q)
    )


# Parity with SpikingJelly 2.0.0 on PyTorch, by injecting its masks.


@pytest.mark.parametrize(
    "name", ["dropconnect_fresh", "dropconnect_invariant", "dropconnect_nobias"]
)
def test_training_equals_spikingjelly(reference, name):
    array = case(reference, name)
    layer = sd.DropConnectLinear(
        6,
        7,
        use_bias="bias" in array,
        p=float(array["p"]),
        invariant=True,
        activation=None,
        deterministic=False,
    )

    def run(params, x_seq):
        y_seq = [
            layer.apply({"params": params, "state": masks_of(array, t)}, x)
            for t, x in enumerate(x_seq)
        ]
        return jnp.stack(y_seq)

    params = params_of(array)
    y_seq, pullback = jax.vjp(run, params, jnp.asarray(array["x_seq"]))
    np.testing.assert_allclose(y_seq, array["y_seq"], rtol=1e-5, atol=1e-5)
    grads, dx = pullback(jnp.asarray(array["grad_y_seq"]))
    np.testing.assert_allclose(dx, array["grad_x_seq"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        grads["kernel"].T, array["grad_weight"], rtol=1e-5, atol=1e-5
    )
    if "bias" in array:
        np.testing.assert_allclose(grads["bias"], array["grad_bias"], rtol=1e-5, atol=1e-5)


def test_multi_step_mode_equals_spikingjelly_with_held_masks(reference):
    array = case(reference, "dropconnect_invariant")
    assert (array["mask_w_seq"] == array["mask_w_seq"][:1]).all()
    variables = {"params": params_of(array), "state": masks_of(array, 0)}
    layer = sd.DropConnectLinear(
        6, 7, p=0.25, invariant=True, activation=None, step_mode="m"
    )
    y_seq = layer.apply(variables, array["x_seq"], False)
    np.testing.assert_allclose(y_seq, array["y_seq"], rtol=1e-5, atol=1e-5)


def test_spikes_of_a_lif_activation_equal_spikingjelly(reference):
    array = case(reference, "dropconnect_lif")
    layer = sd.DropConnectLinear(
        8, 5, invariant=True, activation=LIF(), deterministic=False
    )
    state, params = {}, params_of(array)
    for t, x in enumerate(array["x_seq"]):
        state |= masks_of(array, t)
        spikes, updated = layer.apply(
            {"params": params, "state": state}, x, mutable=["state"]
        )
        state = dict(updated["state"])
        np.testing.assert_array_equal(spikes, array["spike_seq"][t])
        np.testing.assert_allclose(
            state["activation"]["v"], array["v_seq"][t], rtol=1e-5, atol=1e-5
        )


ACTIVATIONS = {
    "identity": None,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "heaviside_at_0p1": functional.Threshold(0.1),
}


@cases("name", ACTIVATIONS, short=list(ACTIVATIONS)[:2])
def test_inference_equals_spikingjelly(reference, name):
    array = case(reference, "dropconnect_inference")
    p, params = float(array["p"]), params_of(array)
    mean, variance = functional.moments(array["x"], params["kernel"], params["bias"], p)
    np.testing.assert_allclose(mean, array["mean"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, array["variance"], rtol=1e-5, atol=1e-5)

    layer = sd.DropConnectLinear(
        20, 9, p=p, activation=ACTIVATIONS[name], deterministic=True
    )
    exact = layer.clone(inference="analytic").apply({"params": params}, array["x"])
    # The reference averaged 409,600 draws of a variable whose spread is at most
    # that of the pre-activation (1 for a function between 0 and 1).
    spread = np.sqrt(array["variance"]) if name in ("identity", "relu") else 0.5
    long_run = array[f"{name}_mean_of_409600_samples"]
    assert (np.abs(exact - long_run) <= 6 * spread / np.sqrt(409600) + 1e-6).all()
    sampled = layer.apply({"params": params}, array["x"], rngs=RNGS)
    assert (np.abs(sampled - long_run) <= 6 * spread / np.sqrt(1024)).all()


# Masks.


def test_masks_are_independent_over_steps_examples_and_bias():
    layer = sd.DropConnectLinear(1, 2000, p=0.3, deterministic=False, activation=None)
    params = {"kernel": jnp.ones((1, 2000)), "bias": jnp.full(2000, 10.0)}

    def masks(key):
        y = layer.apply({"params": params}, jnp.ones((2, 1)), rngs={"dropout": key})
        return y % 10 == 1, y >= 10

    (first, first_bias), (second, second_bias) = (
        masks(KEY),
        masks(jax.random.fold_in(KEY, 1)),
    )
    pairs = [
        (first, second),
        (first_bias, second_bias),
        (first, first_bias),
        (first[0], first[1]),
        (first_bias[0], first_bias[1]),
    ]
    for a, b in pairs:
        assert within(int((a != b).sum()), a.size, 2 * 0.3 * 0.7)


def test_multi_step_mode_draws_new_connections_at_every_step():
    layer = sd.DropConnectLinear(
        1, 2000, step_mode="m", deterministic=False, activation=None
    )
    params = {"kernel": jnp.ones((1, 2000)), "bias": jnp.zeros(2000)}
    y_seq = layer.apply({"params": params}, jnp.ones((2, 1, 1)), rngs=RNGS)
    assert within(int((y_seq[0] != y_seq[1]).sum()), 2000, 0.5)


@pytest.mark.exhaustive
def test_training_averages_to_the_mean_of_inference():
    layer = sd.DropConnectLinear(5, 3, p=0.3, activation=None)
    variables = layer.init(KEY, jnp.ones((1, 5)), True)
    x = jnp.broadcast_to(jnp.arange(1.0, 6.0), (20000, 5))
    y = layer.apply(variables, x, False, rngs=RNGS)
    mean, variance = functional.moments(
        x[:1], variables["params"]["kernel"], variables["params"]["bias"], 0.3
    )
    error = 6 * np.sqrt(variance / 20000)
    assert (np.abs(y.mean(0, keepdims=True) - mean) <= error).all()
    np.testing.assert_allclose(y.var(0, keepdims=True), variance, rtol=0.1)


def test_kernel_and_bias_masks_come_from_different_keys(monkeypatch):
    keys = []

    def recording(draw):
        def record(key, *args, **kwargs):
            keys.append(jax.random.key_data(key).tolist())
            return draw(key, *args, **kwargs)

        return record

    module = sys.modules["snn_dropout.linen.layers.dropconnect"]
    for name in ("draw_bits", "draw_mask"):
        monkeypatch.setattr(module, name, recording(getattr(module, name)))
    for invariant in (True, False):
        layer = sd.DropConnectLinear(6, 4, invariant=invariant, deterministic=False)
        layer.apply(
            layer.init(KEY, jnp.ones((1, 6))),
            2,
            rngs=RNGS,
            method="drop",
            mutable=["state"],
        )
    assert len(keys) == 4
    assert keys[0] != keys[1]
    assert keys[2] != keys[3]


def test_held_masks_are_used_again_and_given_ones_injected():
    layer = sd.DropConnectLinear(6, 40, invariant=True, deterministic=False)
    x = jax.random.normal(KEY, (4, 6))
    variables = layer.init(KEY, x)
    assert variables.keys() == {"params"}
    y, updated = layer.apply(variables, x, rngs=RNGS, mutable=["state"])
    np.testing.assert_array_equal(layer.apply({**variables, **updated}, x), y)
    everything = {
        "kernel_mask": functional.pack_bits(jnp.ones((4, 6, 40), bool)),
        "bias_mask": jnp.ones((4, 40), bool),
    }
    full = layer.apply({**variables, "state": everything}, x)
    dense = nn.relu(nn.Dense(40).apply({"params": variables["params"]}, x))
    np.testing.assert_allclose(full, dense, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_kernel_on_the_second_step_of_a_held_mask():
    layer = sd.DropConnectLinear(6, 4, invariant=True, activation=None, deterministic=False)
    x = jnp.ones((3, 6))
    params = layer.init(KEY, x)["params"]
    _, updated = layer.apply({"params": params}, x, rngs=RNGS, mutable=["state"])

    def loss(params):
        return layer.apply({"params": params, **updated}, x).sum()

    kept = functional.unpack_bits(updated["state"]["kernel_mask"], 4).sum(0)
    np.testing.assert_allclose(jax.grad(loss)(params)["kernel"], kept)


def test_weights_of_a_trained_dense_layer_load_unchanged():
    x = jax.random.normal(KEY, (4, 6))
    trained = nn.Dense(5).init(KEY, x)
    layer = sd.DropConnectLinear(6, 5, activation=None)
    own = layer.init(KEY, x, True)
    chex.assert_trees_all_equal_shapes_and_dtypes(own, trained)
    exact = layer.clone(inference="analytic").apply(trained, x, True)
    np.testing.assert_allclose(
        exact, 0.5 * nn.Dense(5).apply(trained, x), rtol=1e-5, atol=1e-6
    )


def test_parameters_start_from_spikingjellys_uniform_distribution():
    params = sd.DropConnectLinear(16, 4000).init(KEY, jnp.ones((1, 16)), True)["params"]
    for leaf in params.values():
        assert 0.24 < float(jnp.abs(leaf).max()) <= 0.25
        assert abs(float(leaf.std()) - 0.25 / np.sqrt(3)) < 0.005


# Inference.


@cases("inference", ["sample", "analytic"], short=["sample"])
@cases("activation", [None, nn.relu, functional.Threshold(0.1), nn.tanh], short=[nn.relu])
@cases("use_bias", [True, False], short=[False])
def test_a_silent_row_is_finite_with_finite_gradients(inference, activation, use_bias):
    layer = sd.DropConnectLinear(
        6, 4, use_bias, activation=activation, inference=inference, samples_num=20
    )
    x = jnp.zeros((3, 6)).at[1].set(1.0)
    params = layer.init(KEY, x, True)["params"]

    def loss(params, x, deterministic):
        return layer.apply({"params": params}, x, deterministic, rngs=RNGS).sum()

    for deterministic in (True, False):
        with jax.debug_nans(True):
            value, grads = jax.value_and_grad(loss, argnums=(0, 1))(
                params, x, deterministic
            )
        chex.assert_tree_all_finite((value, grads))


class Through(nn.Module):
    @nn.compact
    def __call__(self, z):
        return z


@cases("activation", [None, Through()], short=lambda a: a is not None)
def test_samples_are_shared_by_the_batch_and_new_at_every_step(activation):
    layer = sd.DropConnectLinear(
        6, 400, activation=activation, samples_num=1, deterministic=True
    )
    x_seq = jnp.broadcast_to(jnp.arange(6.0), (2, 2, 6))
    params = layer.init(KEY, x_seq[0])
    for y_seq in (
        layer.clone(step_mode="m").apply(params, x_seq, rngs=RNGS),
        sd.simulate(layer, params, x_seq, rngs=RNGS)[0],
    ):
        np.testing.assert_array_equal(y_seq[:, 0], y_seq[:, 1])
        mean, variance = functional.moments(
            x_seq[0, :1], params["params"]["kernel"], params["params"]["bias"], 0.5
        )
        z = (y_seq[:, 0] - mean) / np.sqrt(variance)
        assert abs(float((z[0] * z[1]).mean())) < 6 / np.sqrt(400)
        assert abs(float(z.var()) - 1) < 6 * np.sqrt(2 / 800)


# A spiking neuron as the activation.


def spiking(**fields):
    fields = {"invariant": True, "samples_num": 16, **fields}
    return sd.DropConnectLinear(6, 5, activation=LIF(), **fields)


@pytest.fixture(scope="module")
def x_seq():
    return jax.random.uniform(jax.random.key(1), (7, 3, 6), maxval=6.0)


def test_the_state_of_sampled_neurons_has_the_batch_first(x_seq):
    layer = spiking(step_mode="m", deterministic=True)
    variables = layer.init(KEY, x_seq)
    shapes = jax.tree.map(jnp.shape, variables["state"])
    assert shapes == {
        "activation": {"v": (3, 5)},
        "samples": {"0": {"state": {"v": (3, 16, 5)}}},
    }
    _, updated = layer.apply(variables, x_seq, rngs=RNGS, mutable=["state"])
    chex.assert_trees_all_equal_shapes_and_dtypes(updated["state"], variables["state"])


@cases("step_mode", ["s", "m"], short=["s"])
def test_sampled_neurons_average_runs_of_single_neurons(x_seq, step_mode):
    layer = spiking(step_mode=step_mode, deterministic=True, samples_num=4000)
    variables = layer.init(KEY, x_seq if step_mode == "m" else x_seq[0])
    if step_mode == "m":
        y_seq = layer.apply(variables, x_seq, rngs=RNGS)
    else:
        y_seq, _ = sd.simulate(layer, variables, x_seq, rngs=RNGS)
    params = variables["params"]
    mean, variance = functional.moments(x_seq, params["kernel"], params["bias"], 0.5)
    noise = jax.random.normal(jax.random.key(5), (7, 4000, 3, 5))
    z = mean[:, None] + jnp.sqrt(variance)[:, None] * noise
    spikes, _ = sd.simulate(LIF(), {}, z)
    assert (jnp.abs(y_seq - spikes.mean(1)) <= 6 * np.sqrt(0.25 * 2 / 4000)).all()


def test_samples_of_neurons_that_are_random_themselves_are_drawn_apart(x_seq):
    class Noise(nn.Module):
        @nn.compact
        def __call__(self, z):
            return jax.random.normal(self.make_rng("dropout"), z.shape)

    layer = sd.DropConnectLinear(
        6, 5, activation=Noise(), samples_num=400, step_mode="m", deterministic=True
    )
    params = {"kernel": jnp.ones((6, 5)), "bias": jnp.ones(5)}
    y_seq = layer.apply({"params": params}, x_seq, rngs=RNGS)
    assert (jnp.abs(y_seq) < 6 / np.sqrt(400)).all()
    assert not (y_seq[0] == y_seq[1]).any()


def test_neurons_that_are_random_themselves_are_the_same_in_either_mode(x_seq):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, z):
            total = self.variable("state", "total", jnp.zeros, z.shape)
            total.value += jax.random.normal(self.make_rng("dropout"), z.shape)
            return z + total.value

    layer = sd.DropConnectLinear(6, 5, p=0, activation=Noisy(), deterministic=False)
    variables = layer.init({"params": KEY, **RNGS}, x_seq[0])
    y_seq, _ = sd.simulate(layer, variables, x_seq, rngs=RNGS)
    whole, _ = layer.clone(step_mode="m").apply(
        variables, x_seq, rngs=RNGS, mutable=["state"]
    )
    np.testing.assert_allclose(whole, y_seq, atol=1e-5)


@cases("first", [True, False], short=[True])
@cases("then", [True, False], short=[True])
def test_a_first_state_of_training_starts_inference_and_the_other_way_round(
    x_seq, first, then
):
    layer = spiking()
    variables = layer.init(KEY, x_seq[0], first)
    kwargs = {"deterministic": then, "rngs": RNGS}
    y_loop, updated_loop = loop(layer, variables, x_seq, fold=then, jit=True, **kwargs)
    y_seq, updated = jax.jit(lambda v: sd.simulate(layer, v, x_seq, **kwargs))(variables)
    np.testing.assert_allclose(y_seq, y_loop, atol=1e-6)
    chex.assert_trees_all_close(updated, updated_loop, atol=1e-5)


def test_one_step_of_neurons_that_can_not_be_kept_raises_in_inference():
    layer = sd.DropConnectLinear(6, 5, activation=LIF(), samples_num=4)
    x = jnp.ones((4, 6))
    variables = {"params": layer.init(KEY, x, True)["params"]}
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="immutable"):
        layer.apply(variables, x, True, rngs=RNGS)


@cases("deterministic", [True, False], short=[True])
def test_spiking_layers_run_without_a_mutable_state(x_seq, deterministic):
    kwargs = {"deterministic": deterministic, "rngs": RNGS}
    variables = spiking().init(KEY, x_seq[0], deterministic)
    layer = spiking(step_mode="m")
    kept, _ = layer.apply(variables, x_seq, mutable=["state"], **kwargs)
    for given in (variables, {"params": variables["params"]}):
        np.testing.assert_array_equal(layer.apply(given, x_seq, **kwargs), kept)


@cases("deterministic", [True, False], short=[True])
def test_neurons_restart_with_the_simulation_and_row_by_row(x_seq, deterministic):
    layer = spiking()
    kwargs = {"deterministic": deterministic, "rngs": RNGS}
    variables = layer.init(KEY, x_seq[0], deterministic)
    fresh = sd.init_state(layer, variables, x_seq[0], **kwargs)
    _, updated = loop(layer, {**variables, "state": fresh}, x_seq, jit=True, **kwargs)
    moved = updated["state"]
    name = "samples" if deterministic else "activation"
    done = jnp.array([False, True, False])
    state = sd.reset_rows(done, moved, fresh)
    for leaf, old, new in zip(
        jax.tree.leaves(state[name]),
        jax.tree.leaves(moved[name]),
        jax.tree.leaves(fresh[name]),
        strict=True,
    ):
        assert not (old[1] == new[1]).all()
        np.testing.assert_array_equal(leaf[1], new[1])
        np.testing.assert_array_equal(leaf[::2], old[::2])
    # The first state restarts them all; dropping the masks alone lets them run on.
    kept = sd.reset_masks(moved)
    assert "kernel_mask" not in kept
    chex.assert_trees_all_equal(kept[name], moved[name])


@pytest.mark.parametrize(
    ("changed", "shapes"),
    [
        (
            {"samples_num": 8},
            r"samples/.*has \(3, 16, 5\) where this input makes \(3, 8, 5\)",
        ),
        ({"batch": 1}, r"activation/v .*has \(3, 5\) where this input makes \(1, 5\)"),
    ],
)
def test_a_state_of_another_batch_or_number_of_samples_raises(x_seq, changed, shapes):
    stale = spiking(step_mode="m", deterministic=True).init(KEY, x_seq)
    layer = spiking(
        step_mode="m", deterministic=True, samples_num=changed.get("samples_num", 16)
    )
    x = x_seq[:, : changed.get("batch", 3)]
    with pytest.raises(
        ValueError, match=rf"The leaf state/{shapes}.*; start from the first"
    ):
        layer.apply(stale, x, rngs=RNGS, mutable=["state"])


@pytest.mark.exhaustive
def test_a_neuron_with_its_own_collection_and_parameters(x_seq):
    class Trained(nn.Module):
        @nn.compact
        def __call__(self, x):
            gain = self.param("gain", nn.initializers.constant(2.0), ())
            return AdaptiveLIF()(gain * x)

    layer = sd.DropConnectLinear(6, 5, activation=Trained(), samples_num=8)
    variables = layer.init(KEY, x_seq[0], True)
    assert variables["params"]["activation"] == {"gain": jnp.float32(2)}
    for deterministic in (True, False):
        kwargs = {"deterministic": deterministic, "rngs": RNGS}
        given = {"params": variables["params"]}
        y_seq, _ = sd.simulate(layer, given, x_seq, mutable=["carry"], **kwargs)
        y_loop, _ = loop(
            layer,
            variables,
            x_seq,
            fold=True,
            mutable=("state", "carry"),
            jit=True,
            **kwargs,
        )
        np.testing.assert_allclose(y_seq, y_loop, atol=1e-6)


def test_the_bridge_to_nnx_finds_the_state_of_a_spiking_activation(x_seq):
    rngs = nnx.Rngs(0, dropout=1)
    layer = nnx.bridge.ToNNX(spiking(deterministic=False), rngs=rngs)
    layer.lazy_init(x_seq[0])
    for _ in range(2):
        layer(x_seq[0], mutable=["state"])
    assert layer.activation["v"].shape == (3, 5)
    assert layer.kernel_mask.shape == (3, 6, 1)


# Bad input.


@pytest.mark.short
@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"samples_num": 0}, ValueError, r"`samples_num` must be 1 or more, but got 0"),
        ({"samples_num": 1.5}, TypeError, r"`samples_num` must be a static .*got 1\.5"),
        ({"in_features": 0}, ValueError, r"`in_features` must be 1 or more"),
        ({"out_features": "4"}, TypeError, r"`out_features` must be a static .*'4'"),
        ({"inference": "exact"}, ValueError, r"`inference` must be 'sample'.*'exact'"),
        (
            {"inference": "analytic", "activation": LIF()},
            ValueError,
            r"`inference='analytic'` needs .*a module.*`inference='sample'`",
        ),
        ({"activation": 3}, TypeError, r"`activation` must be a function .*got 3"),
        ({"activation": LIF}, TypeError, r"got the class LIF; .*`activation=LIF\(\)`"),
        ({"p": 2}, ValueError, r"`p` must be in \[0, 1\]"),
        ({"step_mode": "x"}, ValueError, r"`step_mode` must be 's'"),
    ],
)
def test_fields_are_checked_at_construction(fields, error, match):
    with pytest.raises(error, match=match):
        sd.DropConnectLinear(**{"in_features": 6, "out_features": 5, **fields})


@pytest.mark.short
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("step_mode", "shape", "error", "match"),
    [
        ("s", (3, 7), ValueError, r"in_features=6.*got 7.*in_features=7"),
        ("m", (2, 3, 7), ValueError, r"in_features=6.*got 7"),
        ("s", (2, 3, 7), ValueError, r"in_features=6.*got 7"),
        (
            "m",
            (3, 6),
            ValueError,
            r"\[T, N, \.\.\., I\].*looks like \[N, \.\.\., I\].*step_mode='s'",
        ),
        ("s", (6,), ValueError, r"must be \[N, \.\.\., I\].*`x\[None\]`"),
        ("m", (6,), ValueError, r"must be \[T, N, \.\.\., I\]"),
    ],
)
def test_inputs_are_checked(step_mode, shape, error, match, deterministic):
    layer = sd.DropConnectLinear(6, 5, step_mode=step_mode)
    params = {"params": {"kernel": jnp.ones((6, 5)), "bias": jnp.ones(5)}}
    for run in (
        lambda x: layer.init(KEY, x, deterministic),
        lambda x: layer.apply(params, x, deterministic, rngs=RNGS),
    ):
        with pytest.raises(error, match=match):
            run(jnp.ones(shape))


def test_complex_input_raises():
    with pytest.raises(TypeError, match=r"`x` must be real.*complex64"):
        sd.DropConnectLinear(2, 3).init(KEY, jnp.ones((1, 2), jnp.complex64), True)


def test_missing_streams_and_stored_masks_of_another_size_raise():
    x = jnp.ones((3, 6))
    params = {"params": sd.DropConnectLinear(6, 5).init(KEY, x, True)["params"]}
    for layer, deterministic, what in [
        (sd.DropConnectLinear(6, 5), True, "samples of DropConnectLinear .*analytic.*"),
        (sd.DropConnectLinear(6, 5), False, "the masks of DropConnectLinear"),
        (sd.DropConnectLinear(6, 5, invariant=True), False, "the mask state/kernel_mask"),
    ]:
        with pytest.raises(
            flax.errors.InvalidRngError, match=rf"{what} needs the stream 'dropout'"
        ):
            layer.apply(params, x, deterministic, mutable=["state"])
    layer = sd.DropConnectLinear(6, 5, invariant=True)
    with pytest.raises(
        RuntimeError, match=r"must be mutable or hold a mask at .*kernel_mask"
    ):
        layer.apply(params, x, False, rngs=RNGS)
    with pytest.raises(RuntimeError, match="must be mutable or hold a mask"):
        layer.apply(params, 3, rngs=RNGS, method="drop")
    _, updated = layer.apply(params, x, False, rngs=RNGS, mutable=["state"])
    with pytest.raises(ValueError, match=r"kernel_mask must fit.*\(3, 6, 1\).*\(2, 6, 1\)"):
        layer.apply({**params, **updated}, x[:2], False)
    wide = {"kernel_mask": jnp.ones((3, 6, 2), jnp.uint32)}
    with pytest.raises(ValueError, match=r"kernel_mask must fit.*\(3, 6, 2\).*\(3, 6, 1\)"):
        layer.apply({**params, "state": wide}, x, False)
    floats = {**updated["state"], "bias_mask": jnp.ones((3, 5))}
    with pytest.raises(ValueError, match=r"bias_mask must fit.*dtype float32.*dtype bool"):
        layer.apply({**params, "state": floats}, x, False)


def test_zero_time_steps_give_an_empty_output():
    x_seq = jnp.ones((0, 3, 6))
    for layer in (
        sd.DropConnectLinear(6, 5, step_mode="m"),
        spiking(step_mode="m"),
        spiking(step_mode="m", invariant=False),
    ):
        variables = layer.init(KEY, x_seq, True)
        for deterministic in (True, False):
            y_seq = layer.apply(variables, x_seq, deterministic, rngs=RNGS)
            assert y_seq.shape == (0, 3, 5)


# Memory.


@cases(
    ("invariant", "deterministic", "inference", "most"),
    [
        (False, False, "sample", 24),
        (True, False, "sample", 8),
        (False, True, "sample", 10),
        (False, True, "analytic", 16),
    ],
    short=[(True, False, "sample", 8), (False, True, "analytic", 16)],
)
def test_temporary_memory_with_gradients_is_bounded(
    invariant, deterministic, inference, most
):
    """Packed masks are 16 and 2 MiB, an array of the outputs' shape is 1 MiB."""
    width = 512
    layer = sd.DropConnectLinear(
        width, width, invariant=invariant, inference=inference, step_mode="m"
    )
    x_seq = jnp.ones((8, 64, width))
    variables = layer.init(KEY, x_seq[:1, :1], True)

    def loss(variables, x_seq, key):
        y_seq = layer.apply(variables, x_seq, deterministic, rngs={"dropout": key})
        return (y_seq**2).sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    memory = gradient.lower(variables, x_seq, KEY).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= most * 2**20


def test_neurons_are_stepped_over_a_sequence_in_either_mode_of_the_layer(x_seq):
    layer = sd.DropConnectLinear(x_seq.shape[-1], 5, activation=LIF(), deterministic=False)
    variables = {"params": layer.init(KEY, x_seq[0])["params"]}
    whole = layer.clone(step_mode="m").apply(variables, 8 * x_seq, rngs=RNGS)
    found = layer.apply(variables, 8 * x_seq, rngs=RNGS, method="multi_step_forward")
    np.testing.assert_array_equal(found, whole)
    assert (found[0] != found[1]).any()
