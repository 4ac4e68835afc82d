"""Many devices in one process: the same numbers, and no more exchange than needed."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import snn_dropout as sd
from snn_dropout import functional
from tests.compiled import collectives
from tests.depth import cases
from tests.laws.catalogue import every_dropout
from tests.neurons import LIF

KEY = jax.random.key(5)
KINDS = [AxisType.Auto, AxisType.Explicit]
every_kind = cases("kind", KINDS, short=[AxisType.Explicit], ids=lambda kind: kind.name)

every_axis = pytest.mark.parametrize("axis", [1, -1], ids=["batch", "feature"])


def mesh_of(devices, kind):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices]
    )


def spec_of(ndim, axis):
    return PartitionSpec(*("data" if i == axis % ndim else None for i in range(ndim)))


def place(x, mesh, axis=None):
    """Puts an array on the devices of a mesh, split along an axis or whole."""
    spec = PartitionSpec() if axis is None else spec_of(x.ndim, axis)
    return jax.device_put(x, NamedSharding(mesh, spec))


def run(layer, x_seq):
    """All steps at once: the output, and the mask."""
    y, updated = layer.apply(
        {}, x_seq, deterministic=False, rngs={"dropout": KEY}, mutable=["state"]
    )
    return y, updated["state"]["mask"]


def stepped(layer, x_seq):
    """The same step by step, the mask carried."""
    rngs = {"dropout": KEY}
    y, updated = sd.simulate(layer, {}, x_seq, deterministic=False, rngs=rngs)
    return y, updated["state"]["mask"]


# Dropout of units, channels and paths.


def check_layout(way, layer, x_seq, axis, mesh):
    """Mask and output are those of one device, and lie where the input does."""
    y_alone, mask_alone = way(layer, x_seq)
    with jax.set_mesh(mesh):
        x = place(x_seq, mesh, axis)
        y, mask = jax.jit(partial(way, layer))(x)
    np.testing.assert_array_equal(mask, mask_alone)
    np.testing.assert_array_equal(y, y_alone)
    assert y.sharding.is_equivalent_to(x.sharding, x.ndim)
    shared = mask.shape[axis % x.ndim - 1] == 1
    expected = PartitionSpec() if shared else PartitionSpec(*spec_of(x.ndim, axis)[1:])
    assert mask.sharding.is_equivalent_to(NamedSharding(mesh, expected), mask.ndim)


@every_dropout
@every_kind
@every_axis
def test_masks_are_those_of_one_device_and_lie_where_the_input_does(row, kind, axis):
    x_seq = row.x_seq((8, *row.shape[1:-1], 8))
    check_layout(run, row.layer("m"), x_seq, axis, mesh_of(8, kind))


@every_kind
@every_axis
@cases("devices", [1, 2, 4, 8], short=[2])
def test_masks_are_the_same_for_any_number_of_devices(kind, axis, devices):
    x_seq = jax.random.normal(KEY, (3, 16, 40))
    check_layout(stepped, sd.Dropout(0.3), x_seq, axis, mesh_of(devices, kind))


@every_dropout
@every_kind
@every_axis
def test_dropout_needs_no_exchange_between_devices(row, kind, axis):
    mesh = mesh_of(8, kind)
    x_seq = place(row.x_seq((8, *row.shape[1:-1], 8)), mesh, axis)
    assert collectives(compiled_with_gradient(run, row.layer("m"), x_seq, mesh)) == {}


@every_kind
@every_axis
def test_steps_of_dropout_need_no_exchange_between_devices(kind, axis):
    mesh = mesh_of(8, kind)
    x_seq = place(jnp.ones((3, 16, 40)), mesh, axis)
    program = compiled_with_gradient(stepped, sd.Dropout(0.3), x_seq, mesh)
    assert collectives(program) == {}


def compiled_with_gradient(way, layer, x_seq, mesh):
    def forward_and_gradient(x_seq, dy):
        y, pullback, mask = jax.vjp(lambda x: way(layer, x), x_seq, has_aux=True)
        return y, mask, pullback(dy)

    with jax.set_mesh(mesh):
        return jax.jit(forward_and_gradient).lower(x_seq, x_seq).compile()


def test_the_probe_sees_an_exchange():
    mesh = mesh_of(8, AxisType.Auto)
    x = place(jnp.ones((16, 3)), mesh, 0)
    total = jax.jit(lambda x: x.sum(0)).lower(x).compile()
    assert collectives(total) == {"all-reduce": 3}
    whole = NamedSharding(mesh, PartitionSpec())
    gathered = jax.jit(lambda x: x, out_shardings=whole).lower(x).compile()
    assert collectives(gathered) == {"all-gather": 48}


# Lost connections.

STEPS, EXAMPLES, INPUTS, OUTPUTS = 3, 16, 6, 40
SIZE = INPUTS * OUTPUTS + OUTPUTS


def connections(**fields):
    return sd.DropConnectLinear(INPUTS, OUTPUTS, samples_num=20, **fields)


def whole(layer, params, x_seq, key, deterministic):
    rngs = {"dropout": key}
    variables = {"params": params}
    multi = layer.clone(step_mode="m")
    return multi.apply(variables, x_seq, deterministic, rngs=rngs, mutable=["state"])


def simulated(layer, params, x_seq, key, deterministic):
    rngs = {"dropout": key}
    return sd.simulate(layer, {"params": params}, x_seq, deterministic, rngs=rngs)


MODELS = {
    "fresh": (whole, connections(p=0.3), False),
    "fresh, steps": (simulated, connections(), False),
    "invariant": (whole, connections(invariant=True, p=0.3), False),
    "invariant, steps": (simulated, connections(invariant=True, use_bias=False), False),
    "spiking": (simulated, connections(invariant=True, activation=LIF()), False),
    "sampled": (whole, connections(), True),
    "sampled spiking": (simulated, connections(activation=LIF()), True),
    "analytic": (whole, connections(inference="analytic"), True),
}
every_model = cases(
    "model",
    MODELS.values(),
    short=[MODELS["fresh"]],
    ids=MODELS,
)


def training_step(model):
    """A step of gradient descent: loss, parameters, state."""
    way, layer, deterministic = model

    def step(params, x_seq, key):
        def loss(params):
            y, updated = way(layer, params, x_seq, key, deterministic)
            return ((y - 0.25) ** 2).mean(), updated.get("state", {})

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jax.tree.map(lambda w, grad: w - grad, params, grads), state

    return step


def problem(model):
    x_seq = jax.random.normal(KEY, (STEPS, EXAMPLES, INPUTS))
    return model[1].init(KEY, x_seq[0], True)["params"], x_seq


@pytest.mark.optimised
@every_model
@every_kind
def test_a_data_parallel_step_is_that_of_one_device_and_exchanges_only_gradients(
    model, kind
):
    check_step(model, mesh_of(8, kind))


@every_kind
@cases("devices", [1, 2, 4], short=[1])
@pytest.mark.exhaustive
def test_a_step_is_the_same_for_any_number_of_devices(kind, devices):
    check_step(MODELS["invariant"], mesh_of(devices, kind))


def check_step(model, mesh):
    _, layer, deterministic = model
    params, x_seq = problem(model)
    alone = jax.jit(training_step(model)).lower(params, x_seq, KEY).compile()
    value, updated, state = alone(params, x_seq, KEY)
    with jax.set_mesh(mesh):
        arguments = place_tree(params, mesh), place(x_seq, mesh, 1), KEY
        parallel = jax.jit(training_step(model)).lower(*arguments).compile()
        others = parallel(*arguments)
    np.testing.assert_allclose(others[0], value, rtol=1e-6)
    chex.assert_trees_all_close(others[1], updated, rtol=1e-5, atol=1e-6)

    for name in sorted({"kernel_mask", "bias_mask"} & state.keys()):
        mask, expected = others[2][name], NamedSharding(mesh, spec_of(2, 0))
        np.testing.assert_array_equal(mask, state[name])
        assert mask.sharding.is_equivalent_to(expected, mask.ndim)

    if mesh.size > 1:
        loss, size = 1, sum(leaf.size for leaf in jax.tree.leaves(params))
        sent = collectives(parallel)
        assert sent.keys() == {"all-reduce"}
        # In inference a parameter has two gradients, by the mean and by the variance.
        most = 2 * size if deterministic else size
        assert size + loss <= sent["all-reduce"] <= most + loss
        if not deterministic and model[0] is whole:
            # Each device draws the connections of its own examples alone.
            words = EXAMPLES * (1 if layer.invariant else STEPS)
            assert f"u32[{words},{INPUTS}," in alone.as_text()
            assert f"u32[{words},{INPUTS}," not in parallel.as_text()


def place_tree(tree, mesh):
    return jax.tree.map(lambda leaf: place(leaf, mesh), tree)


@pytest.mark.parametrize("name", ["sampled", "sampled spiking", "analytic"])
@every_kind
def test_inference_of_connections_needs_no_exchange_between_devices(name, kind):
    way, layer, deterministic = MODELS[name]
    params, x_seq = problem(MODELS[name])
    mesh = mesh_of(8, kind)
    arguments = place_tree(params, mesh), place(x_seq, mesh, 1), KEY
    with jax.set_mesh(mesh):
        infer = jax.jit(lambda *args: way(layer, *args, deterministic))
        assert collectives(infer.lower(*arguments).compile()) == {}


@pytest.mark.exhaustive
def test_connections_outside_of_jit_and_with_split_features_are_the_same():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    model = MODELS["invariant"]
    params, x_seq = problem(model)
    step = training_step(model)
    expected = jax.jit(step)(params, x_seq, KEY)
    outside = step(place_tree(params, mesh), place(x_seq, mesh, 1), KEY)
    chex.assert_trees_all_close(outside, expected, rtol=1e-5, atol=1e-6)
    spec = PartitionSpec(None, "data", "model")
    features = jax.device_put(x_seq, NamedSharding(mesh, spec))
    split = jax.jit(step)(place_tree(params, mesh), features, KEY)
    chex.assert_trees_all_close(split, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_that_the_mesh_does_not_divide_is_still_right():
    """Twelve examples on four devices of a mesh of eight."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    model = MODELS["invariant"]
    params, x_seq = problem(model)
    x_seq = x_seq[:, :12]
    step = jax.jit(training_step(model))
    found = step(place_tree(params, mesh), place(x_seq, mesh, 1), KEY)
    expected = step(params, x_seq, KEY)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


# Inside of `shard_map` every device runs a program of its own, on a key of its own.


class Masked(nn.Module):
    """Held masks of both kinds of layer, to be seen in the output."""

    @nn.compact
    def __call__(self, x):
        linear = sd.DropConnectLinear(
            x.shape[-1], 40, invariant=True, deterministic=False, activation=None
        )
        return jnp.concatenate([sd.Dropout(0.5, deterministic=False)(x), linear(x)], -1)


@pytest.mark.exhaustive
@every_kind
def test_networks_side_by_side_stay_on_their_devices(kind):
    """On one device they take turns, which here would bring each to every device."""
    keys = jax.random.split(KEY, 3)
    x = jax.random.normal(keys[0], (8, 3, 1, 16))
    kernels = jax.random.normal(keys[1], (8, 16, 40))
    words = functional.draw_bits(keys[2], (8, 3, 16, 40), 0.5)

    def gradient(x, kernel, words):
        product = partial(functional.masked_matmul, kernel_mask=words)
        return jax.grad(lambda x, kernel: (product(x, kernel) ** 2).sum(), (0, 1))(
            x, kernel
        )

    alone = [gradient(*of_one) for of_one in zip(x, kernels, words, strict=True)]
    mesh = mesh_of(8, kind)
    with jax.set_mesh(mesh):
        placed = [place(array, mesh, 0) for array in (x, kernels, words)]
        program = jax.jit(jax.vmap(gradient)).lower(*placed).compile()
        together = program(*placed)
    assert not collectives(program)
    expected = jax.tree.map(lambda *of: jnp.stack(of), *alone)
    chex.assert_trees_all_close(together, expected, rtol=1e-5)


def test_shard_map_needs_a_key_for_each_shard():
    x = jnp.ones((EXAMPLES, INPUTS))
    params = Masked().init(KEY, x)["params"]
    mesh, batch = mesh_of(4, AxisType.Auto), PartitionSpec("data")

    def one_key(x, key):
        y, _ = Masked().apply(
            {"params": params}, x, rngs={"dropout": key}, mutable=["state"]
        )
        return y

    def own_key(x, key):
        return one_key(x, jax.random.fold_in(key, jax.lax.axis_index("data")))

    def shards_of(function):
        specs = batch, PartitionSpec()
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=batch)
        return jnp.split(jax.jit(mapped)(x, KEY), 4)

    first, *others = shards_of(one_key)
    for other in others:
        np.testing.assert_array_equal(other, first)  # the same masks on all devices

    shards = shards_of(own_key)
    for index, shard in enumerate(shards):
        by_hand = jax.jit(one_key)(x[:4], jax.random.fold_in(KEY, index))
        np.testing.assert_allclose(shard, by_hand, rtol=1e-5, atol=1e-6)
        for other in shards[:index]:
            assert (shard != other).mean() > 0.3


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", [MODELS["fresh"], MODELS["spiking"]])
def test_gradients_inside_of_shard_map_are_added_up(model):
    way, layer, deterministic = model
    params, x_seq = problem(model)
    x_seq = x_seq[:2]
    mesh = mesh_of(4, AxisType.Auto)

    def loss(params, x_seq, key):
        return (way(layer, params, x_seq, key, deterministic)[0] ** 2).mean()

    def local(params, x_seq, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        return jax.grad(lambda p: jax.lax.pmean(loss(p, x_seq, key), "data"))(params)

    specs = PartitionSpec(), PartitionSpec(None, "data"), PartitionSpec()
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    compiled = jax.jit(mapped).lower(params, x_seq, KEY).compile()
    by_hand = [
        jax.grad(loss)(params, x, jax.random.fold_in(KEY, index))
        for index, x in enumerate(jnp.split(x_seq, 4, 1))
    ]
    expected = jax.tree.map(lambda *grads: sum(grads) / 4, *by_hand)
    found = compiled(place_tree(params, mesh), place(x_seq, mesh, 1), place(KEY, mesh))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    assert collectives(compiled) == {"all-reduce": SIZE}


# The functions below.


@every_kind
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_bits_are_drawn_where_they_are_asked_for(kind, p):
    mesh = mesh_of(8, kind)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    explicit = sharding if kind == AxisType.Explicit else None

    def draw(key):
        return functional.draw_bits(key, (16, 5, 40), p, out_sharding=explicit)

    with jax.set_mesh(mesh):
        compiled = jax.jit(draw, out_shardings=sharding).lower(KEY).compile()
        words = compiled(KEY)
    np.testing.assert_array_equal(words, functional.draw_bits(KEY, (16, 5, 40), p))
    assert words.sharding.is_equivalent_to(sharding, 3)
    assert collectives(compiled) == {}
    assert "u32[16,5,2]" not in compiled.as_text()


def test_each_device_draws_the_words_of_its_own_rows():
    """And those alone, along every axis but the last, where rows are packed to words."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    for layout, shape, p, own in (
        (("data", "model"), (16, 6, 64), 0.5, "u32[4,3,2,32]"),
        ((None, "data"), (16, 8, 64), 0.5, "u32[16,2,2,32]"),
        (("model", None, "data"), (16, 8, 60), 0.3, "u32[8,8,15]"),
    ):
        sharding = NamedSharding(mesh, PartitionSpec(*layout))
        draw = partial(functional.draw_mask, shape=shape, p=p)
        with jax.set_mesh(mesh):
            compiled = jax.jit(partial(draw, out_sharding=sharding)).lower(KEY).compile()
            mask = compiled(KEY)
        np.testing.assert_array_equal(mask, draw(KEY))
        assert mask.sharding.is_equivalent_to(sharding, 3)
        assert own in compiled.as_text(), layout
