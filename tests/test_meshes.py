"""Meshes of several axes: the batch over one or two of them, features over another."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import snn_dropout as sd
from tests.compiled import collectives
from tests.depth import cases
from tests.forms import of_accelerators

KEY = jax.random.key(5)
STEPS, EXAMPLES, FEATURES, OUTPUTS = 4, 8, 64, 40
X_SEQ = jax.random.normal(KEY, (STEPS, EXAMPLES, FEATURES)) + 3
AXES = "data", "more", "model"
every_kind = cases(
    "kind",
    [AxisType.Auto, AxisType.Explicit],
    short=[AxisType.Explicit],
    ids=lambda kind: kind.name,
)

# Where steps, examples and features lie.
SPLIT_FEATURES = (None, "data", "model")
BATCH_OVER_TWO = (None, ("data", "more"), None)
ALL_AXES = (None, ("data", "more"), "model")
FEATURES_OVER_TWO = ("data", None, ("more", "model"))
LAYOUTS = [SPLIT_FEATURES, BATCH_OVER_TWO, ALL_AXES, FEATURES_OVER_TWO]


def mesh_of(kind):
    return jax.make_mesh((2, 2, 2), AXES, axis_types=(kind,) * 3)


def place(x, mesh, layout):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*layout)))


def run(layer, variables, x_seq):
    return layer.apply(variables, x_seq, rngs={"dropout": KEY}, mutable=["state"])


def with_gradient(layer, params, x_seq):
    """Output, masks, and the gradients of a loss that knows each output."""

    def loss(params, x_seq):
        y_seq, updated = run(layer, {"params": params}, x_seq)
        return (y_seq**2).sum(), (y_seq, updated.get("state", {}))

    grads, (y_seq, state) = jax.grad(loss, (0, 1), has_aux=True)(params, x_seq)
    return y_seq, state, grads


TRAINING = {"step_mode": "m", "deterministic": False}
DROPOUTS = {
    "bits of a word": sd.Dropout(0.5, **TRAINING),
    "comparisons": sd.Dropout(0.3, **TRAINING),
    "paths": sd.DropPath(0.5, **TRAINING),
}


def check_dropout(layer, found, x):
    y_seq, mask = found
    alone, updated = run(layer, {}, X_SEQ)
    np.testing.assert_array_equal(mask, updated["state"]["mask"])
    np.testing.assert_array_equal(y_seq, alone)
    assert y_seq.sharding.is_equivalent_to(x.sharding, 3)
    axes = zip(x.sharding.spec[1:], mask.shape, strict=True)
    spec = PartitionSpec(*(axis if length > 1 else None for axis, length in axes))
    assert mask.sharding.is_equivalent_to(NamedSharding(x.sharding.mesh, spec), 2)


@every_kind
def test_masks_of_dropout_lie_as_the_input_does_and_nothing_is_exchanged(kind):
    """Inside of jit, the gradient included; all layers and layouts in one program."""
    mesh = mesh_of(kind)
    inputs = [place(X_SEQ, mesh, layout) for layout in LAYOUTS]

    def everything(inputs):
        return {
            name: [with_gradient(layer, {}, x) for x in inputs]
            for name, layer in DROPOUTS.items()
        }

    program = jax.jit(everything).lower(inputs).compile()
    assert collectives(program) == {}
    for name, results in program(inputs).items():
        for x, (y_seq, state, grads) in zip(inputs, results, strict=True):
            check_dropout(DROPOUTS[name], (y_seq, state["mask"]), x)
            assert grads[1].sharding.is_equivalent_to(x.sharding, 3)


@every_kind
@cases("layout", [SPLIT_FEATURES, ALL_AXES], ids=str, short=[ALL_AXES])
def test_masks_of_dropout_lie_as_the_input_does_outside_of_jit(kind, layout):
    x = place(X_SEQ, mesh_of(kind), layout)
    for layer in DROPOUTS.values():
        y_seq, updated = run(layer, {}, x)
        check_dropout(layer, (y_seq, updated["state"]["mask"]), x)


CONNECTIONS = {
    name: sd.DropConnectLinear(
        FEATURES, OUTPUTS, activation=None, invariant=name == "held", **TRAINING
    )
    for name in ("fresh", "held")
}
PARAMS = {
    "kernel": jax.random.normal(jax.random.key(1), (FEATURES, OUTPUTS)) / 8,
    "bias": jnp.ones(OUTPUTS),
}


def connections(params, x_seq):
    return {
        name: with_gradient(layer, params, x_seq) for name, layer in CONNECTIONS.items()
    }


@pytest.fixture(scope="module")
def alone():
    return jax.jit(connections)(PARAMS, X_SEQ)


def check_connections(found, alone):
    for name, (y_seq, state, grads) in found.items():
        chex.assert_trees_all_equal(state, alone[name][1])
        chex.assert_trees_all_close(
            (y_seq, grads), (alone[name][0], alone[name][2]), rtol=1e-4, atol=1e-4
        )


@every_kind
def test_connections_of_a_batch_over_two_axes_exchange_nothing_but_gradients(kind, alone):
    check_connections_of_a_batch(kind, alone)


@pytest.mark.exhaustive
@every_kind
def test_nor_does_the_form_of_accelerators(kind, alone):
    with of_accelerators():
        check_connections_of_a_batch(kind, alone)


def check_connections_of_a_batch(kind, alone):
    mesh = mesh_of(kind)
    params = place(PARAMS, mesh, ())
    x_seq = place(X_SEQ, mesh, BATCH_OVER_TWO)
    program = jax.jit(connections).lower(params, x_seq).compile()
    found = program(params, x_seq)
    check_connections(found, alone)
    size = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert collectives(program) == {"all-reduce": size * len(CONNECTIONS)}
    for mask in jax.tree.leaves(found["held"][1]):
        spec = PartitionSpec(("data", "more"), *[None] * (mask.ndim - 1))
        assert mask.sharding.is_equivalent_to(NamedSharding(mesh, spec), mask.ndim)


@pytest.mark.exhaustive
def test_connections_of_split_features_gather_no_array(alone):
    """The devices that share an example add up their parts of the products."""
    mesh = mesh_of(AxisType.Auto)
    params, x_seq = place(PARAMS, mesh, ()), place(X_SEQ, mesh, ALL_AXES)
    program = jax.jit(connections).lower(params, x_seq).compile()
    check_connections(program(params, x_seq), alone)
    assert not {"all-gather", "all-to-all"} & collectives(program).keys()


@every_kind
def test_connections_outside_of_jit_are_the_same(kind, alone):
    """Where a sharding is a property of the array: its batch's alone is that of masks."""
    mesh = mesh_of(kind)
    params = place(PARAMS, mesh, ())
    layouts = [BATCH_OVER_TWO]
    if kind == AxisType.Auto:  # explicit axes leave no product of split features
        layouts.append(SPLIT_FEATURES)
    for layout in layouts:
        x_seq = place(X_SEQ, mesh, layout)
        for name, layer in CONNECTIONS.items():
            y_seq, updated = run(layer, {"params": params}, x_seq)
            np.testing.assert_allclose(y_seq, alone[name][0], rtol=1e-4, atol=1e-4)
            state = updated.get("state", {})
            chex.assert_trees_all_equal(state, alone[name][1])
            for mask in state.values():
                spec = PartitionSpec(layout[1], *[None] * (mask.ndim - 1))
                assert mask.sharding.is_equivalent_to(NamedSharding(mesh, spec), mask.ndim)
