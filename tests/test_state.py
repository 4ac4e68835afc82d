"""The ten rules of `snn_dropout.linen.state`, and the functions that keep them."""

from functools import partial
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout.linen.state import MASK_NAMES
from tests.depth import cases
from tests.jaxprs import count, equations
from tests.neurons import LIF, AdaptiveLIF, Net, loop

KEY = jax.random.key(7)
RNGS = {"dropout": KEY}


@pytest.fixture(scope="module")
def x_seq():
    return jax.random.normal(jax.random.key(3), (5, 3, 8))


@pytest.fixture(scope="module")
def variables(x_seq):
    return Net().init(jax.random.key(0), x_seq[0])


def paths(tree):
    return sorted(
        "/".join(str(k.key) for k in path) for path, _ in jax.tree.leaves_with_path(tree)
    )


ALL_LEAVES = [
    "Dropout_0/mask",
    "Dropout_0/mask_p",
    "LIF_0/v",
    "LIF_1/v",
    "last/mask",
    "last/mask_p",
]


# Rule 1: `init` makes parameters and the neurons' first state, and no mask.


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_init_makes_no_mask_and_needs_no_dropout_stream(step_mode):
    layer = sd.Dropout(0.5, step_mode)
    x = jnp.ones((2, 3, 4))
    y, variables = layer.init_with_output({"params": KEY}, x, deterministic=False)
    assert variables == {}
    np.testing.assert_array_equal(y, x)


def test_every_batch_that_starts_from_the_first_state_draws_a_fresh_mask(variables, x_seq):
    # The natural training loop; a mask made by `init` would be the same for ever.
    masks = []
    for batch in range(3):
        key = jax.random.fold_in(KEY, batch)
        _, updated = sd.simulate(Net(), variables, x_seq, train=True, rngs={"dropout": key})
        masks.append(updated["state"]["Dropout_0"]["mask"])
    assert paths(variables["state"]) == ["LIF_0/v", "LIF_1/v"]
    assert not (masks[0] == masks[1]).all()
    assert not (masks[1] == masks[2]).all()


# Rule 2: the first training call draws the mask; later calls only read it.


def test_the_first_training_call_draws_and_later_calls_read():
    layer, x = sd.Dropout(0.5, deterministic=False), jnp.ones((4, 16))
    _, first = layer.apply({}, x, rngs=RNGS, mutable=["state"])
    y, second = layer.apply(
        first, x, rngs={"dropout": jax.random.key(1)}, mutable=["state"]
    )
    assert second["state"]["mask"] is first["state"]["mask"]
    np.testing.assert_array_equal(y != 0, first["state"]["mask"])
    # A stored mask needs neither a stream nor a mutable collection.
    np.testing.assert_array_equal(layer.apply(first, x), y)


def test_no_mask_is_drawn_or_written_inside_the_scan(variables, x_seq):
    def loss(params):
        y, _ = sd.simulate(Net(), {"params": params}, x_seq, train=True, rngs=RNGS)
        return y.sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(variables["params"]).jaxpr
    scans = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    assert len(scans) == 2, "one forward, one backward"
    for scan in scans:
        assert count(scan.params["jaxpr"].jaxpr, "random_bits") == 0
        stacked = [
            v.aval for v in scan.outvars if v.aval.dtype == bool and v.aval.ndim == 3
        ]
        assert not stacked, "a mask rewritten in the loop is stacked T times"


# Rule 3: a new simulation starts from the first state, `reset_masks` or `reset_rows`.


def test_reset_masks_drops_the_masks_and_keeps_the_membranes(variables, x_seq):
    _, updated = sd.simulate(Net(), variables, x_seq, train=True, rngs=RNGS)
    state = updated["state"]
    assert paths(state) == ALL_LEAVES
    kept = sd.reset_masks(state)
    assert paths(kept) == ["LIF_0/v", "LIF_1/v"]
    assert kept["LIF_0"]["v"] is state["LIF_0"]["v"]
    assert paths(state) == ALL_LEAVES

    _, again = sd.simulate(
        Net(),
        {**variables, "state": kept},
        x_seq,
        train=True,
        rngs={"dropout": jax.random.key(8)},
    )
    assert not (again["state"]["Dropout_0"]["mask"] == state["Dropout_0"]["mask"]).all()


def test_reset_rows_restarts_single_examples_inside_a_scan(variables, x_seq):
    done = jnp.zeros((5, 3), bool).at[2, 1].set(True)
    first = sd.init_state(Net(), variables, x_seq[0], train=True, rngs=RNGS)
    fresh = sd.init_state(
        Net(), variables, x_seq[0], train=True, rngs={"dropout": jax.random.key(8)}
    )

    def step(state, inputs):
        x, done = inputs
        state = sd.reset_rows(done, state, fresh)
        y, updated = Net().apply(
            {**variables, "state": state}, x, train=True, rngs=RNGS, mutable=["state"]
        )
        return updated["state"], y

    last, y_seq = jax.lax.scan(step, first, (x_seq, done))
    whole, _ = loop(Net(), {**variables, "state": first}, x_seq, train=True, rngs=RNGS)
    restarted, _ = loop(
        Net(), {**variables, "state": fresh}, x_seq[2:], train=True, rngs=RNGS
    )
    np.testing.assert_array_equal(y_seq[:, [0, 2]], whole[:, [0, 2]])
    np.testing.assert_array_equal(y_seq[:2, 1], whole[:2, 1])
    np.testing.assert_array_equal(y_seq[2:, 1], restarted[:, 1])
    np.testing.assert_array_equal(
        last["Dropout_0"]["mask"][1], fresh["Dropout_0"]["mask"][1]
    )


# Rule 4: `init_state` completes a state for a hand-written scan.


@cases("start", ["nothing", "first state", "one membrane"], short=["one membrane"])
def test_init_state_draws_masks_and_makes_what_init_makes(variables, x_seq, start):
    given = {
        "nothing": {},
        "first state": variables["state"],
        "one membrane": {"LIF_1": {"v": jnp.full((3, 4), 0.25)}},
    }[start]
    state = sd.init_state(
        Net(),
        {"params": variables["params"], "state": given},
        x_seq[0],
        train=True,
        rngs=RNGS,
    )
    assert paths(state) == ALL_LEAVES
    np.testing.assert_array_equal(state["LIF_0"]["v"], 0)  # not moved by a step
    np.testing.assert_array_equal(
        state["LIF_1"]["v"], 0.25 if start == "one membrane" else 0
    )
    _, updated = loop(Net(), variables, x_seq, train=True, rngs=RNGS)
    chex.assert_trees_all_equal(
        sd.init_state(Net(), {**variables, **updated}, x_seq[0], rngs=RNGS),
        updated["state"],
    )
    for layer in ("Dropout_0", "last"):
        np.testing.assert_array_equal(state[layer]["mask"], updated["state"][layer]["mask"])


def test_a_hand_written_scan_starts_from_init_state(variables, x_seq):
    state = sd.init_state(Net(), variables, x_seq[0], train=True, rngs=RNGS)

    def step(state, x):
        y, updated = Net().apply(
            {**variables, "state": state}, x, train=True, mutable=["state"]
        )
        return updated["state"], y

    last, y_seq = jax.lax.scan(step, state, x_seq)
    y_loop, updated = loop(Net(), variables, x_seq, train=True, rngs=RNGS)
    np.testing.assert_array_equal(y_seq, y_loop)
    chex.assert_trees_all_equal(last, updated["state"])


def test_nn_scan_with_a_carried_state_starts_from_init_state(x_seq):
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            return carry, Net(name="net")(x, train=True)

    scanned = nn.scan(
        Cell,
        variable_broadcast="params",
        variable_carry="state",
        split_rngs={"params": False, "dropout": False},
    )()
    params = {"net": Net().init(jax.random.key(0), x_seq[0])["params"]}
    single = {"params": params["net"]}
    state = sd.init_state(Net(), single, x_seq[0], train=True, rngs=RNGS)
    (_, y_seq), updated = scanned.apply(
        {"params": params, "state": {"net": state}}, (), x_seq, mutable=["state"]
    )
    chex.assert_trees_all_equal(updated["state"]["net"].keys(), state.keys())
    y_loop, _ = loop(Net(), {**single, "state": state}, x_seq, train=True)
    np.testing.assert_array_equal(y_seq, y_loop)


def test_leaves_that_exist_are_left_alone_also_by_neurons_that_move_during_init(x_seq):
    class Restless(nn.Module):
        @nn.compact
        def __call__(self, x):
            v = self.variable("state", "v", jnp.zeros_like, x)
            v.value = v.value + x
            return v.value

    given = {"v": jnp.ones((3, 8))}
    state = sd.init_state(Restless(), {"state": given}, x_seq[0], rngs=None)
    assert state["v"] is given["v"]
    y_seq, _ = sd.simulate(Restless(), {"state": given}, x_seq)
    np.testing.assert_allclose(y_seq, 1 + jnp.cumsum(x_seq, 0), rtol=1e-5, atol=1e-5)


def test_the_dicts_that_are_given_stay_as_they_are(variables, x_seq):
    before = jax.tree.map(id, variables)
    sd.init_state(Net(), variables, x_seq[0], train=True, rngs=RNGS)
    sd.simulate(Net(), variables, x_seq, train=True, rngs=RNGS)
    sd.MultiStep(Net()).apply(variables, x_seq, train=True, rngs=RNGS)
    assert jax.tree.map(id, variables) == before


def test_init_state_of_a_model_made_of_modules_can_be_called_again(x_seq):
    model = nn.Sequential([nn.Dense(4), LIF(), sd.Dropout(0.5, deterministic=False)])
    variables = model.init(KEY, x_seq[0])
    first, second = (sd.init_state(model, variables, x_seq[0], rngs=RNGS) for _ in range(2))
    chex.assert_trees_all_equal(first, second)


def test_simulate_needs_no_state_at_all(variables, x_seq):
    with_state = sd.simulate(Net(), variables, x_seq, train=True, rngs=RNGS)
    without = sd.simulate(
        Net(), {"params": variables["params"]}, x_seq, train=True, rngs=RNGS
    )
    chex.assert_trees_all_equal(with_state, without)


def test_the_steps_ahead_are_dead_code_under_jit(variables, x_seq):
    def hand_written(params, state):
        def step(state, x):
            y, updated = Net().apply(
                {"params": params, "state": state}, x, mutable=["state"]
            )
            return updated["state"], y

        return jax.lax.scan(step, state, x_seq)[1]

    def simulated(params, state):
        return sd.simulate(Net(), {"params": params, "state": state}, x_seq)[0]

    state, params = variables["state"], variables["params"]
    products = [
        jax.jit(f).lower(params, state).as_text().count("dot_general")
        for f in (hand_written, simulated)
    ]
    assert products[0] == products[1] == 2


def test_init_state_of_a_collection_of_another_name(x_seq):
    layer = sd.Dropout(0.5, deterministic=False, state_collection="masks")
    masks = sd.init_state(layer, {}, x_seq[0], rngs=RNGS, state_collection="masks")
    assert paths(masks) == ["mask", "mask_p"]
    assert sd.init_state(layer, {}, x_seq[0], rngs=RNGS) == {}


# Rule 5: inference is the identity, needs no stream, touches no state.


def test_inference_between_two_training_calls_leaves_the_mask(x_seq):
    layer, x = sd.Dropout(0.5), x_seq[0]
    _, trained = layer.apply({}, x, deterministic=False, rngs=RNGS, mutable=["state"])
    y, evaluated = layer.apply(trained, x, deterministic=True, mutable=["state"])
    assert y is x
    assert evaluated["state"]["mask"] is trained["state"]["mask"]
    again, _ = layer.apply(evaluated, x, deterministic=False, mutable=["state"])
    np.testing.assert_array_equal(again != 0, trained["state"]["mask"])


def test_inference_ignores_a_mask_of_another_batch(x_seq):
    stale = {"state": {"mask": jnp.ones((1, 8), bool)}}
    x = x_seq[0]
    assert sd.Dropout(0.5, deterministic=True).apply(stale, x) is x


# Rule 6: without a mutable state a whole simulation holds its masks and leaves nothing.


def test_whole_simulations_run_without_a_mutable_state(variables, x_seq):
    kept, _ = sd.simulate(Net(), variables, x_seq, train=True, rngs=RNGS)
    multi_step = sd.MultiStep(Net())
    for given in ({"params": variables["params"]}, variables):
        np.testing.assert_array_equal(
            multi_step.apply(given, x_seq, train=True, rngs=RNGS), kept
        )
    layer = sd.Dropout(0.5, "m", deterministic=False)
    y, _ = layer.apply({}, x_seq, rngs=RNGS, mutable=["state"])
    np.testing.assert_array_equal(layer.apply({}, x_seq, rngs=RNGS), y)


def test_a_whole_simulation_starts_from_the_state_it_is_given(variables, x_seq):
    _, updated = sd.simulate(Net(), variables, x_seq, train=True, rngs=RNGS)
    onward, _ = loop(Net(), {**variables, **updated}, x_seq, train=True)
    given = {**variables, **updated}
    np.testing.assert_array_equal(
        sd.MultiStep(Net()).apply(given, x_seq, train=True), onward
    )


def test_inference_without_a_mutable_state(variables, x_seq):
    y, _ = sd.simulate(Net(), variables, x_seq)
    np.testing.assert_array_equal(sd.MultiStep(Net()).apply(variables, x_seq), y)


def test_a_single_step_that_can_not_keep_its_mask_raises(x_seq):
    with pytest.raises(RuntimeError, match=r"must be mutable or hold a mask.*init_state"):
        sd.Dropout(0.5, deterministic=False).apply({}, x_seq[0], rngs=RNGS)


def test_batch_norm_still_refuses_to_write_an_immutable_collection(x_seq):
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return LIF()(nn.BatchNorm(use_running_average=False)(x))

    model = sd.MultiStep(Normalised())
    variables = model.init(KEY, x_seq)
    with pytest.raises(Exception, match="batch_stats"):
        model.apply(variables, x_seq)
    with pytest.raises(Exception, match="batch_stats"):
        sd.simulate(Normalised(), variables, x_seq)


def test_an_instance_called_twice_has_the_same_mask_with_and_without_a_mutable_state(x_seq):
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            drop = sd.Dropout(0.5, "m", deterministic=False)
            return drop(x_seq), drop(x_seq)

    kept, _ = Twice().apply({}, x_seq, rngs=RNGS, mutable=["state"])
    chex.assert_trees_all_equal(Twice().apply({}, x_seq, rngs=RNGS), kept)


# Rule 7: a stored mask that does not fit raises.


@pytest.mark.parametrize("run", ["simulate", "init_state"])
def test_a_membrane_of_another_batch_raises(x_seq, run):
    stale = LIF().init(KEY, x_seq[0, :1])
    runs = {
        "simulate": lambda: sd.simulate(LIF(), stale, x_seq),
        "init_state": lambda: sd.init_state(LIF(), stale, x_seq[0], rngs=None),
    }
    with pytest.raises(ValueError, match=r"leaf state/v must keep its shape.*first state"):
        runs[run]()


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(
    ("stored", "given"), [((1, 8), (3, 8)), ((3, 8), (1, 8)), ((3, 8), (2, 8))]
)
def test_a_mask_of_another_batch_raises(step_mode, stored, given):
    layer = sd.Dropout(0.5, step_mode, deterministic=False)
    x = jnp.ones(given if step_mode == "s" else (2, *given))
    state = {"state": {"mask": jnp.ones(stored, bool)}}
    message = rf"state/mask must fit.*{stored[0]}, 8\).*{given[0]}, 8\).*reset_masks"
    with pytest.raises(ValueError, match=message):
        layer.apply(state, x, mutable=["state"])


def test_a_mask_of_another_dtype_raises():
    state = {"state": {"mask": jnp.ones((3, 8), jnp.float32)}}
    with pytest.raises(ValueError, match=r"dtype float32, but .* dtype bool"):
        sd.Dropout(0.5, deterministic=False).apply(state, jnp.ones((3, 8)))


# Rule 8: a mask belongs to (key, module path, shape of one step).


def test_what_is_random_at_each_step_equals_the_loop_that_folds_the_step_in(x_seq):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = sd.Dropout(0.5, deterministic=False)(x)
            return nn.Dropout(0.5, deterministic=False)(LIF()(4 * x))

    y_seq, updated = sd.simulate(Noisy(), {}, x_seq, rngs=RNGS)
    y_loop, updated_loop = loop(Noisy(), {}, x_seq, rngs=RNGS, fold=True)
    np.testing.assert_array_equal(y_seq, y_loop)
    chex.assert_trees_all_equal(updated, updated_loop)
    # The held mask comes from the key itself, as in a loop with one key.
    _, one_key = loop(Noisy(), {}, x_seq, rngs=RNGS)
    chex.assert_trees_all_equal(
        updated["state"]["Dropout_0"], one_key["state"]["Dropout_0"]
    )


@pytest.mark.exhaustive
def test_masks_do_not_depend_on_the_number_of_steps_or_x64(variables, x_seq):
    masks = []
    for steps in (1, 5):
        _, updated = sd.simulate(Net(), variables, x_seq[:steps], train=True, rngs=RNGS)
        masks.append(updated["state"]["last"]["mask"])
    with jax.enable_x64(True):
        _, updated = sd.simulate(Net(), variables, x_seq, train=True, rngs=RNGS)
        masks.append(updated["state"]["last"]["mask"])
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_masks_inside_nn_scan_over_layers_do_not_depend_on_how_time_is_run(x_seq):
    def mask(layer, x):
        class Cell(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = x * self.param("gain", nn.initializers.ones, ())
                return layer(name="drop")(x), None

        stack = nn.scan(
            Cell,
            variable_axes={"params": 0, "state": 0},
            split_rngs={"params": True, "dropout": True},
            length=3,
        )
        params = {"params": {"gain": jnp.ones(3)}}
        _, updated = stack().apply(params, x, None, rngs=RNGS, mutable=["state"])
        return updated["state"]["drop"]["mask"]

    def layer(step_mode):
        return lambda name: sd.Dropout(0.5, step_mode, deterministic=False, name=name)

    single = mask(layer("s"), x_seq[0])
    np.testing.assert_array_equal(mask(layer("m"), x_seq), single)
    np.testing.assert_array_equal(
        mask(lambda name: sd.MultiStep(layer("s")(name)), x_seq), single
    )


def test_one_instance_called_twice_shares_its_mask(x_seq):
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            drop = sd.Dropout(0.5, deterministic=False)
            return drop(x), drop(x)

    (a, b), _ = Twice().apply({}, x_seq[0], rngs=RNGS, mutable=["state"])
    np.testing.assert_array_equal(a, b)


# Rule 9: a mask is never born inside a raw JAX transform within a module.


class RawTransform(nn.Module):
    transform: str
    inline: bool

    def setup(self):
        if not self.inline:
            self.drop = sd.Dropout(0.5, deterministic=False)

    @nn.compact
    def __call__(self, x_seq):
        def layer(x):
            drop = sd.Dropout(0.5, deterministic=False) if self.inline else self.drop
            return drop(x)

        if self.transform == "scan":
            return jax.lax.scan(lambda carry, x: (carry, layer(x)), (), x_seq)[1]
        return {"vmap": jax.vmap, "jit": jax.jit, "checkpoint": jax.checkpoint}[
            self.transform
        ](layer)(x_seq)


@pytest.mark.short
@pytest.mark.parametrize("transform", ["scan", "vmap", "jit", "checkpoint"])
@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("outer", ["eager", "jit"])
def test_a_mask_born_inside_a_raw_transform_raises(x_seq, transform, inline, outer):
    model = RawTransform(transform, inline)

    def run(x_seq):
        return model.apply({}, x_seq, rngs=RNGS, mutable=["state"])

    with pytest.raises(RuntimeError, match=r"raw JAX transform.*nn\.scan.*init_state"):
        (jax.jit(run) if outer == "jit" else run)(x_seq)


@pytest.mark.parametrize("stateful", [LIF(), sd.Dropout(0.5, deterministic=False)])
def test_multistep_inside_a_raw_transform_raises_instead_of_leaking(x_seq, stateful):
    class Raw(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            over_time = sd.MultiStep(stateful)
            return jax.jit(lambda x_seq: over_time(x_seq))(x_seq)

    with pytest.raises(RuntimeError, match=r"'state' must not be written inside a raw JAX"):
        Raw().apply({}, x_seq, rngs=RNGS, mutable=["state"])
    # What is not kept can not leak.
    assert Raw().apply({}, x_seq, rngs=RNGS).shape == x_seq.shape


def test_a_stored_mask_is_read_inside_a_raw_transform(x_seq):
    mask = {"drop": {"mask": jnp.arange(24).reshape(3, 8) % 2 == 0}}
    y = RawTransform("scan", False).apply({"state": mask}, x_seq)
    np.testing.assert_array_equal(y != 0, jnp.broadcast_to(mask["drop"]["mask"], y.shape))


@cases(
    "lifted",
    [
        nn.remat,
        nn.jit,
        partial(nn.vmap, variable_axes={"state": 0}, split_rngs={"dropout": True}),
    ],
    short=[nn.remat],
)
def test_lifted_transforms_and_outer_transforms_raise_no_false_alarm(lifted, x_seq):
    layer = lifted(sd.Dropout)(0.5, deterministic=False)

    def run(x):
        return layer.apply({}, x, rngs=RNGS, mutable=["state"])

    chex.assert_trees_all_equal(run(x_seq), jax.jit(run)(x_seq))
    jax.vmap(run)(x_seq[None])
    jax.grad(lambda x: run(x)[0].sum())(x_seq)
    jax.lax.scan(lambda carry, x: (carry, run(x)), (), x_seq[None])


# Rule 10: neurons are other people's.


@pytest.mark.parametrize("named", ["mutable", "state_collections"])
def test_neurons_with_several_leaves_in_a_collection_of_another_name(named, x_seq):
    class Foreign(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = AdaptiveLIF()(4 * nn.Dense(6)(x))
            return sd.Dropout(0.5, deterministic=False)(x)

    variables = Foreign().init(KEY, x_seq[0])
    assert paths(variables["carry"]) == ["AdaptiveLIF_0/threshold", "AdaptiveLIF_0/v"]
    y_loop, updated_loop = loop(
        Foreign(), variables, x_seq, rngs=RNGS, mutable=("state", "carry")
    )
    params = {"params": variables["params"]}
    if named == "mutable":
        for start in (params, variables):
            y_seq, updated = sd.simulate(
                Foreign(), start, x_seq, rngs=RNGS, mutable="carry"
            )
            np.testing.assert_array_equal(y_seq, y_loop)
            chex.assert_trees_all_equal(updated, updated_loop)
    else:
        model = sd.MultiStep(Foreign(), state_collections=("state", "carry"))
        np.testing.assert_array_equal(model.apply(params, x_seq, rngs=RNGS), y_loop)


def test_reset_masks_drops_every_kind_of_mask():
    state = {
        "a": {"kernel_mask": jnp.ones(2), "bias_mask": jnp.ones(2), "v": jnp.ones(2)},
        "b": {"mask": jnp.ones(2), "mask_p": jnp.ones(2)},
    }
    assert paths(sd.reset_masks(state)) == ["a/v"]
    assert paths(sd.reset_masks({"state": state})) == ["state/a/v"]
    with pytest.raises(TypeError, match=r"`state` must be the collection.*NoneType"):
        sd.reset_masks(None)


def test_reset_functions_refuse_what_does_not_fit():
    state = {"a": {"v": jnp.zeros((3, 2))}}
    done = jnp.zeros(3, bool)
    with pytest.raises(ValueError, match=r"same structure.*init_state"):
        sd.reset_rows(done, state, {})
    with pytest.raises(ValueError, match=r"agree at \['a'\]\['v'\].*init_state"):
        sd.reset_rows(done, state, {"a": {"v": jnp.zeros((2, 2))}})
    with pytest.raises(ValueError, match=r"`done` must be a bool array \[N\].*int32"):
        sd.reset_rows(jnp.zeros(3, jnp.int32), state, state)
    with pytest.raises(TypeError, match=r"must be an array, but got float"):
        sd.reset_rows(done, {"v": 1.0}, {"v": 1.0})
    with pytest.raises(ValueError, match="`done` has 2 elements"):
        sd.reset_rows(done[:2], state, state)
    with pytest.raises(ValueError, match="without a batch axis"):
        sd.reset_rows(done, {"t": jnp.int32(0)}, {"t": jnp.int32(0)})


def test_a_state_of_inference_is_said_to_have_no_masks():
    """`init_state` draws what the model draws; the error of the rows says to train."""
    drop, x = sd.Dropout(0.5), jnp.ones((2, 4))
    rngs = {"dropout": jax.random.key(0)}
    assert sd.init_state(drop, {}, x, rngs=rngs, deterministic=True) == {}
    state = sd.init_state(drop, {}, x, rngs=rngs, deterministic=False)
    done = jnp.array([True, False])
    for rows in ((state, {}), ({}, state)):
        with pytest.raises(
            ValueError,
            match=r"same structure.*`init_state`.*as in training.*`train=True`.*"
            r"`deterministic=False`",
        ):
            sd.reset_rows(done, *rows)
    assert "`train=True`" in sd.init_state.__doc__.replace("``", "`")


def test_the_names_that_belong_to_masks_are_said():
    """A neuron's leaf of such a name is dropped with the masks; others are not."""
    drops, page = sd.reset_masks.__doc__, Path(__file__).parents[1] / "docs" / "state.md"
    reserved = page.read_text().split("## What is in it")[1].split("\n## ")[0]
    for name in MASK_NAMES:
        assert f"``{name}``" in drops
        assert f"`{name}`" in reserved.split("belong to masks")[0].splitlines()[-1]
    state = {"lif": {name: jnp.ones(2) for name in ("masked", "p", "refractory_mask")}}
    assert sd.reset_masks({**state, "drop": dict.fromkeys(MASK_NAMES, 0)}) == state
