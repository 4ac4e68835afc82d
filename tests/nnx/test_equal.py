"""The law that carries all others over: NNX gives what linen gives, bit for bit.

What the laws of linen say of masks, outputs and gradients, they say of these layers too.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests.depth import cases
from tests.laws.catalogue import ROWS, every
from tests.nnx import catalogue
from tests.nnx.catalogue import KEY, RNGS, has_twin, holds_nothing, masks_of, twin

TRAIN = {"deterministic": False, "rngs": RNGS}
every_held_row = every(
    ROWS,
    lambda row: row.held and has_twin(row),
    ("Dropout p=0.3", "Dropout2d NCHW", "DropConnect invariant"),
)


def assert_equal(actual, desired):
    jax.tree.map(np.testing.assert_array_equal, actual, desired)


def linen_run(row):
    """The simulation of linen: output, masks, and gradients of input and parameters."""
    x_seq = row.x_seq()
    layer, variables = row.layer(), row.variables(x_seq[0])

    @jax.jit
    def run(params, x_seq):
        y_seq, updated = sd.simulate(layer, {**variables, "params": params}, x_seq, **TRAIN)
        state = updated["state"]
        return (y_seq**2 * jnp.arange(y_seq.size).reshape(y_seq.shape)).sum(), (
            y_seq,
            {name: state[name] for name in (*row.leaves, "mask_p") if name in state},
        )

    params = variables.get("params", {})
    (_, (y_seq, masks)), grads = jax.value_and_grad(run, (0, 1), has_aux=True)(
        params, x_seq
    )
    return x_seq, params, y_seq, masks, grads


@every_held_row
def test_simulate_gives_the_masks_outputs_and_gradients_of_linen(row):
    x_seq, params, y_seq, masks, (of_params, of_input) = linen_run(row)
    model = twin(row.layer(), params)
    graphdef, trained, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(trained, x_seq):
        model = nnx.merge(graphdef, trained, rest, copy=True)
        y_seq = sdn.simulate(model, x_seq, key=KEY)
        return (y_seq**2 * jnp.arange(y_seq.size).reshape(y_seq.shape)).sum(), y_seq

    (_, found), grads = jax.value_and_grad(run, (0, 1), has_aux=True)(trained, x_seq)
    assert_equal(found, y_seq)
    assert_equal(nnx.to_pure_dict(grads[0]), dict(of_params))
    assert_equal(grads[1], of_input)
    with sdn.simulation(model, x_seq[0], key=KEY):
        held = masks_of(model)
        assert_equal({name: held[name,] for name in masks}, masks)
    assert holds_nothing(model)


@every_held_row
def test_a_loop_and_mode_m_give_what_simulate_gives(row):
    x_seq, params, y_seq, masks, _ = linen_run(row)
    tolerance = {} if row.exact else {"rtol": 1e-5, "atol": 1e-6}
    single, multi = twin(row.layer(), params), twin(row.layer("m"), params)
    step = nnx.jit(lambda model, x: model(x))
    with sdn.simulation(single, x_seq[0], key=KEY):
        loop = jnp.stack([step(single, x) for x in x_seq])
    np.testing.assert_allclose(loop, y_seq, **tolerance)
    with sdn.simulation(multi, x_seq, key=KEY):
        held = masks_of(multi)
        assert_equal({name: held[name,] for name in masks}, masks)
        np.testing.assert_allclose(multi(x_seq), y_seq, **tolerance)
    # A key in the call is that of the whole simulation.
    alone = twin(row.layer("m"), params)
    np.testing.assert_allclose(alone(x_seq, rngs=KEY), y_seq, **tolerance)
    assert holds_nothing(alone)


@every(ROWS, lambda row: "spiking" not in row.name and has_twin(row))
def test_inference_is_that_of_linen(row):
    x_seq = row.x_seq()
    fields = {"inference": "analytic"} if "DropConnect" in row.name else {}
    layer, variables = row.layer(**fields), row.variables(x_seq[0])
    expected, _ = jax.jit(lambda x: sd.simulate(layer, variables, x, deterministic=True))(
        x_seq
    )
    model = twin(layer, variables.get("params"))
    model.eval()
    found = nnx.jit(lambda model, x: sdn.simulate(model, x))(model, x_seq)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if "DropConnect" not in row.name:
        assert model(x_seq[0]) is x_seq[0] or (model(x_seq[0]) == x_seq[0]).all()


@every(ROWS, has_twin)
@cases("p", [0.0, 1.0], short=[1.0])
def test_limits_of_p_are_those_of_linen(row, p):
    x_seq = row.x_seq()
    layer = row.make(p=p, activation=None) if "Connect" in row.name else row.make(p=p)
    variables = layer.init(jax.random.key(2), x_seq[0], deterministic=True)
    expected, _ = sd.simulate(layer, variables, x_seq, **TRAIN)
    model = twin(layer, variables.get("params"))
    np.testing.assert_allclose(sdn.simulate(model, x_seq, key=KEY), expected, rtol=1e-5)
    sdn.init_masks(model, x_seq[0], key=KEY)
    static = p == 0 and not row.array
    assert holds_nothing(model) == (static or not row.held), "a static 0 stores nothing"


def test_paths_are_written_as_linen_writes_them():
    x = jnp.ones((3, 6))
    linen = catalogue.Linear()
    params = linen.init(jax.random.key(2), x)["params"]
    state = sd.init_state(linen, {"params": params}, x, rngs=RNGS)
    model = catalogue.Stack(rngs=nnx.Rngs(0))
    sdn.init_masks(model, x, key=KEY)
    found = {}
    for path, mask in masks_of(model).items():
        if path[-1] != "mask":
            continue
        *above, last = map(str, path[:-1])
        names = (
            (above[0], f"layers_{last}")
            if above[0] == "sequential"
            else ("_".join((*above, last)),)
        )
        found[names] = mask
    expected = {
        path[:-1]: leaf
        for path, leaf in flax.traverse_util.flatten_dict(state).items()
        if path[-1] == "mask"
    }
    assert found.keys() == expected.keys()
    for names, mask in found.items():
        np.testing.assert_array_equal(mask, expected[names])
    assert len({mask.tobytes() for mask in found.values()}) == len(found)


def test_a_raw_key_is_as_good_as_a_typed_one():
    x = jnp.ones((4, 8))
    layer = sdn.Dropout(0.5)
    found = []
    for key in (jax.random.key(7), jax.random.PRNGKey(7)):
        sdn.init_masks(layer, x, key=key)
        found.append(masks_of(layer))
    assert_equal(*found)


@pytest.mark.exhaustive
def test_a_training_is_that_of_linen_bit_for_bit():
    """Ten steps: losses, parameters, and the gradients that lead there."""
    x_seq = jax.random.normal(jax.random.key(1), (4, 8, 6))
    target = jax.random.normal(jax.random.key(4), (8, 4))
    linen, params = catalogue.linen_net(x_seq[0])
    model = catalogue.net(params)
    tx = optax.sgd(0.5)

    def error(y_seq):
        return ((y_seq.mean(0) - target) ** 2).mean()

    @jax.jit
    def linen_step(params, opt_state, key):
        def loss(params):
            rngs = {"dropout": key}
            y_seq, _ = sd.simulate(linen, {"params": params}, x_seq, train=True, rngs=rngs)
            return error(y_seq)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    graphdef, trained, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def nnx_step(trained, opt_state, key):
        def loss(trained):
            model = nnx.merge(graphdef, trained, rest, copy=True)  # at rest
            return error(sdn.simulate(model, x_seq, key=key))

        value, grads = jax.value_and_grad(loss)(trained)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(trained, updates), opt_state, value

    theirs, ours = tx.init(params), tx.init(trained)
    losses = []
    for number in range(10):
        key = jax.random.fold_in(KEY, number)
        params, theirs, expected = linen_step(params, theirs, key)
        trained, ours, found = nnx_step(trained, ours, key)
        assert found == expected
        losses.append(float(found))
    assert len(set(losses)) == 10
    assert_equal(nnx.to_pure_dict(trained), dict(params))


def test_rows_have_twins():
    """Rows of fields that only linen has are left out; these are not."""
    assert {row.name for row in ROWS if has_twin(row)} >= {
        *("Dropout", "Dropout p=0.3", "Dropout1d", "Dropout2d", "Dropout2d NCHW"),
        *("Dropout3d", "DropPath", "DropConnect fresh", "DropConnect invariant"),
        *("DropConnect without bias", "DropConnect spiking"),
        *("Dropout array p", "Dropout p per unit", "DropConnect tokens"),
    }
