"""Many devices: the same masks, and no more exchange than linen's layers need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import snn_dropout.nnx as sdn
from tests.compiled import collectives
from tests.depth import cases
from tests.nnx.catalogue import KEY, holds_nothing, masks_of
from tests.test_devices import KINDS, mesh_of, place

every_kind = cases("kind", KINDS, short=KINDS[:1], ids=lambda kind: kind.name)


def model():
    return nnx.Sequential(
        sdn.Dropout(0.3),
        sdn.DropConnectLinear(6, 40, p=0.3, invariant=True, rngs=nnx.Rngs(0)),
    )


@every_kind
def test_masks_are_those_of_one_device_and_lie_where_the_input_does(kind):
    x_seq = jax.random.normal(KEY, (3, 16, 6))
    alone = model()
    sdn.init_masks(alone, x_seq[0], key=KEY)
    expected = masks_of(alone)
    mesh = mesh_of(8, kind)
    with jax.set_mesh(mesh):
        spread = model()
        nnx.update(spread, jax.tree.map(lambda p: place(p, mesh), nnx.state(spread)))
        # Outside of jit types of automatic axes say nothing: arrays do.
        sdn.init_masks(spread, place(x_seq, mesh, 1)[0], key=KEY)
        found = nnx.to_flat_state(nnx.state(spread, sdn.HeldMask))
    assert {path for path, _ in found} == expected.keys()
    for path, variable in found:
        mask = variable.get_value()
        np.testing.assert_array_equal(mask, expected[path])
        rows = NamedSharding(mesh, PartitionSpec("data"))
        assert mask.sharding.is_equivalent_to(rows, mask.ndim), path


def training_step(graphdef, rest):
    def step(params, x_seq, key):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            return (sdn.simulate(model, x_seq, key=key) ** 2).mean()

        return jax.value_and_grad(loss)(params)

    return jax.jit(step)


@pytest.mark.exhaustive
@every_kind
def test_a_data_parallel_step_is_that_of_one_device_and_exchanges_only_gradients(kind):
    x_seq = jax.random.normal(KEY, (3, 16, 6))
    graphdef, params, rest = nnx.split(model(), nnx.Param, ...)
    expected = training_step(graphdef, rest)(params, x_seq, KEY)
    mesh = mesh_of(8, kind)
    with jax.set_mesh(mesh):
        spread = jax.tree.map(lambda p: place(p, mesh), params)
        rest = jax.tree.map(lambda p: place(p, mesh), rest)
        step = training_step(graphdef, rest)
        compiled = step.lower(spread, place(x_seq, mesh, 1), KEY).compile()
        found = compiled(spread, place(x_seq, mesh, 1), KEY)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    sent = collectives(compiled)
    assert sent == {"all-reduce": 6 * 40 + 40 + 1}


@every_kind
def test_dropout_needs_no_exchange_between_devices(kind):
    layer, mesh = sdn.Dropout(0.3), mesh_of(8, kind)
    with jax.set_mesh(mesh):
        x_seq = place(jnp.ones((3, 16, 40)), mesh, 1)
        run = jax.jit(lambda x_seq, key: sdn.simulate(layer, x_seq, key=key))
        compiled = run.lower(x_seq, KEY).compile()
        y_seq = compiled(x_seq, KEY)
        np.testing.assert_array_equal(sdn.simulate(layer, x_seq, key=KEY), y_seq)
    assert collectives(compiled) == {}
    np.testing.assert_array_equal(
        y_seq, sdn.simulate(layer, jnp.ones((3, 16, 40)), key=KEY)
    )
    assert holds_nothing(layer)


def test_shard_map_needs_a_key_for_each_shard():
    layer, mesh = sdn.Dropout(0.5), mesh_of(4, AxisType.Auto)

    def local(x_seq, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        return sdn.simulate(layer, x_seq, key=key)

    split = PartitionSpec(None, "data")
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split
    )
    ones = jnp.ones((2, 8, 16))
    shards = jnp.split(jax.jit(mapped)(ones, KEY), 4, 1)
    for index, shard in enumerate(shards):
        key = jax.random.fold_in(KEY, index)
        np.testing.assert_array_equal(shard, sdn.simulate(layer, ones[:, :2], key=key))
