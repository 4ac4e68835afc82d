"""Every transform of JAX and Flax that users put around a layer: same masks, same outputs.

`test_laws` has `jit`, `grad` and `vmap` over keys; `test_time` has `MultiStep` inside them.
"""

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import snn_dropout as sd
from snn_dropout.linen.state import MASK_NAMES
from tests.depth import cases
from tests.laws.catalogue import (
    FEW,
    KINDS,
    STEPS,
    a_few_rows,
    every,
    every_kind,
    every_kind_of_dropout,
)
from tests.laws.test_laws import RNGS, TRAIN, assert_same, run
from tests.neurons import Net, loop

# Not neurons, whose membranes are written at every step.
every_kind_that_only_reads = every(
    KINDS,
    lambda row: row.held and "spiking" not in row.name,
    ["Dropout2d NCHW", "DropConnect invariant"],
)


def problem(row):
    """The inputs of all steps, the parameters and the first state."""
    x_seq = row.x_seq()
    return x_seq, row.variables(x_seq[0])


def started(row, x, variables):
    """A state with every mask drawn."""
    return sd.init_state(row.layer(), variables, x, **TRAIN)


class Around(nn.Module):
    """A layer of a fixed name inside a lifted function of it."""

    make: Callable
    function: Callable
    deterministic: bool | None = False

    @nn.compact
    def __call__(self, x):
        layer = self.make(name="layer", deterministic=self.deterministic)
        return self.function(layer, x)


def around(row, function, **fields):
    """A module that calls the layer of a row by `function`."""
    return Around(row.layer, function, **fields)


def below(variables):
    """The variables of a layer as those of a module around it."""
    return {name: {"layer": branch} for name, branch in variables.items()}


def run_model(model, x, variables):
    try:
        hash(model)
    except TypeError:  # of a layer that has an array
        return apply_model(model, x, variables)
    return jax.jit(apply_model, static_argnums=0)(model, x, variables)


def apply_model(model, x, variables):
    y, updated = model.apply(variables, x, rngs=RNGS, mutable=["state"])
    return y, updated.get("state", {})


def at(tree, n):
    return jax.tree.map(lambda leaf: leaf[n], tree)


def all_alike(masks):
    return bool((masks == masks[:1]).all())


def call(layer, x):
    return layer(x)


# Gradients.


@every(KINDS, short=["DropConnect invariant"])
def test_value_and_grad_with_the_state_as_auxiliary(row):
    x_seq, variables = problem(row)
    params, fixed = variables.get("params", {}), variables.get("state", {})

    def loss(params, x, state):
        y, state = run(row.layer(), x, {"params": params, "state": state})
        return (y**2).mean(), state

    differentiated = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, state), grads = differentiated(params, x_seq[0], fixed)
    assert_same(row, state, run(row.layer(), x_seq[0], variables)[1])
    assert bool(jnp.isfinite(value))
    # Drawing the masks inside is no part of the gradient.
    given = row.with_masks(fixed, row.masks_in(state))
    (_, _), expected = differentiated(params, x_seq[0], given)
    chex.assert_trees_all_close(grads, expected, rtol=1e-6)


def gradients_of(row, function, checkpoint=lambda f: f):
    """The gradients of a layer inside a function of it, and the masks it drew."""
    x_seq, variables = problem(row)
    model, variables = around(row, function), below(variables)

    def loss(params, x):
        y, updated = model.apply(
            {**variables, "params": params}, x, rngs=RNGS, mutable=["state"]
        )
        return (y**2).sum(), updated.get("state", {})

    differentiated = jax.grad(checkpoint(loss), argnums=(0, 1), has_aux=True)
    return jax.jit(differentiated)(variables.get("params", {}), x_seq[0])


@every(KINDS, short=["DropConnect invariant"])
def test_recomputation_by_nn_remat_meets_the_same_mask(row):
    assert_same(row, gradients_of(row, nn.remat(call)), gradients_of(row, call))


@every(FEW, short=["DropConnect invariant"])
def test_recomputation_by_checkpoint_meets_the_same_mask(row):
    actual = gradients_of(row, call, jax.checkpoint)
    assert_same(row, actual, gradients_of(row, call))


# Lifted transforms.


@every(KINDS, lambda row: row.held and not row.array, ["DropConnect invariant"])
def test_nn_jit_keeps_the_path_and_reads_a_state_made_without_it(row):
    x_seq, variables = problem(row)
    variables = below(variables)
    plain, jitted = around(row, call), around(row, nn.jit(call))
    _, state = run_model(plain, x_seq[0], variables)
    given = {**variables, "state": state}
    y, after = run_model(plain, x_seq[0], given)
    y_jitted, after_jitted = run_model(jitted, x_seq[0], given)
    assert_same(row, y_jitted, y)
    assert_same(row, after_jitted, after)
    # What it draws itself comes from keys of its own.
    _, drawn = run_model(jitted, x_seq[0], variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, state)


@every(KINDS, short=["DropConnect invariant"])
@cases("split", [True, False], short=[True])
def test_nn_vmap_has_a_mask_a_row_or_the_same_for_all(row, split):
    x_seq, variables = problem(row)
    mapped = nn.vmap(
        call,
        variable_axes={"params": None, "state": 0},
        split_rngs={"params": False, "dropout": split},
    )
    model = around(row, mapped)
    first = jax.tree.map(lambda v: jnp.stack([v] * STEPS), variables.get("state", {}))
    variables = {"params": variables.get("params", {}), "state": first}
    y, state = run_model(model, x_seq, below(variables))
    assert y.shape[:2] == x_seq.shape[:2]
    masks = row.masks_in(state.get("layer", {}))
    assert masks.keys() == row.leaves.keys()
    for name, mask in masks.items():
        assert mask.shape == (STEPS, *row.leaves[name])
        assert all_alike(mask) == (not split)
    # Each row is the layer with that row's masks.
    for n in range(STEPS if row.held else 0):
        given = {**variables, "state": at(row.with_masks(first, masks), n)}
        expected, _ = run_model(row.layer(deterministic=False), x_seq[n], given)
        assert_same(row, y[n], expected)


@every(FEW, short=["DropConnect invariant"])
def test_vmap_over_examples_equals_one_example_at_a_time(row):
    x_seq, variables = problem(row)
    keys = jax.random.split(jax.random.key(3, impl="threefry2x32"), len(x_seq[0]))
    given = {"params": variables.get("params", {})}

    def one(x, key):
        return row.layer("m").apply(given, x[:, None], False, rngs={"dropout": key})[:, 0]

    examples, jitted = x_seq.swapaxes(0, 1), jax.jit(one)
    alone = jnp.stack([jitted(x, key) for x, key in zip(examples, keys, strict=True)])
    assert_same(row, jax.jit(jax.vmap(one))(examples, keys), alone)


def scanned(**options):
    """The layer over time by `nn.scan`, as users write it."""

    def body(layer, carry, x):
        return carry, layer(x)

    return lambda layer, x_seq: nn.scan(body, **options)(layer, (), x_seq)[1]


@every_kind_that_only_reads
def test_nn_scan_with_a_broadcast_state_draws_one_mask(row):
    x_seq, variables = problem(row)
    variables = below(variables)
    function = scanned(
        variable_broadcast=("params", "state"),
        split_rngs={"params": False, "dropout": False},
    )
    model = around(row, function)
    y_seq, state = run_model(model, x_seq, variables)
    y_loop, updated = loop(around(row, call), variables, x_seq, rngs=RNGS, jit=True)
    assert_same(row, y_seq, y_loop)
    assert_same(row, state, updated["state"])
    # A state that is given is only read, and need not be mutable.
    again = jax.jit(model.apply)({**variables, "state": state}, x_seq)
    assert_same(row, again, y_seq)


@every(KINDS, lambda row: row.held, ["DropConnect invariant"])
def test_nn_scan_with_a_carried_state_starts_from_init_state(row):
    x_seq, variables = problem(row)
    state = started(row, x_seq[0], variables)
    function = scanned(
        variable_broadcast="params",
        variable_carry="state",
        split_rngs={"params": False, "dropout": True},
    )
    variables = below({**variables, "state": state})
    y_seq, last = run_model(around(row, function), x_seq, variables)
    y_loop, updated = loop(around(row, call), variables, x_seq, rngs=RNGS, jit=True)
    assert_same(row, y_seq, y_loop)
    assert_same(row, last, updated["state"])


@every_kind_that_only_reads
def test_nn_scan_with_a_state_a_step_raises(row):
    x_seq, variables = problem(row)
    function = scanned(
        variable_broadcast="params",
        variable_axes={"state": 0},
        split_rngs={"params": False, "dropout": True},
    )
    with pytest.raises(
        RuntimeError, match=r"drawn once for all steps.*broadcast=\('params"
    ):
        run_model(around(row, function), x_seq, below(variables))


class Block(nn.Module):
    """A layer of a stack over depth, with parameters of its own."""

    make: Callable

    @nn.compact
    def __call__(self, x, _):
        x = x * self.param("gain", nn.initializers.ones, ())
        return x, self.make(name="layer", deterministic=False)(x)


@every_kind_that_only_reads
def test_nn_scan_over_layers_draws_a_mask_a_layer(row):
    x_seq, _ = problem(row)
    stack = nn.scan(
        Block,
        variable_axes={"params": 0, "state": 0},
        split_rngs={"params": True, "dropout": True},
        length=STEPS,
    )(row.layer)
    x = x_seq[0]
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x, None)["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    run_stack = jax.jit(functools.partial(stack.apply, mutable=["state"]))
    (_, y), updated = run_stack({"params": params}, x, None, rngs=RNGS)
    state = updated["state"]["layer"]
    masks = row.masks_in(state)
    assert masks.keys() == row.leaves.keys()
    for name, mask in masks.items():
        assert mask.shape == (STEPS, *row.leaves[name])
        assert not all_alike(mask)
    for n in range(STEPS):
        given = {"params": at(params.get("layer", {}), n), "state": at(state, n)}
        expected, _ = run_model(row.layer(deterministic=False), x, given)
        assert_same(row, y[n], expected)


# Raw loops and branches around `apply`.


def stepper(row, variables):
    def step(state, x):
        y, updated = row.layer().apply(
            {**variables, "state": state}, x, mutable=["state"], **TRAIN
        )
        return updated.get("state", {}), y

    return step


@every_kind
def test_lax_scan_by_hand_starts_from_init_state(row):
    x_seq, variables = problem(row)
    state = started(row, x_seq[0], variables)
    last, y_seq = jax.lax.scan(stepper(row, variables), state, x_seq)
    y_loop, updated = loop(row.layer(), {**variables, "state": state}, x_seq, **TRAIN)
    assert_same(row, y_seq, y_loop)
    assert_same(row, last, updated.get("state", {}))


@a_few_rows
@pytest.mark.parametrize("active", [True, False])
def test_lax_cond_steps_or_leaves_the_state(row, active):
    x_seq, variables = problem(row)
    state = started(row, x_seq[0], variables)
    step = stepper(row, variables)
    expected_state, expected = step(state, x_seq[0])

    def idle(state, x):
        return state, jnp.zeros_like(expected)

    after, y = jax.lax.cond(jnp.bool_(active), step, idle, state, x_seq[0])
    assert_same(row, y, expected if active else jnp.zeros_like(expected))
    assert_same(row, after, expected_state if active else state)


@every_kind_of_dropout
@pytest.mark.parametrize("training", [True, False])
def test_nn_cond_chooses_training_or_inference(row, training):
    x_seq, variables = problem(row)
    state = started(row, x_seq[0], variables)

    def function(layer, x):
        train, evaluate = (lambda m, x, flag=flag: m(x, flag) for flag in (False, True))
        return nn.cond(jnp.bool_(training), train, evaluate, layer, x)

    model = around(row, function, deterministic=None)
    variables = {"state": state}
    y = model.apply(below(variables), x_seq[0])
    expected = row.layer().apply(variables, x_seq[0], not training)
    np.testing.assert_array_equal(y, expected)


@every_kind
def test_a_donated_state_goes_on(row):
    x_seq, variables = problem(row)
    state = started(row, x_seq[0], variables)
    y_loop, updated = loop(row.layer(), {**variables, "state": state}, x_seq, **TRAIN)
    step = jax.jit(stepper(row, variables), donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)
    outputs = []
    for x in x_seq:
        state, y = step(state, x)
        outputs.append(y)
    assert_same(row, jnp.stack(outputs), y_loop)
    assert_same(row, state, updated.get("state", {}))


# Programs that are compiled ahead of time, or elsewhere.


@pytest.mark.exhaustive
@every_kind
def test_a_program_that_is_compiled_ahead_of_time(row):
    x_seq, variables = problem(row)

    def function(variables, x_seq, key):
        return run(row.layer("m"), x_seq, variables, rngs={"dropout": key})

    key = RNGS["dropout"]
    compiled = jax.jit(function).lower(variables, x_seq, key).compile()
    assert_same(row, compiled(variables, x_seq, key), function(variables, x_seq, key))


PLATFORMS = ["cpu", "cuda", "tpu"]


@every(KINDS, short=["DropConnect invariant"])
def test_an_exported_layer_serves_any_batch_on_any_platform(row):
    x_seq, variables = problem(row)
    params = {"params": variables.get("params", {})}

    def function(params, x_seq, key_data):
        rngs = {"dropout": jax.random.wrap_key_data(key_data)}
        return row.layer("m").apply(params, x_seq, deterministic=False, rngs=rngs)

    (batch,) = jax.export.symbolic_shape("batch")
    shape = (x_seq.shape[0], batch, *x_seq.shape[2:])
    symbolic = jax.ShapeDtypeStruct(shape, x_seq.dtype)
    key_data = jax.random.key_data(RNGS["dropout"])
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(
        params, symbolic, key_data
    )
    exported = jax.export.deserialize(exported.serialize())
    assert exported.platforms == tuple(PLATFORMS)
    for given in (x_seq, x_seq[:, :1]):
        y = exported.call(params, given, key_data)
        assert_same(row, y, function(params, given, key_data))


@pytest.mark.exhaustive
def test_an_exported_training_step_runs_as_the_original():
    x_seq = jax.random.normal(jax.random.key(3), (4, 3, 8))
    optimizer = optax.adam(1e-2)
    params = Net().init(jax.random.key(0), x_seq[0])["params"]

    def train_step(params, opt_state, x_seq, key_data):
        def loss(params):
            rngs = {"dropout": jax.random.wrap_key_data(key_data)}
            spikes, _ = sd.simulate(Net(), {"params": params}, x_seq, train=True, rngs=rngs)
            return ((spikes.mean(0) - 0.5) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    # An optimizer's state is a tuple of named tuples, which a file does not know.
    leaves, tree = jax.tree.flatten((params, optimizer.init(params)))
    key_data = jax.random.key_data(jax.random.key(1))

    def flat(leaves, x_seq, key_data):
        *state, value = train_step(*jax.tree.unflatten(tree, leaves), x_seq, key_data)
        return jax.tree.leaves(state), value

    exported = jax.export.export(jax.jit(flat), platforms=PLATFORMS)(
        leaves, x_seq, key_data
    )
    exported = jax.export.deserialize(exported.serialize())
    ours, theirs = leaves, leaves
    for seed in range(2):
        key_data = jax.random.key_data(jax.random.key(seed))
        ours, value = jax.jit(flat)(ours, x_seq, key_data)
        theirs, other = exported.call(theirs, x_seq, key_data)
        chex.assert_trees_all_close((ours, value), (theirs, other), rtol=1e-6)


@pytest.mark.exhaustive
@a_few_rows
def test_pmap_equals_one_device_at_a_time(row):
    x_seq, variables = problem(row)
    devices = jax.device_count()
    shards = jnp.stack([x_seq + n for n in range(devices)])
    keys = jax.random.split(jax.random.key(3), devices)

    def one(x_seq, key):
        return run(row.layer("m"), x_seq, variables, rngs={"dropout": key})

    together, jitted = jax.pmap(one)(shards, keys), jax.jit(one)
    for n in range(devices):
        assert_same(row, at(together, n), jitted(shards[n], keys[n]))


# Keys.


KEYS = {
    "typed": lambda seed: jax.random.key(seed, impl="threefry2x32"),
    "raw": lambda seed: jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
    "rbg": lambda seed: jax.random.key(seed, impl="rbg"),
    "unsafe_rbg": lambda seed: jax.random.key(seed, impl="unsafe_rbg"),
}


@every(
    KINDS,
    lambda row: row.name in ("Dropout", "DropConnect invariant"),
    ["DropConnect invariant"],
)
@cases("kind", KEYS, short=["rbg"])
def test_any_kind_of_key(row, kind):
    x_seq, variables = problem(row)

    def function(key):
        rngs = {"dropout": key}
        return sd.simulate(row.layer(deterministic=False), variables, x_seq, rngs=rngs)

    function, key = jax.jit(function), KEYS[kind]
    first = function(key(0))
    chex.assert_trees_all_equal(function(key(0)), first)
    assert any(bool((function(key(seed))[0] != first[0]).any()) for seed in (1, 2, 3))
    if row.held:
        given = {"deterministic": False, "rngs": {"dropout": key(0)}, "jit": True}
        assert_same(row, first, loop(row.layer(), variables, x_seq, **given))


@every(FEW, short=["Dropout"])
def test_raw_keys_are_the_typed_ones(row):
    with jax.default_prng_impl("threefry2x32"):
        typed, raw = (
            row.masks(row.x_seq()[0], {"dropout": KEYS[kind](0)})
            for kind in ("typed", "raw")
        )
    chex.assert_trees_all_equal(typed, raw)


# NNX, by Flax's own bridge.


class Model(nnx.Module):
    """A layer of linen behind one of NNX."""

    def __init__(self, layer, x):
        rngs = nnx.Rngs(0, dropout=1)
        self.linear = nnx.Linear(x.shape[-1], x.shape[-1], rngs=rngs)
        self.layer = nnx.bridge.ToNNX(layer, rngs=rngs).lazy_init(x)

    def __call__(self, x):
        return self.layer(self.linear(x), mutable=["state"])


def is_mask(path, _):
    return path[-1] in MASK_NAMES


@every(KINDS, short=["DropConnect invariant"])
def test_inside_an_nnx_training_step_the_state_is_carried_and_reset(row):
    x = row.x_seq()[0]
    model = Model(row.layer(deterministic=False), x)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    assert not jax.tree.leaves(nnx.state(model, is_mask)), "init makes no mask"

    @nnx.jit
    def train_step(model, optimizer, x):
        value, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return value

    before = parameters(model)
    masks = []
    for restart in (False, False, True, True, True):
        if restart:
            nnx.pop(model, is_mask)
        train_step(model, optimizer, x)
        found = dict(nnx.to_flat_state(nnx.state(model, is_mask)))
        masks.append([found["layer", *name.split("/")][...] for name in row.leaves])
        assert {leaf.shape for leaf in masks[-1]} == set(row.leaves.values())
    chex.assert_trees_all_equal(masks[0], masks[1])
    for leaves in zip(*masks, strict=True):
        assert not all_alike(jnp.stack(leaves))
    for old, new in zip(before, parameters(model), strict=True):
        assert bool((old != new).any())


def parameters(model):
    return [jnp.copy(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
