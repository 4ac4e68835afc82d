"""Scores of models of whole sequences: averaged over time once, and not over the batch."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests.depth import cases
from tests.neurons import Net

KEY = jax.random.key(8)
X_SEQ = jnp.zeros((5, 4, 6))


class NNXModel(nnx.Module):
    def __init__(self, function):
        self.function = function

    def __call__(self, x_seq):
        return self.function(x_seq)


def linen(function, x_seq, **kwargs):
    model, given = nn.Sequential([function]), {"rngs": None, "samples": 2, **kwargs}
    return sd.monte_carlo(model, {}, x_seq, step_mode="m", **given)


def of_nnx(function, x_seq, **kwargs):
    given = {"key": KEY, "samples": 2, **kwargs}
    return sdn.monte_carlo(NNXModel(function), x_seq, step_mode="m", **given)


RUNS = [linen, of_nnx]


def returns(shape, run, x_seq=X_SEQ, **kwargs):
    """The shapes of what is found of a model whose output has a shape."""
    return jax.eval_shape(lambda: run(lambda x: jnp.zeros(shape), x_seq, **kwargs)).mean


@cases(
    ("steps", "examples", "shape"),
    [
        (5, 4, (4, 3)),
        (5, 4, (4, 4)),  # as many classes as examples
        (5, 4, (4, 5)),  # as many classes as steps
        (5, 4, (4, 1)),
        (5, 4, (4,)),
        (5, 4, ()),
        (5, 4, (20, 3)),  # time in the batch
        (5, 4, (4, 5, 3)),  # the batch before time
        (5, 4, (4, 3, 2)),  # independent labels
        (4, 4, (4, 3)),
        (4, 4, (4, 4)),
        (4, 4, (4,)),
        (1, 4, (4, 3)),
        (5, 1, (1, 3)),
    ],
    short=[(5, 4, (4, 3)), (5, 4, (4, 4)), (5, 4, (4,)), (4, 4, (4, 3)), (4, 4, (4, 4))],
)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("entropies", [True, False])
def test_scores_without_time_are_not_averaged_over_the_batch(
    run, steps, examples, shape, entropies
):
    x_seq = jnp.zeros((steps, examples, 6))
    with pytest.raises(
        ValueError, match=r"averages over time.*without time: `scores=lambda y: y`"
    ) as error:
        returns(shape, run, x_seq, entropies=entropies)
    assert f"returned shape {shape}" in str(error.value)
    # What the message says to type.
    if not entropies or (len(shape) > 1 and shape[-1] > 1):
        scores = {"scores": lambda y: y, "entropies": entropies}
        assert returns(shape, run, x_seq, **scores).shape == shape


@cases(
    ("x_shape", "shape", "entropies"),
    [
        ((5, 4, 6), (5, 4, 3), True),
        ((4, 4, 6), (4, 4, 3), True),
        ((4, 4, 6), (4, 4, 4), True),
        ((4, 4, 4, 4), (4, 4, 4), True),
        ((1, 1, 6), (1, 1, 2), True),
        ((5, 1, 6), (5, 1, 3), True),
        ((1, 4, 6), (1, 4, 3), True),
        ((5, 4, 6), (5, 4), False),
        ((5, 4, 6), (5, 4, 1), False),
        ((5, 4, 6), (3, 4, 2), True),  # every other step
        ((1, 4, 6), (4, 4, 2), True),  # one input for all steps
        ((5, 4), (5, 4, 3), True),
        ((5, 4), (5, 3), False),  # no batch
        ((5,), (5,), False),
    ],
    short=[((4, 4, 6), (4, 4, 4), True), ((1, 4, 6), (4, 4, 2), True)],
)
@pytest.mark.parametrize("run", RUNS)
def test_outputs_of_all_steps_are_averaged(run, x_shape, shape, entropies):
    found = returns(shape, run, jnp.zeros(x_shape), entropies=entropies)
    assert found.shape == shape[1:]


@pytest.mark.parametrize("run", RUNS)
def test_several_inputs_have_one_time_and_batch(run):
    x_seq = {"events": X_SEQ, "valid": jnp.zeros((5, 4)), "time": jnp.zeros(5)}
    assert returns((5, 4, 3), run, x_seq).shape == (4, 3)
    with pytest.raises(ValueError, match=r"T = 5 and N = 4 .* returned shape \(4, 3\)"):
        returns((4, 3), run, x_seq)


@pytest.mark.parametrize("run", RUNS)
def test_scores_that_are_given_are_what_they_are(run):
    """And the error about one logit says what to do with what they return."""
    scores = {"scores": lambda y: y}
    with pytest.raises(ValueError, match=r"`jnp\.insert\(z, 0, 0\.0, axis=-1\)` of the z"):
        returns((4, 1), run, **scores)
    with pytest.raises(ValueError, match=r"`jnp\.insert\(z\[:, None\], 0, 0\.0, axis"):
        returns((4,), run, **scores)
    with pytest.raises(TypeError, match=r"one array of floats.*`\.astype\(jnp\.float"):
        returns((4, 3), run, scores=lambda y: y > 0)

    def logits(x_seq):
        return jnp.arange(4.0)[:, None]

    found = run(logits, X_SEQ, scores=lambda y: jnp.insert(y, 0, 0.0, axis=-1))
    np.testing.assert_array_equal(found.mean, jnp.stack([jnp.zeros(4), jnp.arange(4.0)], 1))


def test_a_simulation_of_single_steps_always_has_time():
    model = nn.Sequential([nn.Dense(3), sd.Dropout(0.5, deterministic=True), jnp.sum])
    x_seq = jnp.zeros((4, 4, 4))
    variables = model.init(KEY, x_seq[0])
    given = {"rngs": {"dropout": KEY}, "samples": 2, "entropies": False}
    found = jax.eval_shape(lambda: sd.monte_carlo(model, variables, x_seq, **given))
    assert found.mean.shape == ()


@pytest.mark.parametrize("state", [True, False])
@jax.numpy_rank_promotion("allow")
def test_neurons_of_single_steps_are_no_model_of_whole_sequences(state):
    model, x_seq = Net(), jnp.zeros((5, 4, 8))
    variables = model.init(KEY, x_seq[0])
    variables = variables if state else {"params": variables["params"]}
    given = {"rngs": {"dropout": KEY}, "samples": 2}
    for mutable in ((), ("counts",)):
        with pytest.raises(
            RuntimeError, match=r'leave `step_mode` out.*`mutable=.*Flax says: .*"state"'
        ):
            sd.monte_carlo(model, variables, x_seq, step_mode="m", mutable=mutable, **given)
    found = jax.eval_shape(lambda: sd.monte_carlo(model, variables, x_seq, **given))
    assert found.mean.shape == (4, 4)

    # One that runs over the steps itself.
    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            net = Net()
            return jnp.stack([net(x) for x in x_seq])

    variables = Loop().init(KEY, x_seq)
    with pytest.raises(RuntimeError, match="leave `step_mode` out"):
        sd.monte_carlo(Loop(), variables, x_seq, step_mode="m", **given)
    found = jax.eval_shape(
        lambda: sd.monte_carlo(
            Loop(), variables, x_seq, step_mode="m", mutable=["state"], **given
        )
    )
    assert found.mean.shape == (4, 4)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("missing", ["params", "batch_stats"])
def test_what_is_no_state_of_neurons_is_flaxs_own_error(step_mode, missing):
    model = nn.Sequential([nn.BatchNorm(True, use_scale=missing == "params")])
    variables = model.init(KEY, X_SEQ[0])
    del variables[missing]
    given = {"rngs": None, "samples": 2, "step_mode": step_mode}
    with pytest.raises(flax.errors.ScopeCollectionNotFound, match=f'"{missing}"'):
        sd.monte_carlo(model, variables, X_SEQ, **given)
