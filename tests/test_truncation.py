"""Truncated backpropagation through time: state crosses the chunks, gradients do not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.neurons import LIF, Net

KEY = jax.random.key(7)
CHUNKS, STEPS, EXAMPLES, INPUTS = 3, 4, 5, 6


class Connections(sd.DropConnectLinear):
    """Held connections before neurons, with the `train` of the network of the tests."""

    def __call__(self, x, train=True):
        return super().__call__(x, deterministic=not train)


MODELS = {
    "dropout": Net(p=0.25),
    "connections": Connections(INPUTS, 4, p=0.25, invariant=True, activation=LIF()),
}
every_model = cases("model", MODELS.values(), [MODELS["connections"]], ids=MODELS)


def problem(model):
    x_seq = 6 * jax.random.normal(KEY, (CHUNKS, STEPS, EXAMPLES, INPUTS))
    params = model.init(jax.random.key(0), x_seq[0, 0])["params"]
    rngs = {"dropout": KEY}
    start = sd.init_state(model, {"params": params}, x_seq[0, 0], rngs=rngs, train=True)
    return params, start, x_seq


def chunk(model, params, state, x_seq):
    """One chunk: no key, since every mask is in the state."""
    variables = {"params": params, "state": state}
    y_seq, updated = sd.simulate(model, variables, x_seq, train=True)
    return updated["state"], y_seq


def chunked(model, params, state, x_seq, boundary=lambda state: state):
    outputs = []
    for part in x_seq:
        state, y_seq = chunk(model, params, boundary(state), part)
        outputs.append(y_seq)
    return state, jnp.concatenate(outputs)


def loss_of(y_seq):
    """Another weight for each output, and later steps count more."""
    weights = jnp.arange(y_seq.size, dtype=y_seq.dtype).reshape(y_seq.shape)
    return (weights * y_seq).sum() / y_seq.size


def masks_of(state):
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if path[-1].key.endswith("mask")
    ]


@pytest.mark.optimised
@every_model
@pytest.mark.exhaustive
def test_chunks_are_the_whole_bit_for_bit(model):
    params, start, x_seq = problem(model)
    whole = jax.jit(chunk, static_argnums=0)(
        model, params, start, x_seq.reshape(-1, EXAMPLES, INPUTS)
    )
    step, state, outputs = jax.jit(chunk, static_argnums=0), start, []
    for part in x_seq:
        state, y_seq = step(model, params, state, part)
        outputs.append(y_seq)
        chex.assert_trees_all_equal(masks_of(state), masks_of(start))
    chex.assert_trees_all_equal((state, jnp.concatenate(outputs)), whole)
    assert 0 < whole[1].mean() < 1 / (1 - 0.25), "some neurons fire"
    # Membranes did cross: chunks that start from rest are something else.
    rest = step(model, params, start, x_seq[1])[1]
    assert (rest != outputs[1]).any()


@every_model
def test_gradients_end_where_they_are_cut_and_nowhere_else(model):
    params, start, x_seq = problem(model)

    def last_loss(x_seq, boundary):
        return loss_of(chunked(model, params, start, x_seq, boundary)[1][-STEPS:])

    gradient = jax.jit(jax.grad(last_loss), static_argnums=1)
    cut = gradient(x_seq, jax.lax.stop_gradient)
    assert (cut[:-1] == 0).all()
    assert (cut[-1] != 0).any()
    through = gradient(x_seq, _unchanged)
    assert all((part != 0).any() for part in through)

    def whole_loss(x_seq):
        flat = x_seq.reshape(-1, EXAMPLES, INPUTS)
        return loss_of(chunk(model, params, start, flat)[1][-STEPS:])

    expected = jax.jit(jax.grad(whole_loss))(x_seq)
    chex.assert_trees_all_close(through, expected, rtol=1e-4, atol=1e-5)


def _unchanged(state):
    return state


@pytest.mark.exhaustive
@every_model
def test_a_training_loop_over_chunks_is_cut_by_itself(model):
    """The state is an argument of each update: the sum of the parts, by hand."""
    params, start, x_seq = problem(model)

    @jax.jit
    def update(state, part):
        def loss(params):
            after, y_seq = chunk(model, params, state, part)
            return loss_of(y_seq), after

        return jax.grad(loss, has_aux=True)(params)

    state, total = start, jax.tree.map(jnp.zeros_like, params)
    for part in x_seq:
        grads, state = update(state, part)
        total = jax.tree.map(jnp.add, total, grads)

    def by_hand(params, boundary):
        y_seq = chunked(model, params, start, x_seq, boundary)[1]
        return sum(loss_of(part) for part in jnp.split(y_seq, CHUNKS))

    gradient = jax.jit(jax.grad(by_hand), static_argnums=1)
    cut, through = gradient(params, jax.lax.stop_gradient), gradient(params, _unchanged)
    chex.assert_trees_all_close(total, cut, rtol=1e-4, atol=1e-4)
    kernels = [jax.tree.leaves(grads)[-1] for grads in (cut, through)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3, "another gradient"


@every_model
def test_a_row_that_is_restarted_has_no_gradient_of_what_was_before(model):
    params, start, x_seq = problem(model)
    variables, rngs = {"params": params}, {"dropout": jax.random.key(8)}
    fresh = sd.init_state(model, variables, x_seq[0, 0], rngs=rngs, train=True)
    done = jnp.arange(EXAMPLES) % 2 == 0

    def last_loss(first, second):
        state, _ = chunk(model, params, start, first)
        state = sd.reset_rows(done, state, fresh)
        return loss_of(chunk(model, params, state, second)[1])

    grads = jax.jit(jax.grad(last_loss, argnums=(0, 1)))(x_seq[0], x_seq[1])
    reached = (grads[0] != 0).any(axis=(0, 2))
    assert not reached[done].any()
    assert reached[~done].any()
    assert (grads[1] != 0).any(axis=(0, 2)).all()
