"""Eager calls: the second one compiles nothing, and computes what the code says now."""

import gc
import weakref
from contextlib import contextmanager
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout import functional
from tests.depth import cases
from tests.garbage import checking_leaks, older_objects_left_out

KEY = jax.random.key(0)
RNGS = {"dropout": KEY}
STEPS, EXAMPLES, INPUTS, OUTPUTS = 3, 2, 5, 4
MOMENTS = jnp.linspace(-1, 1, 8).reshape(2, 4), jnp.full((2, 4), 0.5)


@contextmanager
def counting():
    """The names of what is compiled inside of it."""
    names = []

    def note(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(kwargs.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def compiled_again(function, *args):
    """What a second call compiles."""
    function(*args)
    with counting() as names:
        function(*args)
    return names


def test_compilations_are_counted():
    with counting() as names:
        jax.jit(lambda x: x + 1)(1.0)
    assert names
    assert compiled_again(lambda: jax.jit(lambda x: x * 2)(1.0))


def own(z):
    return jnp.sin(z) + 1


def spike_with(slope):
    @jax.custom_jvp
    def spike(z):
        return (z > 0).astype(z.dtype)

    @spike.defjvp
    def spike_jvp(primals, tangents):
        (z,), (dz,) = primals, tangents
        return spike(z), dz * jnp.exp(-slope * z * z)

    return spike


connections = partial(sd.DropConnectLinear, INPUTS, OUTPUTS)
sampled = partial(connections, samples_num=20)
analytic = partial(connections, inference="analytic")
TRAIN, INFER = False, True
# A layer, and whether it infers.
LAYERS = {
    "Dropout": (sd.Dropout, TRAIN),
    "Dropout, p = 0.3": (partial(sd.Dropout, 0.3), TRAIN),
    "Dropout1d": (sd.Dropout1d, TRAIN),
    "DropPath": (sd.DropPath, TRAIN),
    "fresh": (connections, TRAIN),
    "fresh, p = 0.3": (partial(connections, p=0.3), TRAIN),
    "held": (partial(connections, invariant=True), TRAIN),
    "held, p = 0.3": (partial(connections, p=0.3, invariant=True), TRAIN),
    "sampled": (sampled, INFER),
    "sampled, an own activation": (partial(sampled, activation=own), INFER),
    "sampled, softmax": (partial(sampled, activation=nn.softmax), INFER),
    "sampled, a surrogate": (partial(sampled, activation=spike_with(1.0)), INFER),
    "analytic": (analytic, INFER),
    "analytic, gelu": (partial(analytic, activation=nn.gelu), INFER),
    "analytic, sigmoid": (partial(analytic, activation=nn.sigmoid), INFER),
    "analytic, an own activation": (partial(analytic, activation=own), INFER),
    "analytic, a surrogate": (partial(analytic, activation=spike_with(1.0)), INFER),
    "analytic, tried": (partial(analytic, activation=lambda z: jnp.roll(z, 0)), INFER),
}


SHORT = ("fresh, p = 0.3",)


@cases("mode", ["s", "m"], short=["s"])
@cases("name", LAYERS, short=SHORT)
def test_a_second_call_compiles_nothing(name, mode):
    make, deterministic = LAYERS[name]
    layer = make(step_mode=mode)
    shape = (STEPS, EXAMPLES, INPUTS) if mode == "m" else (EXAMPLES, INPUTS)
    if name == "Dropout1d":
        shape = (*shape[:-1], 3, INPUTS)
    x = jax.random.normal(KEY, shape)
    variables = layer.init(KEY, x, deterministic)
    params = {"params": variables.get("params", {})}
    _, state = layer.apply(params, x, deterministic, rngs=RNGS, mutable=["state"])

    def outputs(x, params, state):
        given = {"params": params, **state}
        return layer.apply(given, x, deterministic, rngs=RNGS, mutable=["state"])[0]

    def loss(x, params, state):
        return (outputs(x, params, state) ** 2).sum()

    given = params["params"]
    for stored in {}, state:  # drawn, and read
        assert compiled_again(outputs, x, given, stored) == []
        assert compiled_again(jax.grad(loss, (0, 1)), x, given, stored) == []


@pytest.mark.parametrize(
    "transform", [jax.vmap, lambda f: lambda x: jax.jvp(f, (x,), (x,))]
)
@cases("name", ["fresh", "held", "analytic, gelu"], short=["held"])
def test_a_second_call_under_a_transform_compiles_nothing(name, transform):
    make, deterministic = LAYERS[name]
    layer = make(deterministic=deterministic)
    x = jax.random.normal(KEY, (3, EXAMPLES, INPUTS))
    variables = layer.init(KEY, x[0])

    def outputs(x):
        return layer.apply(variables, x, rngs=RNGS, mutable=["state"])[0]

    if transform is not jax.vmap:
        x = x[0]
    assert compiled_again(lambda: transform(outputs)(x)) == []


class Net(nn.Module):
    """Makes its activations anew at each call, as many do."""

    @nn.compact
    def __call__(self, x):
        slopes = self.param("slopes", nn.initializers.constant(0.2), (1, 1, OUTPUTS))
        fields = {"inference": "analytic", "deterministic": True}
        y = sd.DropConnectLinear(
            INPUTS, OUTPUTS, activation=lambda z: jnp.where(z > 0, z, slopes * z), **fields
        )(x)
        spike = spike_with(2.0)
        return sd.DropConnectLinear(
            OUTPUTS, OUTPUTS, activation=lambda z: spike(z - 0.1), **fields
        )(y)


@pytest.mark.exhaustive
def test_activations_that_are_made_anew_compile_nothing_and_have_gradients():
    x = jax.random.normal(KEY, (EXAMPLES, INPUTS))
    params = Net().init(KEY, x)

    def loss(params):
        return (Net().apply(params, x) ** 2).sum()

    gradient = jax.grad(loss)
    assert compiled_again(loss, params) == []
    assert compiled_again(gradient, params) == []
    eager, jitted = gradient(params), jax.jit(gradient)(params)
    assert jnp.abs(eager["params"]["slopes"]).max() > 0
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), eager, jitted)


# What is compiled is what the code says now, and nothing that was.


def averages(activation):
    """Exact and sampled."""
    return jnp.stack(
        [
            functional.expected_activation(activation, *MOMENTS),
            functional.sampled_activation(KEY, activation, *MOMENTS, samples=20),
        ]
    )


def anew(activation):
    """Averages by a function that is new to every cache."""
    return jax.jit(lambda: averages(activation))()


class Gain:
    def __init__(self, gain, dtype=jnp.float32):
        self.gain, self.dtype = gain, dtype

    def __call__(self, z):
        return jnp.sin(self.gain * z).astype(self.dtype)

    def method(self, z):
        return self(z)


limit = 0.25


def above_the_limit(z):
    return z > limit


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_global_that_changes_is_read_again(monkeypatch):
    before = averages(above_the_limit)
    monkeypatch.setitem(globals(), "limit", -0.5)
    after = averages(above_the_limit)
    assert (after > before).any()
    close(after, averages(lambda z: z > -0.5))


@pytest.mark.exhaustive
def test_an_attribute_and_an_array_that_change_are_read_again():
    activation = Gain(1.0)
    for made in (activation, activation.method, lambda z: activation(z)):
        for gain in (1.0, 2.0, np.full((1, 4), 3.0, np.float32), jnp.full((1, 4), 4.0)):
            activation.gain = gain
            close(averages(made), anew(made))
    activation.gain = np.full((1, 4), 1.0, np.float32)
    averages(activation)
    activation.gain *= 2
    close(averages(activation), anew(Gain(2.0)))


def test_jitted_activations_that_differ_in_an_array_they_hold_are_told_apart():
    arrays = [jnp.full((1, 4), gain) for gain in (1.0, 2.0)]
    first, second = (jax.jit(lambda z, a=a: jnp.sin(a * z)) for a in arrays)
    close(averages(first), averages(Gain(1.0)))
    close(averages(second), averages(Gain(2.0)))


@cases("kind", ["jvp", "vjp"], short=["vjp"])
def test_surrogates_that_differ_in_their_gradient_are_told_apart(kind):
    def spike_by_vjp(slope):
        spike = jax.custom_vjp(lambda z: (z > 0).astype(z.dtype))
        spike.defvjp(lambda z: (spike(z), z), lambda z, g: (g * jnp.exp(-slope * z * z),))
        return spike

    make = spike_with if kind == "jvp" else spike_by_vjp

    def gradient(activation):
        def loss(mean):
            return functional.expected_activation(activation, mean, MOMENTS[1]).sum()

        return jax.grad(loss)(MOMENTS[0])

    for slope in (1.0, 3.0):
        wide = 1 + 2 * slope * MOMENTS[1]
        expected = jnp.exp(-slope * MOMENTS[0] ** 2 / wide) / jnp.sqrt(wide)
        np.testing.assert_allclose(gradient(make(slope)), expected, rtol=1e-4)


def test_a_surrogate_whose_slope_changes_is_read_again():
    slopes = {"slope": 1.0}

    @jax.custom_jvp
    def spike(z):
        return (z > 0).astype(z.dtype)

    @spike.defjvp
    def spike_jvp(primals, tangents):
        (z,), (dz,) = primals, tangents
        return spike(z), dz * jnp.exp(-slopes["slope"] * z * z)

    def gradient():
        def loss(mean):
            return functional.sampled_activation(KEY, spike, mean, MOMENTS[1], 20).sum()

        return jax.grad(loss)(MOMENTS[0])

    before = gradient()
    slopes["slope"] = 3.0
    assert (gradient() < before).all()


@cases("dtype", [jnp.float32, jnp.int32, bool], short=[bool])
def test_activations_of_another_dtype_and_shape_are_programs_of_their_own(dtype):
    for shape in ((2, 4), (3, 2, 4)):
        moments = jnp.ones(shape), jnp.ones(shape)
        y = functional.expected_activation(Gain(1.0, dtype), *moments)
        assert y.shape == shape
        close(
            y, jax.jit(partial(functional.expected_activation, Gain(1.0, dtype)))(*moments)
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_closures_over_traced_arrays_have_gradients(transform):
    def loss(gain):
        return averages(lambda z: jnp.square(gain * z)).sum()

    with checking_leaks():
        value, slope = transform(jax.value_and_grad(loss))(1.5)
    np.testing.assert_allclose(slope, 2 * value / 1.5, rtol=1e-5)
    vmapped = transform(jax.vmap(loss))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(vmapped, [loss(1.0), loss(2.0)], rtol=1e-5)
    scanned = transform(lambda gains: jax.lax.map(loss, gains))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(scanned, vmapped, rtol=1e-5)


def test_thresholds_that_are_traced_have_gradients():
    def loss(theta):
        return functional.expected_activation(functional.Threshold(theta), *MOMENTS).sum()

    step = 1e-2
    difference = (loss(0.1 + step) - loss(0.1 - step)) / (2 * step)
    for transform in (lambda f: f, jax.jit):
        np.testing.assert_allclose(transform(jax.grad(loss))(0.1), difference, rtol=1e-3)


def test_what_can_not_be_hashed_is_an_activation():
    class Unhashable(Gain):
        __hash__ = None

    activation = Unhashable(1.0)
    close(averages(activation), anew(activation))
    assert compiled_again(averages, activation) == []


# Nothing is kept alive.


def in_a_closure(gain):
    return lambda z: gain(z)


# Each makes an activation that refers to what it is given.
REFER = [
    lambda gain: gain,
    lambda gain: gain.method,
    in_a_closure,
    lambda gain: partial(lambda gain, z: nn.relu(gain(z)), gain),
]


@cases("refer", REFER, short=REFER[2:3])
@cases(
    "factor",
    [1.0, jnp.full((1, 4), 2.0)],
    short=lambda factor: isinstance(factor, jax.Array),
)
@older_objects_left_out()
def test_what_an_activation_refers_to_is_kept_alive_by_nothing(refer, factor):
    gain = Gain(factor)
    activation, alive = refer(gain), weakref.ref(gain)
    del gain

    def loss(a, activation=activation):
        return averages(lambda z: a * activation(z)).sum()

    jax.grad(loss)(1.0)
    averages(activation)
    del activation, loss
    gc.collect()
    assert alive() is None


@older_objects_left_out()
def test_a_layer_and_its_parameters_are_kept_alive_by_nothing():
    x = jax.random.normal(KEY, (EXAMPLES, INPUTS))
    params = Net().init(KEY, x)
    Net().apply(params, x)
    leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
    del params
    gc.collect()
    assert [leaf() for leaf in leaves] == [None] * len(leaves)
