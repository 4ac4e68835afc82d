"""Ways of going wrong with masks in NNX: each raises, or is written down as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import snn_dropout.nnx as sdn
from tests.nnx.catalogue import KEY, LIF, holds_nothing, masks_of, mode  # noqa: F401

X = jnp.ones((4, 6))
X_SEQ = jnp.ones((5, 4, 6))


def drops():
    return nnx.Sequential(nnx.Linear(6, 8, rngs=nnx.Rngs(0)), sdn.Dropout(0.5))


# The nine traps.


def test_masks_change_the_structure_once_and_reset_gives_it_back(mode):  # noqa: F811
    model = drops()
    without = nnx.graphdef(model)
    sdn.init_masks(model, X, key=KEY)
    held, state = nnx.split(model)
    assert held != without
    sdn.init_masks(model, X, key=jax.random.key(1))
    assert nnx.graphdef(model) == held  # drawn anew in place
    with pytest.raises(Exception):  # noqa: B017, PT011  (of Flax, in its own words)
        nnx.merge(without, state)(X)
    sdn.reset_masks(model)
    assert nnx.graphdef(model) == without
    sdn.simulate(model, X_SEQ, key=KEY)
    assert nnx.graphdef(model) == without


def test_a_view_made_before_a_simulation_raises_and_one_made_inside_shares_its_masks():
    model = drops()
    before = nnx.view(model, deterministic=False)
    with sdn.simulation(model, X, key=KEY):
        with pytest.raises(RuntimeError, match="views and copies that were made before"):
            before(X)
        inside = nnx.view(model, deterministic=False)
        np.testing.assert_array_equal(inside(X), model(X))
        evaluated = nnx.view(model, deterministic=True)
        np.testing.assert_array_equal(evaluated(X), model.layers[0](X))
    assert not model.layers[1].deterministic


def test_nnx_view_tells_of_the_flag():
    assert "if True, nothing is dropped." in nnx.view_info(drops())


def test_popped_masks_are_gone_and_can_be_made_again():
    model = drops()
    sdn.init_masks(model, X, key=KEY)
    first = masks_of(model)
    popped = nnx.pop(model, sdn.HeldMask)
    assert len(jax.tree.leaves(popped)) == 2
    with pytest.raises(RuntimeError, match="init_masks"):
        model(X)
    sdn.simulate(model, X_SEQ, key=KEY)
    with sdn.simulation(model, X, key=KEY):
        assert masks_of(model).keys() == first.keys()
    sdn.init_masks(model, X, key=KEY)
    for path, mask in masks_of(model).items():
        np.testing.assert_array_equal(mask, first[path])


def test_half_of_what_is_held_raises():
    layer = sdn.Dropout(0.5)
    sdn.init_masks(layer, X, key=KEY)
    layer.mask = nnx.data(None)
    with pytest.raises(ValueError, match=r"`mask` beside `mask_p`.*reset_masks"):
        layer(X)
    connected = sdn.DropConnectLinear(6, 8, invariant=True, rngs=nnx.Rngs(0))
    sdn.init_masks(connected, X, key=KEY)
    connected.bias_mask = nnx.data(None)
    with pytest.raises(ValueError, match="`bias_mask` beside `kernel_mask`"):
        connected(X)


def test_a_mask_that_somebody_put_there_is_applied_with_the_rate_at_hand():
    layer = sdn.Dropout(0.5)
    layer.mask = sdn.HeldMask(jnp.arange(24).reshape(4, 6) % 2 == 0)
    assert layer(X).tolist() == [[2.0, 0.0] * 3] * 4


def test_masks_are_no_parameters_for_gradients_and_optimizers():
    model = drops()
    sdn.init_masks(model, X, key=KEY)
    _, _, held = nnx.split(model, nnx.Param, ...)
    assert {type(v) for _, v in nnx.to_flat_state(held)} == {sdn.HeldMask}
    grads = nnx.grad(lambda model: (model(X) ** 2).sum())(model)
    assert {path[-1] for path, _ in nnx.to_flat_state(grads)} == {"kernel", "bias"}
    with pytest.raises(TypeError, match="bool"):
        jax.grad(lambda held: (nnx.merge(*nnx.split(model))(X) ** 2).sum())(held)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    before = masks_of(model)
    optimizer.update(model, grads)
    for path, mask in masks_of(model).items():
        np.testing.assert_array_equal(mask, before[path])
    careless = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Variable)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(careless))}
    assert jnp.dtype(bool) in kinds, "if Flax refuses, the documentation may say so"


class Twice(nnx.Module):
    def __init__(self):
        self.first = self.second = sdn.Dropout(0.5)

    def __call__(self, x):
        return self.second(self.first(x))


def test_a_shared_layer_has_one_mask():
    model = Twice()
    sdn.init_masks(model, X, key=KEY)
    assert len(masks_of(model)) == 2  # and its probability
    assert set(np.unique(model(X))) == {0, 4}


def test_one_layer_at_two_shapes_raises():
    class Two(nnx.Module):
        def __init__(self):
            self.drop = sdn.Dropout(0.5)

        def __call__(self, x):
            return self.drop(x).sum() + self.drop(x[:, :2]).sum()

    for make in (sdn.init_masks, sdn.simulate):
        x = X if make is sdn.init_masks else X_SEQ
        with pytest.raises(ValueError, match=r"shape \(4, 6\) and shape \(4, 2\)"):
            make(Two(), x, key=KEY)


def test_init_masks_in_a_raw_scan_body_raises_and_says_where_to_call_it():
    model = drops()

    def body(carry, x):
        sdn.init_masks(model, x, key=KEY)
        return carry, model(x)

    with pytest.raises(RuntimeError, match=r"Call them before the transform"):
        jax.lax.scan(body, (), X_SEQ)


def test_what_init_masks_made_stays_until_it_is_reset():
    """The reason why a simulation with an end is a scope."""
    layer = sdn.Dropout(0.5)
    sdn.init_masks(layer, X, key=KEY)
    first = layer(X)
    np.testing.assert_array_equal(layer(X), first)
    with pytest.raises(ValueError, match=r"holds one already, at Dropout.*reset_masks"):
        sdn.simulate(layer, X_SEQ, key=jax.random.key(1))
    np.testing.assert_array_equal(sdn.simulate(layer, X_SEQ)[0], first)  # goes on with it
    assert not holds_nothing(layer), "what others made is not taken away"
    with pytest.raises(ValueError, match="holds one already"):  # noqa: SIM117
        with sdn.simulation(layer, X, key=KEY):
            pass
    with sdn.simulation(layer, X):
        np.testing.assert_array_equal(layer(X), first)
    assert not holds_nothing(layer)


# The table of ways to hold a mask.


def step_without_graph_updates(model, x):
    graphdef, state = nnx.split(model)

    @jax.jit
    def step(state, x):
        return nnx.merge(graphdef, state, copy=True)(x)

    return step(state, x)


STEPS = {
    "nnx.jit": nnx.jit(lambda model, x: model(x)),
    "jax.jit": step_without_graph_updates,
    "eager": lambda model, x: model(x),
    "remat": lambda model, x: nnx.remat(lambda model, x: model(x))(model, x),
    "cached": lambda model, x: nnx.cached_partial(
        nnx.jit(lambda model, x: model(x)), model
    )(x),
}


@pytest.mark.short
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_loop_holds_the_mask(step):
    model = drops()
    with sdn.simulation(model, X, key=KEY):
        first, *others = (step(model, x) for x in X_SEQ)
        expected = model(X)
    for y in (first, *others):
        np.testing.assert_array_equal(y == 0, expected == 0)
    assert 0.2 < (first == 0).mean() < 0.8


def test_a_loop_holds_it_in_each_mode(mode):  # noqa: F811
    test_every_loop_holds_the_mask(STEPS["jax.jit"])
    test_every_loop_holds_the_mask(STEPS["nnx.jit"])


def test_a_scan_that_carries_streams_alone_holds_it():
    """Where a mask that is made lazily would be another one at every step, in silence."""
    model = nnx.Sequential(sdn.Dropout(0.5), nnx.Dropout(0.0, rngs=nnx.Rngs(0)))
    with sdn.simulation(model, X, key=KEY):
        graphdef, streams, rest = nnx.split(model, nnx.RngState, ...)

        def step(streams, x):
            model = nnx.merge(graphdef, streams, rest, copy=True)
            return nnx.state(model, nnx.RngState), model(x)

        _, y_seq = jax.lax.scan(step, streams, X_SEQ)
    assert (y_seq == y_seq[:1]).all()


def test_a_step_is_traced_once_in_all_simulations():
    model, traces = drops(), []

    @nnx.jit
    def step(model, x):
        traces.append(1)
        return model(x)

    @nnx.jit
    def whole(model, x_seq, key):
        traces.append(2)
        return sdn.simulate(model, x_seq, key=key)

    outputs = []
    for number in range(3):
        key = jax.random.key(number)
        with sdn.simulation(model, X, key=key):
            y_seq = jnp.stack([step(model, x) for x in X_SEQ])
        np.testing.assert_array_equal(whole(model, X_SEQ, key), y_seq)
        outputs.append(y_seq)
    assert sorted(traces) == [1, 2]
    assert (outputs[0] != outputs[1]).any()


def test_nothing_runs_in_python_at_each_step():
    calls = []

    class Counting(nnx.Module):
        def __init__(self):
            self.neurons, self.drop = LIF(), sdn.Dropout(0.5)

        def __call__(self, x):
            calls.append(x)
            return self.drop(self.neurons(x))

    sdn.simulate(Counting(), jnp.ones((50, 4, 6)), key=KEY)
    assert len(calls) <= 3
