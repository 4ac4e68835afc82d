"""Faults that users of dropout have met elsewhere: each is impossible, loud, or documented.

`README.md` beside this file has the numbers, and the tests of the faults that are not here.
"""

import copy
import inspect
import re
from pathlib import Path

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import snn_dropout as sd
from snn_dropout import functional
from tests.depth import cases
from tests.laws.catalogue import (
    FEW,
    KINDS,
    a_few_rows,
    every,
    every_kind,
    every_kind_of_dropout,
)
from tests.laws.test_laws import RNGS, TRAIN, run
from tests.neurons import Net, loop

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def other(seed):
    return {"dropout": jax.random.key(seed)}


def test_the_table_has_every_fault_and_names_tests_that_exist():
    table = (HERE / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    numbers = [int(number) for number, _, _ in rows]
    assert numbers == list(range(1, 84))
    for number, _, answer in rows:
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", answer)
        assert tests or answer.startswith("no test: "), f"fault {number} has no answer"
        for file, name in tests:
            text = (ROOT / "tests" / file).read_text()
            assert f"\ndef {name}(" in text, f"fault {number}: no {file}::{name}"


# State, shape, life-cycle.


@a_few_rows
def test_fault_5_a_restored_mask_of_another_batch_raises(row):
    x, variables = row.x_seq()[0], row.variables(row.x_seq()[0])
    _, state = run(row.layer(), x, variables)
    masks = row.masks_in(state)
    saved = flax.serialization.to_bytes(masks)
    # The format does not look at shapes: the target here is of the smaller batch.
    target = {name: leaf[:-1] for name, leaf in masks.items()}
    restored = flax.serialization.from_bytes(target, saved)
    chex.assert_trees_all_equal(restored, masks)
    given = row.variables(x[:-1])
    given = {**given, "state": {**given.get("state", {}), **restored}}
    with pytest.raises(
        ValueError, match=r"mask stored at state/\w*mask must fit the input"
    ):
        run(row.layer(), x[:-1], given)


def test_fault_8_a_caller_who_drops_the_state_has_a_mask_per_key():
    layer, x = sd.Dropout(0.5), jnp.ones((4, 64))
    masks = [run(layer, x, rngs=rngs)[1]["mask"] for rngs in (RNGS, RNGS, other(9))]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert not (masks[0] == masks[2]).all()
    # Whoever drops it on purpose, by an immutable state, is told.
    with pytest.raises(RuntimeError, match="must be mutable or hold a mask"):
        layer.apply({}, x, **TRAIN)


@cases("deterministic", [True, False], short=[False])
def test_fault_13_one_key_a_step_repeats_what_is_fresh_unless_it_is_folded(deterministic):
    layer = sd.DropConnectLinear(
        6, 40, activation=None, samples_num=2, deterministic=deterministic
    )
    x_seq = jnp.ones((2, 3, 6))
    variables = layer.init(jax.random.key(0), x_seq[0])
    given = {"rngs": RNGS}
    repeated, _ = loop(layer, variables, x_seq, jit=True, **given)
    np.testing.assert_array_equal(repeated[0], repeated[1])
    for y_seq in (
        loop(layer, variables, x_seq, fold=True, jit=True, **given)[0],
        sd.simulate(layer, variables, x_seq, **given)[0],
        layer.clone(step_mode="m").apply(variables, x_seq, **given),
    ):
        assert not (y_seq[0] == y_seq[1]).all()
    assert "fold_in(key, t)" in inspect.getdoc(sd.simulate)


@cases("lifted", [nn.remat, nn.jit], short=[nn.remat])
def test_fault_14_a_named_layer_keeps_its_path_when_it_is_wrapped(lifted):
    class Model(nn.Module):
        wrapped: bool

        @nn.compact
        def __call__(self, x):
            layer = lifted(sd.Dropout) if self.wrapped else sd.Dropout
            return layer(0.5, deterministic=False, name="drop")(x)

    x = jnp.ones((4, 64))
    _, state = run_model(Model(False), x)
    _, wrapped = run_model(Model(True), x)
    assert wrapped.keys() == state.keys() == {"drop"}
    if lifted is nn.remat:
        chex.assert_trees_all_equal(wrapped, state)
    # A state that was made unwrapped is read: `nn.jit` has keys of its own to draw from.
    y, _ = run_model(Model(True), x, {"state": state})
    np.testing.assert_array_equal(y != 0, state["drop"]["mask"])


def run_model(model, x, variables=None, rngs=RNGS):
    y, updated = model.apply(variables or {}, x, rngs=rngs, mutable=["state"])
    return y, updated.get("state", {})


def test_fault_15_masks_in_what_is_differentiated_raise_and_optimizers_take_them():
    layer = sd.DropConnectLinear(6, 4, invariant=True, deterministic=False)
    x = jnp.ones((3, 6))
    variables = layer.init(jax.random.key(0), x)
    _, state = run_model(layer, x, variables)
    everything = {**variables, "state": state}
    with pytest.raises(TypeError, match="grad requires real- or complex-valued inputs"):
        jax.grad(lambda v: layer.apply(v, x).sum())(everything)
    grads = jax.grad(lambda v: layer.apply(v, x).sum(), allow_int=True)(everything)
    assert {g.dtype for g in jax.tree.leaves(grads["state"])} == {jax.dtypes.float0}
    optax.adam(1e-3).init(everything)


def test_fault_16_a_donated_state_that_is_used_again_raises():
    layer, x = sd.Dropout(0.5, deterministic=False), jnp.ones((4, 64))
    _, state = run_model(layer, x)
    step = jax.jit(lambda state: run_model(layer, x, {"state": state}), donate_argnums=0)
    y, after = step(state)
    np.testing.assert_array_equal(y != 0, after["mask"])
    with pytest.raises((ValueError, RuntimeError), match=r"deleted|donated"):
        step(state)


@cases("empty", [{}, {"state": {}}, flax.core.freeze({"state": {}})], short=[{"state": {}}])
def test_fault_17_no_state_in_any_form(empty):
    x_seq = jax.random.normal(jax.random.key(3), (4, 3, 8))
    params = Net().init(jax.random.key(0), x_seq[0])["params"]
    given = type(empty)({**empty, "params": params})
    expected = sd.simulate(Net(), {"params": params}, x_seq, train=True, rngs=RNGS)
    chex.assert_trees_all_equal(
        sd.simulate(Net(), given, x_seq, train=True, rngs=RNGS), expected
    )
    layer = sd.Dropout(0.5, deterministic=False)
    chex.assert_trees_all_equal(
        run_model(layer, x_seq[0], empty), run_model(layer, x_seq[0])
    )


def test_fault_19_a_clone_has_another_p_and_a_compiled_program_keeps_its_own():
    layer, x = sd.Dropout(0.5, deterministic=False), jnp.ones((4, 64))
    compiled = jax.jit(lambda x: run_model(layer, x)[0])
    y = compiled(x)
    quiet = layer.clone(p=0.0)
    assert quiet.apply({}, x) is x
    np.testing.assert_array_equal(compiled(x), y)
    with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\]"):
        layer.clone(p=2.0)


# Numerics.


@every_kind_of_dropout
def test_fault_22_p_of_1_gives_zeros_for_any_number_and_yields_to_inference(row):
    layer = row.make(p=1.0)
    x = row.x_seq()[0]
    bad = np.array(x)
    bad.flat[:2] = np.nan, np.inf
    with jax.debug_nans(False):
        bad = jnp.asarray(bad)
    with jax.debug_nans(True):
        y, pullback = jax.vjp(lambda x: run(layer, x)[0], bad)
        (grad,) = pullback(jnp.full_like(y, 3.0))
    assert not y.any()
    assert not grad.any()
    assert layer.apply({}, x, True) is x


@every_kind_of_dropout
@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9, 5e-324])
def test_fault_24_a_p_below_the_resolution_is_a_limit(row, p):
    x_seq = row.x_seq()
    y, state = run(row.make(p=p, step_mode="m"), x_seq)
    np.testing.assert_array_equal(state["mask"], p < 0.5)
    np.testing.assert_allclose(y, x_seq if p < 0.5 else 0 * x_seq, rtol=1e-6)


@cases("p", [1e-9, 1 - 1e-9], short=[1e-9])
@pytest.mark.parametrize(
    "fields",
    [
        {"deterministic": False, "invariant": True},
        {"deterministic": True, "inference": "analytic"},
        {"deterministic": True, "samples_num": 2},
    ],
)
def test_fault_24_connections_of_a_p_below_the_resolution_are_finite(p, fields):
    layer = sd.DropConnectLinear(6, 4, p=p, **fields)
    x = jax.random.normal(jax.random.key(1), (3, 6))
    params = layer.init(jax.random.key(0), x)["params"]

    def loss(params):
        y, _ = layer.apply({"params": params}, x, rngs=RNGS, mutable=["state"])
        return y.sum()

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(loss))(params))


@every(KINDS, lambda row: "DropConnect" in row.name, ["DropConnect invariant"])
def test_fault_26_connections_do_not_depend_on_x64(row):
    x, variables = row.x_seq()[0], row.variables(row.x_seq()[0])
    masks = row.masks(x, RNGS)
    training = jax.jit(lambda variables, x: run(row.layer(), x, variables)[0])
    y = training(variables, x)
    with jax.enable_x64(True):
        chex.assert_trees_all_equal(row.masks(x, RNGS), masks)
        wide = training(variables, x)
    assert wide.dtype == y.dtype
    np.testing.assert_allclose(wide, y, rtol=1e-5, atol=1e-6)


@every(FEW, lambda row: "DropConnect" in row.name, ["DropConnect invariant"])
@cases("deterministic", [True, False], short=[False])
def test_fault_29_spikes_of_any_dtype_are_linear_inputs(row, deterministic):
    spikes = row.x_seq() > 0
    layer = row.layer("m", samples_num=4)

    @jax.jit
    def function(variables, x):
        return run(layer, x, variables, deterministic=deterministic)[0]

    variables = layer.init(jax.random.key(2), spikes.astype(jnp.float32), deterministic)
    expected = function(variables, spikes.astype(jnp.float32))
    for dtype in (jnp.bool_, jnp.int32, jnp.uint8):
        y = function(variables, spikes.astype(dtype))
        assert y.dtype == jnp.float32
        np.testing.assert_array_equal(y, expected)


@every_kind_of_dropout
def test_fault_30_complex_inputs_are_dropped_whole(row):
    x_seq = row.x_seq() * (1 + 2j)
    y, state = run(row.layer("m"), x_seq.astype(jnp.complex64))
    assert y.dtype == jnp.complex64
    expected = np.where(state["mask"], np.asarray(x_seq) * row.scale, 0)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_fault_33_sampled_inference_has_the_gradient_of_its_samples():
    layer = sd.DropConnectLinear(6, 5, samples_num=1024, deterministic=True)
    x = jax.random.normal(jax.random.key(1), (3, 6))
    params = layer.init(jax.random.key(0), x)["params"]

    def loss(layer):
        return lambda params: layer.apply({"params": params}, x, rngs=RNGS).sum()

    sampled = jax.jit(jax.grad(loss(layer)))(params)
    exact = jax.jit(jax.grad(loss(layer.clone(inference="analytic"))))(params)
    chex.assert_trees_all_close(sampled, exact, atol=0.1)
    assert all(bool(leaf.any()) for leaf in jax.tree.leaves(sampled))


# Arguments.


@cases("shape", [(), (0,), (0, 3), (2, 0), (1, 1, 1, 1, 1, 1)], short=[(), (0, 3), (2, 0)])
@cases("step_mode", ["s", "m"], short=["m"])
def test_fault_43_scalars_and_empty_inputs_keep_their_shape(shape, step_mode):
    layer = sd.Dropout(0.5, step_mode)
    x = jnp.ones(shape if step_mode == "s" else (3, *shape))
    for deterministic in (True, False):
        y, state = run(layer, x, deterministic=deterministic)
        assert y.shape == x.shape
    assert state["mask"].shape == shape
    grad = jax.grad(lambda x: run(layer, x)[0].sum())(x)
    assert grad.shape == x.shape


@a_few_rows
def test_fault_47_numpy_inputs_are_those_of_jax(row):
    x_seq, variables = row.x_seq(), row.variables(row.x_seq()[0])
    expected, _ = run(row.layer("m"), x_seq, variables)
    for dtype in (np.float32, np.float64):
        y, _ = run(row.layer("m"), np.asarray(x_seq, dtype), variables)
        assert y.dtype == jax.dtypes.canonicalize_dtype(dtype)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_fault_48_more_elements_than_32_bits_count(p):
    shape = (2**17, 2**16)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    key = jax.random.key(0)

    def dropped(x, key):
        return run(sd.Dropout(p), x, rngs={"dropout": key})

    y, state = jax.eval_shape(dropped, x, key)
    assert y.shape == state["mask"].shape == shape
    jax.jit(dropped).lower(x, key)
    words = jax.eval_shape(lambda key: functional.draw_bits(key, (*shape, 64), p), key)
    assert words.shape == (*shape, 2)


# Random numbers, transforms, devices.


@pytest.mark.parametrize(
    "key",
    [
        jax.random.key_data(jax.random.key(0, impl="rbg")),
        jax.random.split(jax.random.key(0), 2),
        jnp.int32(0),
        None,
        0,
    ],
    ids=["raw rbg", "two keys", "int32", "None", "int"],
)
def test_fault_58_what_is_no_key_raises(key):
    with pytest.raises(ValueError, match="rngs"), jax.default_prng_impl("threefry2x32"):
        run(sd.Dropout(0.5), jnp.ones((2, 3)), rngs={"dropout": key})


def test_fault_59_what_drops_nothing_stores_nothing():
    x = jnp.ones((2, 3))
    for layer in (sd.Dropout(0.0), sd.DropConnectLinear(3, 4, p=0.0, invariant=True)):
        variables = layer.init(jax.random.key(0), x, False)
        assert run_model(layer.clone(deterministic=False), x, variables)[1] == {}


@every_kind
def test_fault_60_no_mask_shares_its_path_with_a_parameter(row):
    x = row.x_seq()[0]
    variables = row.variables(x)
    _, state = run(row.layer(), x, variables)
    assert not set(flatten_dict(variables.get("params", {}))) & set(flatten_dict(state))
    assert not set(variables.get("params", {})) & set(state)
    assert row.masks_in(state).keys() == row.leaves.keys()


@a_few_rows
def test_fault_61_a_state_can_be_copied_deeply(row):
    x, variables = row.x_seq()[0], row.variables(row.x_seq()[0])
    y, state = run(row.layer(), x, variables)
    again = row.masks_in(copy.deepcopy(state))
    given = row.with_masks(variables.get("state", {}), again)
    expected, _ = run(row.layer(), x, {**variables, "state": given})
    np.testing.assert_array_equal(y, expected)
