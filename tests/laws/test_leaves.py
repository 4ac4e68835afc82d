"""Every leaf of parameters and state: its name, the order of its axes, its dtype."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.laws.catalogue import FEW, STEPS, every, every_row
from tests.laws.test_laws import RNGS, TRAIN

every_kind_of_mask = every(FEW, lambda row: "spiking" not in row.name)

DTYPES = {"mask": jnp.bool_, "kernel_mask": jnp.uint32, "bias_mask": jnp.bool_}


def leaves_of(state):
    """Shapes and dtypes by path."""
    return {
        "/".join(str(key.key) for key in path): (leaf.shape, jnp.dtype(leaf.dtype))
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def ways(row, variables, x_seq):
    """The state that each way of running a simulation leaves."""
    single, multi = row.layer("s"), row.layer("m")
    kept = {"mutable": ["state"], **TRAIN}
    return {
        "s": lambda: single.apply(variables, x_seq[0], **kept)[1],
        "m": lambda: multi.apply(variables, x_seq, **kept)[1],
        "simulate": lambda: sd.simulate(single, variables, x_seq, **TRAIN)[1],
        "MultiStep": lambda: sd.MultiStep(single).apply(variables, x_seq, **kept)[1],
        "init_state": lambda: {
            "state": sd.init_state(single, variables, x_seq[0], **TRAIN)
        },
    }


@every_row
@cases("dtype", [jnp.float32, jnp.bfloat16], short=[jnp.bfloat16])
def test_every_way_leaves_the_same_leaves_whatever_the_dtype_of_the_input(row, dtype):
    """No program is compiled: shapes and dtypes are known without one."""
    x_seq = jnp.ones((STEPS, *row.shape), dtype)
    variables = jax.eval_shape(lambda: row.variables(x_seq[0]))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    expected = {
        name: (shape, jnp.dtype(DTYPES.get(name, jnp.uint32)))
        for name, shape in row.leaves.items()
    }
    if "spiking" in row.name:
        # Parameters are of float32, and so is what they make of the input.
        expected["activation/v"] = (row.shape[0], 40), jnp.dtype("float32")
    for way, run in ways(row, variables, x_seq).items():
        found = leaves_of(jax.eval_shape(run).get("state", {}))
        assert expected.items() <= found.items(), way
        rows = {shape[0] for shape, _ in found.values()}
        own = {shape[0] for shape in row.leaves.values()}
        assert rows <= (own or {row.shape[0]}), "the batch is the first axis of every leaf"


@cases("param_dtype", [jnp.float32, jnp.bfloat16], short=[jnp.bfloat16])
def test_parameters_are_made_as_those_of_a_dense_layer(param_dtype):
    """The same names, axes and dtypes, and for one initialiser the same numbers."""
    init = {"kernel_init": nn.initializers.lecun_normal()}
    init |= {"bias_init": nn.initializers.normal(), "param_dtype": param_dtype}
    key, x = jax.random.key(3), jnp.ones((2, 6))
    made = sd.DropConnectLinear(6, 5, **init).init(key, x, True)
    chex.assert_trees_all_equal(made, nn.Dense(5, **init).init(key, x))
    assert list(made["params"]) == ["kernel", "bias"]


class Mixed(nn.Module):
    """A neuron with leaves of every rank and of several dtypes."""

    @nn.compact
    def __call__(self, z):
        steps = self.variable("state", "steps", jnp.zeros, (), jnp.int32)
        total = self.variable("state", "total", jnp.zeros_like, z)
        positive = self.variable("state", "positive", jnp.zeros, z.shape, bool)
        largest = self.variable("state", "largest", jnp.zeros, z.shape[:1])
        if not self.is_initializing():
            steps.value = steps.value + 1
            total.value = total.value + z
            positive.value = z > 0
            largest.value = jnp.maximum(largest.value, z.max(-1))
        return total.value + steps.value.astype(z.dtype)


def test_sampled_neurons_keep_the_leaves_of_every_rank_and_dtype():
    """Each leaf has an axis of samples behind the batch, where it has a batch."""
    examples, inputs, outputs, samples = 3, 6, 5, 4
    layer = sd.DropConnectLinear(
        inputs, outputs, activation=Mixed(), samples_num=samples, deterministic=True
    )
    x_seq = jax.random.normal(jax.random.key(1), (STEPS, examples, inputs))
    variables = layer.init(jax.random.key(0), x_seq[0])
    multi = layer.clone(step_mode="m")

    @jax.jit
    def run(variables):
        kept = {"rngs": RNGS, "mutable": ["state"]}
        by_steps = sd.simulate(layer, variables, x_seq, rngs=RNGS)
        return by_steps, multi.apply(variables, x_seq, **kept)

    expected = {
        "steps": ((samples,), jnp.dtype(jnp.int32)),
        "total": ((examples, samples, outputs), jnp.dtype(jnp.float32)),
        "positive": ((examples, samples, outputs), jnp.dtype(bool)),
        "largest": ((examples, samples), jnp.dtype(jnp.float32)),
    }
    assert leaves_of(variables["state"]["samples"]["0"]["state"]) == expected
    for y_seq, updated in run(variables):
        state = updated["state"]["samples"]["0"]["state"]
        assert leaves_of(state) == expected
        np.testing.assert_array_equal(state["steps"], STEPS)
        # What is returned is the average over the axis of samples, and no other one.
        total = state["total"] + STEPS
        np.testing.assert_allclose(y_seq[-1], total.mean(1), rtol=1e-5)
        assert (state["largest"] >= 0).all()
        assert (total.std(1) > 0).all(), "each sample has a state of its own"


@cases("step_mode", ["s", "m"], short=["m"])
def test_samples_start_from_the_state_that_is_found(step_mode):
    """A neuron that has run on, or was given, is not put to rest."""
    layer = sd.DropConnectLinear(
        2, 3, activation=Mixed(), samples_num=4, step_mode=step_mode, deterministic=True
    )
    x = jnp.zeros((1, 2) if step_mode == "s" else (1, 1, 2))
    made = layer.init(jax.random.key(0), x)
    neuron = made["state"]["activation"] | {
        "total": jnp.full((1, 3), 5.0),
        "steps": jnp.int32(2),
    }
    # An input of 0 and no bias: the mean and the deviation are 0.
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    variables = {"params": params, "state": {"activation": neuron}}
    y, updated = layer.apply(variables, x, rngs=RNGS, mutable=["state"])
    np.testing.assert_array_equal(y, jnp.full(y.shape, 5.0 + 3))
    state = updated["state"]["samples"]["0"]["state"]
    np.testing.assert_array_equal(state["steps"], [3] * 4)
    np.testing.assert_array_equal(state["total"], jnp.full((1, 4, 3), 5.0))


@pytest.mark.parametrize(
    "fresh",
    [jnp.zeros((3, 2), jnp.bfloat16), jnp.zeros((3, 2), bool), jnp.zeros((3, 1))],
)
def test_rows_of_another_dtype_or_shape_are_refused_and_named(fresh):
    """A choice between two dtypes would turn masks into numbers, or lose digits."""
    state = {"a": {"v": jnp.zeros((3, 2))}}
    done = jnp.array([True, False, True])
    with pytest.raises(ValueError, match=r"agree at \['a'\]\['v'\].*float32.*init_state"):
        sd.reset_rows(done, state, {"a": {"v": fresh}})


def test_rows_are_those_of_the_first_axis_also_of_a_square_leaf():
    state = {"v": jnp.arange(27.0).reshape(3, 3, 3)}
    fresh = {"v": -jnp.ones((3, 3, 3))}
    # In words: it could be a stack of layers.
    chosen = sd.reset_rows(jnp.array([False, True, False]), state, fresh, axis=0)["v"]
    np.testing.assert_array_equal(chosen[1], fresh["v"][1])
    np.testing.assert_array_equal(chosen[::2], state["v"][::2])


@every(FEW, lambda row: "spiking" not in row.name, ["DropConnect invariant"])
def test_restarted_rows_keep_shape_and_dtype_of_every_leaf(row):
    x = jnp.ones(row.shape)
    variables = row.variables(x)

    @jax.jit
    def start(key):
        rngs = {"dropout": key}
        return sd.init_state(row.layer(), variables, x, deterministic=False, rngs=rngs)

    state, fresh = (start(key) for key in jax.random.split(jax.random.key(0)))
    done = jnp.arange(row.shape[0]) % 3 == 1
    chosen = sd.reset_rows(done, state, fresh)
    assert leaves_of(chosen) == leaves_of(state)
    for name in row.leaves:
        assert (state[name] != fresh[name]).any()
        np.testing.assert_array_equal(chosen[name][done], fresh[name][done])
        np.testing.assert_array_equal(chosen[name][~done], state[name][~done])
