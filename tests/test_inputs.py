"""Inputs of a shape or kind that is easily mistaken: lists of steps, stacks of layers."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeCollectionNotFound

import snn_dropout as sd
from tests.neurons import LIF, LateLIF

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(7)
RNGS = {"dropout": KEY}
X_SEQ = jax.random.normal(jax.random.key(3), (4, 3, 8))


RUNS = {
    "simulate": lambda x_seq: sd.simulate(LIF(), {}, x_seq),
    "MultiStep": lambda x_seq: sd.MultiStep(LIF()).apply({}, x_seq),
    "MultiStep.init": lambda x_seq: sd.MultiStep(LIF()).init(KEY, x_seq),
    "monte_carlo": lambda x_seq: sd.monte_carlo(
        LIF(), {}, x_seq, rngs=None, samples=2, step_mode="m"
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_list_of_steps_is_to_be_stacked(run):
    for steps in (list(X_SEQ), list(np.asarray(X_SEQ))):
        with pytest.raises(
            TypeError, match=r"got a list of 4; .*`jnp\.stack\(x_seq\)`.*`tuple\(x_seq\)`"
        ):
            RUNS[run](steps)


def test_several_inputs_are_a_tuple_or_a_dict():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return sum(jax.tree.leaves(inputs))

    expected, _ = sd.simulate(Sum(), {}, X_SEQ)
    for x_seq in ((X_SEQ, 0 * X_SEQ), {"a": X_SEQ, "b": [0 * X_SEQ]}, (X_SEQ,)):
        np.testing.assert_array_equal(sd.simulate(Sum(), {}, x_seq)[0], expected)


@pytest.mark.parametrize(
    "make", [sd.Dropout, lambda p, mode: sd.DropConnectLinear(8, 8, p=p, step_mode=mode)]
)
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_layer_is_given_one_array(make, kind):
    """What the message says is no single step of all time steps."""
    with pytest.raises(
        TypeError, match=r"`x_seq` must be an array, but got a \w+ of 4.*jnp\.stack\(x_seq"
    ):
        make(0.5, "m").init(KEY, kind(X_SEQ), True)
    with pytest.raises(
        TypeError, match=r"`x` must be .* of 4; for a list of time steps call .* each, or"
    ):
        make(0.5, "s").init(KEY, kind(X_SEQ), True)
    with pytest.raises(TypeError, match=r"must be an array, but got \w+; .*jnp\.asarray"):
        make(0.5, "s").init(KEY, kind([1.0, 2.0]), True)


def test_batch_first_is_said_where_people_look():
    pages = ("README.md", "docs/index.md", "docs/from-flax.md", "docs/from-spikingjelly.md")
    texts = [(ROOT / page).read_text() for page in pages]
    for text in (*texts, sd.simulate.__doc__, sd.MultiStep.__call__.__doc__):
        assert "[N, T, ...]" in text
        assert "jnp.swapaxes(x_seq, 0, 1)" in text


def stack(neuron, lifted=nn.scan, **fields):
    """Two layers of neurons and held dropout, stacked by a lifted transform."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = neuron()(4 * nn.Dense(8)(x))
            return sd.Dropout(0.5)(x, deterministic=True), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            if lifted is nn.scan:
                return nn.scan(Block, length=2, **fields)()(x, None)[0]
            return nn.vmap(Block, in_axes=(0, None), **fields)()(x, None)[0]

    return Stack()


SPLIT = {"split_rngs": {"params": True, "dropout": True}}


def test_a_stack_that_forgets_the_state_is_told_what_to_type():
    whole = stack(LIF, variable_axes={"params": 0, "state": 0}, **SPLIT)
    variables = whole.init(KEY, X_SEQ[0])
    forgets = stack(LIF, variable_axes={"params": 0}, **SPLIT)
    message = (
        r"The collection 'state' must be handed on by `nn\.scan`.*"
        r"`variable_axes=\{'params': 0, 'state': 0\}`.*Flax says: "
    )
    params = {"params": variables["params"]}
    for run in (
        lambda: sd.simulate(forgets, params, X_SEQ),
        lambda: sd.simulate(forgets, variables, X_SEQ),
        lambda: sd.init_state(forgets, variables, X_SEQ[0], rngs=None),
        lambda: sd.MultiStep(forgets).apply(variables, X_SEQ),
    ):
        with pytest.raises(RuntimeError, match=message):
            run()
    assert sd.simulate(whole, variables, X_SEQ)[0].shape == X_SEQ.shape


def test_rows_of_a_lifted_vmap_are_too():
    rows, shared = {"params": None, "state": 0}, {"params": False}
    whole = stack(LIF, nn.vmap, variable_axes=rows, split_rngs=shared)
    forgets = stack(LIF, nn.vmap, variable_axes={"params": None}, split_rngs=shared)
    params = {"params": whole.init(KEY, X_SEQ[0])["params"]}
    assert sd.simulate(whole, params, X_SEQ)[0].shape == X_SEQ.shape
    with pytest.raises(
        RuntimeError, match=r"by `nn\.vmap`.*\{'params': None, 'state': 0\}`\. Flax says"
    ):
        sd.simulate(forgets, params, X_SEQ)


def test_other_errors_of_flax_stay_as_they_are():
    class Constant(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.variable("constants", "gain", jnp.ones, ()).value

    model = stack(Constant, variable_axes={"params": 0, "constants": 0}, **SPLIT)
    params = {"params": model.init(KEY, X_SEQ[0])["params"]}
    # It is not carried, so nothing in the model is at fault.
    with pytest.raises(ScopeCollectionNotFound, match="constants"):
        sd.simulate(model, params, X_SEQ)


def test_a_late_neuron_in_a_stack_that_forgets_the_state_does_not_carry_it():
    """It runs from rest at each step, as its library has it: it can not be noticed."""
    forgets = stack(LateLIF, variable_axes={"params": 0}, **SPLIT)
    variables = forgets.init(KEY, X_SEQ[0])
    _, updated = sd.simulate(forgets, variables, X_SEQ)
    assert updated == {}
