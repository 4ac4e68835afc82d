"""The exact expectation takes what is elementwise, and tells what mixes numbers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import snn_dropout as sd
from snn_dropout import functional
from snn_dropout.functional import _elementwise
from snn_dropout.functional._programs import trace
from tests.depth import cases
from tests.neurons import spike

KEY = jax.random.key(0)
T, N, O = SHAPE = 3, 4, 6  # noqa: E741
MEAN = jax.random.normal(KEY, SHAPE)
VARIANCE = jnp.full(SHAPE, 0.25)
REFUSED = r"`activation` must be elementwise.*`inference='sample'`"


@jax.custom_vjp
def spike_by_vjp(z):
    return (z > 0).astype(z.dtype)


spike_by_vjp.defvjp(lambda z: (spike_by_vjp(z), z), lambda z, g: (g * jnp.exp(-z * z),))

slopes = jnp.linspace(0.1, 0.6, O)  # one a feature
table = jnp.array([0.0, 1.0, 4.0])


def last(array, z):
    """The array with its axis as the last one of as many as `z` has."""
    return array.reshape((1,) * (z.ndim - 1) + (-1,))


def newton(z):
    def step(loop):
        x, count = loop
        return x - (x**3 + x - z) / (3 * x**2 + 1), count + 1

    return jax.lax.while_loop(lambda loop: loop[1] < 8, step, (z, 0))[0]


def newton_of_one(z):
    def far(x):
        return jnp.abs(x**3 + x - z) > 1e-3

    return jax.lax.while_loop(far, lambda x: x - (x**3 + x - z) / (3 * x**2 + 1), z)


def each(function):
    return jax.vmap(jax.vmap(jax.vmap(function)))


SEEN = {
    "a lambda with constants": lambda z: 2 * jnp.sin(z) + 1,
    "by position": partial(nn.elu, 0.3),
    "a gain": lambda z: z * np.float32(2),
    "slopes of features": lambda z: jnp.where(z > 0, z, last(slopes, z) * z),
    "a custom jvp": lambda z: spike(z - 1),
    "a custom vjp": spike_by_vjp,
    "nested jit and checkpoint": jax.jit(jax.jit(jax.checkpoint(lambda z: jnp.tanh(z)))),
    "booleans": lambda z: z > 0,
    "whole numbers": lambda z: jnp.round(z).astype(int),
    "a constant": jnp.ones_like,
    "clip": lambda z: jnp.clip(z, -1, 1),
    "mish": lambda z: z * jnp.tanh(nn.softplus(z)),
    "gelu": nn.gelu,
    "straight through": lambda z: z + jax.lax.stop_gradient(jnp.round(z) - z),
    "special functions": lambda z: jax.scipy.special.gammaln(jnp.abs(z) + 1),
    "a fixed loop": lambda z: jax.lax.fori_loop(0, 3, lambda n, y: y * z + n, z),
    "a while loop": newton,
    "a branch": lambda z: jax.lax.cond(slopes[0] > 0, jnp.sin, jnp.cos, z),
    "a branch for each": each(lambda z: jax.lax.cond(z > 0, jnp.sin, jnp.cos, z)),
}
TRIED = {
    "piecewise": lambda z: jnp.piecewise(z, [z < 0, z > 1], [0.0, jnp.square, jnp.sin]),
    "select": lambda z: jnp.select([z < -1, z < 1], [-z, z**2], z),
    "interpolation": lambda z: jnp.interp(z, jnp.linspace(-3, 3, 9), jnp.arange(9.0)),
    "a table": lambda z: table[jnp.clip(z, 0, 2).astype(int)],
    "bumps": lambda z: jnp.exp(-((z[..., None] - last(table, z[..., None])) ** 2)).sum(-1),
    "powers": lambda z: jnp.stack([z, z**2, z**3], -1) @ table,
    "half of the features": lambda z: jnp.concatenate(
        [nn.relu(z[..., :3]), jnp.tanh(z[..., 3:])], -1
    ),
    "one feature": lambda z: z.at[..., 0].set(0.0),
    "flattened": lambda z: jax.vmap(jnp.sin)(z.ravel()).reshape(z.shape),
    "there and back": lambda z: jnp.roll(jnp.sin(jnp.roll(z, 1, -1)), -1, -1),
    "a map over time": lambda z: jax.lax.map(jnp.sin, z),
    "a loop for each": each(newton_of_one),
    "a callback": lambda z: jax.pure_callback(np.tanh, z, z, vmap_method="expand_dims"),
}
MIXED = {
    "softmax": nn.softmax,
    "softmax over time": partial(nn.softmax, axis=0),
    "log_softmax": nn.log_softmax,
    "jitted softmax": jax.jit(lambda z: nn.softmax(z)),
    "a closure": lambda z: 0.5 * nn.softmax(2 * z),
    "sort": jnp.sort,
    "standardize": nn.standardize,
    "the norm": lambda z: z / jnp.linalg.norm(z, axis=-1, keepdims=True),
    "a group norm": lambda z: (z.reshape(T, N, 2, 3) - z.mean()).reshape(SHAPE),
    "cumsum": lambda z: jnp.cumsum(z, -1),
    "cumsum over time": lambda z: jnp.cumsum(z, 0),
    "a sum over features": lambda z: z * z.sum(-1, keepdims=True),
    "a sum over examples": lambda z: z - z.sum(1, keepdims=True),
    "a sum over time": lambda z: z - z.sum(0, keepdims=True),
    "a sum over all": lambda z: z / (1 + jnp.abs(z).sum()),
    "a trace of others": lambda z: z + 1e-6 * z.sum(-1, keepdims=True),
    "the maximum": lambda z: jnp.exp(z - z.max()),
    "the winner": lambda z: jnp.where(z == z.max(-1, keepdims=True), z, 0.0),
    "two winners": lambda z: jnp.where(z >= jax.lax.top_k(z, 2)[0][..., 1:], z, 0.0),
    "one hot": lambda z: jax.nn.one_hot(jnp.argmax(z, -1), O),
    "a clipped norm": lambda z: z * jnp.minimum(1.0, 1e3 / jnp.linalg.norm(z)),
    "a limit for all": lambda z: jnp.where(jnp.any(jnp.abs(z) > 100), 0.0, z),
    "flipped features": lambda z: z[..., ::-1],
    "flipped time": lambda z: jnp.flip(z, 0),
    "rolled features": lambda z: jnp.roll(z, 1, -1),
    "rolled examples": lambda z: jnp.roll(z, 2, 1),
    "a permutation": lambda z: z[..., jnp.array([1, 0, 2, 3, 4, 5])],
    "another layout": lambda z: z.swapaxes(0, 1).reshape(SHAPE),
    "a neighbour": lambda z: z + jnp.pad(z, ((0, 0), (0, 0), (1, 0)))[..., :-1],
    "a matrix": lambda z: z @ jnp.ones((O, O)),
    "a pool": lambda z: z.reshape(T, N, 2, 3).mean(-1).repeat(3, -1),
    "the spectrum": lambda z: jnp.fft.fft(z).real,
    "a scan over time": lambda z: jax.lax.scan(lambda c, x: (c + x, c + x), 0 * z[0], z)[1],
    "a map of softmax": lambda z: jax.lax.map(nn.softmax, z),
    "a loop until all": lambda z: jax.lax.while_loop(
        lambda x: jnp.abs(x).sum() > 1, lambda x: x / 2, z
    ),
    "a branch for all": lambda z: jax.lax.cond(z.sum() > 0, jnp.sin, jnp.cos, z),
    "with its own gradient": jax.custom_jvp(lambda z: nn.softmax(z)),
}
MIXED["with its own gradient"].defjvp(lambda z, dz: (nn.softmax(*z), *dz))


def is_seen(activation):
    jaxpr = trace(activation, MEAN).program.jaxpr
    return _elementwise._is_seen(jaxpr, SHAPE, set(jaxpr.invars[-1:]))


def exact(activation, mean=MEAN, variance=VARIANCE):
    return functional.expected_activation(activation, mean, variance)


def checked(activation, mean, variance):
    """In place of the expectation, which takes longer to compile."""
    functional.expectation.check_expectation(activation, mean)
    return mean + variance


@cases("name", SEEN, short=lambda name: True)
def test_elementwise_activations_are_seen_to_be(name):
    assert is_seen(SEEN[name])


@cases("name", TRIED, short=lambda name: True)
def test_elementwise_activations_are_found_by_trying(name):
    functional.expectation.check_expectation(TRIED[name], MEAN)


@cases("name", MIXED, short=lambda name: True)
def test_what_mixes_numbers_raises(name):
    assert not is_seen(MIXED[name])
    with pytest.raises(ValueError, match=REFUSED):
        exact(MIXED[name])


@pytest.mark.parametrize(
    "activation", [*(TRIED[n] for n in ("bumps", "half of the features")), spike_by_vjp]
)
def test_the_expectation_of_what_is_taken_is_right(activation):
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    values = [
        activation(MEAN + jnp.sqrt(VARIANCE) * jnp.float32(node)) * weight
        for node, weight in zip(nodes, weights / weights.sum(), strict=True)
        if weight / weights.sum() > 1e-9
    ]
    np.testing.assert_allclose(
        jax.jit(partial(exact, activation))(), sum(values), atol=0.05
    )


# Where it is noticed.


def in_layer(activation, **fields):
    layer = sd.DropConnectLinear(5, O, activation=activation, **fields)
    return layer.init(KEY, jnp.ones((2, 5)), True)


def test_a_layer_refuses_at_init_what_it_could_not_infer_with():
    with pytest.raises(ValueError, match=REFUSED):
        in_layer(nn.softmax, inference="analytic")
    in_layer(nn.softmax)
    in_layer(nn.softmax, inference="analytic", p=0)  # infers nothing
    in_layer(TRIED["bumps"], inference="analytic")


def test_who_obeys_the_message_gets_the_expectation_of_the_whole_function():
    layer = sd.DropConnectLinear(5, O, activation=nn.softmax, samples_num=2000)
    x = jax.random.normal(KEY, (2, 5))
    variables = layer.init(KEY, x, True)
    y = layer.apply(variables, x, True, rngs={"dropout": KEY})
    params = variables["params"]
    mean, variance = functional.moments(x, params["kernel"], params["bias"], 0.5)
    z = mean[None] + jnp.sqrt(variance)[None] * jax.random.normal(KEY, (20000, *mean.shape))
    np.testing.assert_allclose(y, nn.softmax(z).mean(0), atol=0.02)


@pytest.mark.parametrize(
    "transform",
    [
        jax.jit,
        jax.vmap,
        lambda f: jax.grad(lambda mean, variance: f(mean, variance).sum()),
        lambda f: jax.jit(lambda *z: jax.lax.map(lambda z: f(*z), z)),
        lambda f: lambda *z: jax.jvp(f, z, z),
    ],
)
def test_it_is_noticed_under_transforms(transform):
    for taken in (SEEN["slopes of features"], TRIED["bumps"]):
        transform(partial(checked, taken))(MEAN, VARIANCE)
    with pytest.raises(ValueError, match=REFUSED):
        transform(partial(exact, nn.softmax))(MEAN, VARIANCE)


@pytest.mark.parametrize("jit", [True, False])
def test_it_is_noticed_of_closures_over_traced_arrays(jit):
    def gradient(function, at):
        taken = jax.grad(lambda a: exact(lambda z: function(z, a)).sum())
        return (jax.jit(taken) if jit else taken)(at)

    # The derivative of E[a z + (a z)^2] by a.
    powers = gradient(lambda z, a: jnp.stack([a * z, (a * z) ** 2], -1).sum(-1), 1.5)
    expected = MEAN.sum() + 2 * 1.5 * (MEAN**2 + VARIANCE).sum()
    np.testing.assert_allclose(powers, expected, rtol=1e-4)
    with pytest.raises(ValueError, match=REFUSED):
        gradient(lambda z, a: nn.softmax(a * z), 1.5)
    taken_in_order = jax.jit(lambda order: exact(lambda z: z[..., order]))
    with pytest.raises(ValueError, match=REFUSED):
        taken_in_order(jnp.arange(O))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit, AxisType.Manual])
def test_it_is_noticed_on_a_mesh(kind):
    axis_type = AxisType.Auto if kind == AxisType.Manual else kind
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
    split = PartitionSpec(None, "data")

    def run(function):
        if kind == AxisType.Manual:
            function = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split)
        with jax.set_mesh(mesh):
            arrays = jax.device_put((MEAN, VARIANCE), NamedSharding(mesh, split))
            return jax.jit(function)(*arrays)

    for taken in (SEEN["gelu"], TRIED["bumps"]):
        run(partial(checked, taken))
    with pytest.raises(ValueError, match=REFUSED):
        run(partial(exact, nn.softmax))


def test_it_is_noticed_of_arrays_of_unknown_and_of_large_size():
    unknown = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("t, n"), O), jnp.float32)
    large = jax.ShapeDtypeStruct((64, 512, O), jnp.float32)
    for z in (unknown, large):
        for taken in (SEEN["gelu"], TRIED["bumps"], TRIED["half of the features"]):
            functional.expectation.check_expectation(taken, z)
        with pytest.raises(ValueError, match=REFUSED):
            functional.expectation.check_expectation(nn.softmax, z)
    # One that fits its own batch only is tried as it is.
    each_its_own = jax.random.normal(KEY, large.shape)
    functional.expectation.check_expectation(
        lambda z: jnp.stack([z, each_its_own]).sum(0), large
    )


def test_nothing_is_left_of_it_in_the_program(monkeypatch):
    def text():
        return jax.jit(partial(exact, TRIED["bumps"])).lower(MEAN, VARIANCE).as_text()

    tried = text()
    monkeypatch.setattr(functional.expectation, "is_elementwise", lambda *_: True)
    assert text() == tried
