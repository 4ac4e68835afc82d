"""The transforms of NNX and of JAX around simulations, and inside of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests.depth import cases
from tests.garbage import checking_leaks
from tests.nnx.catalogue import (
    KEY,
    LIF,
    Net,
    holds_nothing,
    linen_net,
    masks_of,
    mode,  # noqa: F401
    net,
)

X_SEQ = jax.random.normal(jax.random.key(1), (5, 4, 6))
simulated = nnx.jit(lambda model, x_seq, key: sdn.simulate(model, x_seq, key=key))


def rested(model):
    for neurons in (model.LIF_0, model.LIF_1):
        neurons.v.set_value(jnp.zeros_like(neurons.v.get_value()))
    return model


def test_a_training_step_by_nnx_is_that_by_hand_in_each_mode(mode):  # noqa: F811
    """`nnx.jit` with `nnx.Optimizer` in graph mode; split, merge and `jax.grad` in all."""
    losses = []
    for number in range(2):
        model = net(linen_net(X_SEQ[0])[1])
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, key, graphdef=graphdef, rest=rest):
            model = nnx.merge(graphdef, params, rest, copy=True)
            return (sdn.simulate(model, X_SEQ, key=key) ** 2).mean()

        value, grads = jax.jit(jax.value_and_grad(loss))(params, jax.random.key(number))
        # Before the step, which may update the Variables that `params` refers to.
        by_hand = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        assert holds_nothing(model)
        losses.append(value)
        if not mode[1]:
            continue
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, key):
            def loss(model):
                return (sdn.simulate(model, X_SEQ, key=key) ** 2).mean()

            value, grads = nnx.value_and_grad(loss)(model)
            optimizer.update(model, grads)
            return value

        assert step(model, optimizer, jax.random.key(number)) == value
        assert holds_nothing(model)
        for one, other in zip(
            jax.tree.leaves(nnx.state(model, nnx.Param)),
            jax.tree.leaves(by_hand),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    assert losses[0] != losses[1]


def test_ensembles_by_vmap_draw_masks_of_their_own():
    keys = jax.random.split(KEY, 3)

    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(key):
        return Net(rngs=nnx.Rngs(key))

    ensemble = create(jax.random.split(jax.random.key(0), 3))

    @nnx.vmap(in_axes=(0, None, 0))
    def run(model, x_seq, key):
        return sdn.simulate(model, x_seq, key=key)

    y_seq = run(ensemble, X_SEQ, keys)
    assert y_seq.shape == (3, 5, 4, 4)
    assert holds_nothing(ensemble)
    for number in range(2):
        one = nnx.merge(
            nnx.graphdef(ensemble),
            jax.tree.map(lambda leaf, n=number: leaf[n], nnx.state(ensemble)),
        )
        one.LIF_0.v.set_value(jnp.zeros(()))
        one.LIF_1.v.set_value(jnp.zeros(()))
        alone = simulated(one, X_SEQ, keys[number])
        np.testing.assert_allclose(y_seq[number], alone, rtol=1e-5, atol=1e-6)


@cases("over", [jax.vmap, lambda f: lambda keys: jax.lax.map(f, keys)], short=[jax.vmap])
def test_many_simulations_of_one_model_by_vmap_and_map(over):
    model = Net(rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)

    def run(key):
        return sdn.simulate(nnx.merge(graphdef, state, copy=True), X_SEQ, key=key)

    found = over(run)(jax.random.split(KEY, 2))
    for y_seq, key in zip(found, jax.random.split(KEY, 2), strict=True):
        expected = sdn.simulate(nnx.merge(graphdef, state, copy=True), X_SEQ, key=key)
        np.testing.assert_allclose(y_seq, expected, rtol=1e-5, atol=1e-6)


def test_nnx_scan_over_time_holds_the_masks_of_a_simulation():
    model = Net(rngs=nnx.Rngs(0))
    expected = sdn.simulate(model, X_SEQ, key=KEY)
    rested(model)
    axes = nnx.StateAxes({(nnx.Param, sdn.HeldMask): None, ...: nnx.Carry})

    @nnx.scan(in_axes=(axes, 0), out_axes=0)
    def run(model, x):
        return model(x)

    with sdn.simulation(model, X_SEQ[0], key=KEY):
        np.testing.assert_array_equal(run(model, X_SEQ), expected)


class Block(nnx.Module):
    """A part that is run under a transform of its own."""

    def __init__(self, transform, *, rngs):
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.neurons, self.drop = LIF(), sdn.Dropout(0.5)
        self.transform = transform

    def __call__(self, x):
        def part(self, x):
            return self.drop(self.neurons(4 * self.linear(x)))

        return self.transform(part)(self, x)


@cases("transform", [nnx.remat, nnx.jit], ids=["remat", "jit"], short=[nnx.remat])
def test_transforms_inside_of_the_model(transform):
    def run(transform):
        model = Block(transform, rngs=nnx.Rngs(0))

        def loss(model):
            y_seq = sdn.simulate(model, X_SEQ, key=KEY)
            return (y_seq * jnp.arange(y_seq.size).reshape(y_seq.shape)).sum(), y_seq

        (_, y_seq), grads = nnx.value_and_grad(loss, has_aux=True)(model)
        return y_seq, nnx.to_pure_dict(grads)

    plain, found = run(lambda part: part), run(transform)
    np.testing.assert_array_equal(plain[0] == 0, found[0] == 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, found
    )
    assert (plain[0] != 0).any()


def test_layers_that_nnx_maps_over_inside_of_the_model_are_told_apart():
    class Deep(nnx.Module):
        def __init__(self, *, rngs):
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def create(rngs):
                return sdn.Dropout(0.5, rngs=rngs)

            self.blocks = create(rngs.split(3))

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def through(x, block):
                return block(x)

            return through(x, self.blocks)

    with pytest.raises(ValueError, match=r"at blocks stands for many.*nnx\.List"):
        sdn.init_masks(Deep(rngs=nnx.Rngs(0)), X_SEQ[0], key=KEY)


class Cell(nnx.Module):
    """A cell of Flax with a held mask on its input (Gal and Ghahramani 2016)."""

    def __init__(self, cell):
        self.cell, self.drop = cell, sdn.Dropout(0.5)

    def __call__(self, carry, x):
        return self.cell(carry, self.drop(x))

    def initialize_carry(self, *args, **kwargs):
        return self.cell.initialize_carry(*args, **kwargs)

    @property
    def num_feature_axes(self):
        return self.cell.num_feature_axes


@cases("kind", [nnx.LSTMCell, nnx.GRUCell], short=[nnx.LSTMCell])
def test_rnns_hold_the_mask_over_time(kind):
    rngs = nnx.Rngs(0)
    rnn = nnx.RNN(Cell(kind(6, 6, rngs=rngs)))
    batch = X_SEQ.swapaxes(0, 1)  # [N, T, I], as `nnx.RNN` has it
    with sdn.simulation(rnn, batch, key=KEY):
        mask = rnn.cell.drop.mask.get_value()
        assert mask.shape == (4, 6)
        y = rnn(batch)
        np.testing.assert_array_equal(nnx.jit(lambda r, x: r(x))(rnn, batch), y)
    masked = jnp.where(mask[:, None], batch, 0) / 0.5
    bare = nnx.RNN(rnn.cell.cell)
    np.testing.assert_allclose(bare(masked), y, rtol=1e-5, atol=1e-6)
    assert holds_nothing(rnn)


def test_a_cached_partial_step_holds_the_mask():
    model = Net(rngs=nnx.Rngs(0))
    expected = sdn.simulate(model, X_SEQ, key=KEY)
    rested(model)
    with sdn.simulation(model, X_SEQ[0], key=KEY):
        step = nnx.cached_partial(nnx.jit(lambda model, x: model(x)), model)
        y_seq = jnp.stack([step(x) for x in X_SEQ])
    np.testing.assert_allclose(y_seq, expected, rtol=1e-6)


def test_streams_that_are_handed_to_the_model_are_carried():
    class Theirs(nnx.Module):
        def __init__(self):
            self.drop, self.theirs = sdn.Dropout(0.5), nnx.Dropout(0.5)

        def __call__(self, x, rngs):
            return self.theirs(self.drop(x), rngs=rngs)

    ones, rngs = jnp.ones((8, 4, 64)), nnx.Rngs(0)
    y_seq = sdn.simulate(Theirs(), ones, rngs, key=KEY)
    held = sdn.simulate(sdn.Dropout(0.5), ones, key=KEY)  # another path, another mask
    assert held.shape == y_seq.shape
    assert (y_seq[0] != y_seq[1]).any(), "theirs is new at each step"
    assert abs((y_seq == 0).all(0).mean() - 0.5) < 0.1, "ours is held"
    assert int(rngs.default.count[...]) == 8


def test_a_model_that_jit_closes_over_can_be_run_where_nothing_moves():
    model = nnx.Sequential(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), sdn.Dropout(0.5))
    run = jax.jit(lambda x_seq, key: sdn.simulate(model, x_seq, key=key))
    np.testing.assert_allclose(
        run(X_SEQ, KEY), sdn.simulate(model, X_SEQ, key=KEY), rtol=1e-6
    )


def test_what_no_step_changes_is_not_carried():
    class Constant(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __init__(self):
            self.table, self.drop = Constant(jnp.ones((6, 6))), sdn.Dropout(0.5)
            self.neurons = LIF()

        def __call__(self, x):
            return self.drop(self.neurons(x @ self.table.get_value()))

    model = Model()
    table = model.table.get_value()
    sdn.simulate(model, X_SEQ, key=KEY)
    assert model.table.get_value() is table


@pytest.mark.exhaustive
def test_truncated_backpropagation_keeps_the_masks_of_a_sequence():
    """Chunks of one key are the whole; linen's chunks have the same gradients."""
    linen, params = linen_net(X_SEQ[0])
    model = net(params)
    whole = sdn.simulate(net(params), X_SEQ, key=KEY)
    state = linen.init(jax.random.key(2), X_SEQ[0])["state"]
    rngs = {"dropout": KEY}
    outputs = []
    for chunk in (X_SEQ[:2], X_SEQ[2:]):

        def loss(model, chunk=chunk):
            y_seq = sdn.simulate(model, chunk, key=KEY)
            return (y_seq**2).sum(), y_seq

        def linen_loss(params, state=state, chunk=chunk):
            y_seq, updated = sd.simulate(
                linen, {"params": params, "state": state}, chunk, train=True, rngs=rngs
            )
            return (y_seq**2).sum(), updated["state"]

        step = nnx.jit(nnx.value_and_grad(loss, has_aux=True))
        (_, y_seq), grads = step(model)
        linen_step = jax.jit(jax.value_and_grad(linen_loss, has_aux=True))
        (_, state), expected = linen_step(params)
        outputs.append(y_seq)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            nnx.to_pure_dict(grads),
            dict(expected),
        )
    np.testing.assert_array_equal(jnp.concatenate(outputs), whole)


def test_rows_restart_inside_of_a_stream():
    """A scan that carries masks and membranes; the examples that are done start anew."""
    layer = sdn.Dropout(0.5)
    sdn.init_masks(layer, jnp.ones((3, 16)), key=KEY)
    graphdef, state = nnx.split(layer)
    done = jnp.array([[False, True, False], [False, False, False], [True, False, True]])

    @jax.jit
    def stream(state):
        def step(state, inputs):
            number, done = inputs
            layer = nnx.merge(graphdef, state, copy=True)
            sdn.reset_rows(done, layer, key=jax.random.fold_in(KEY, number))
            return nnx.state(layer), layer(jnp.ones((3, 16)))

        return jax.lax.scan(step, state, (jnp.arange(3), done))

    last, y_seq = stream(state)
    before = np.asarray(masks_of(layer)["mask",])
    for t in range(3):
        mask = np.asarray(y_seq[t] != 0)
        for n in range(3):
            assert (mask[n] == before[n]).all() == (not bool(done[t, n]))
        before = mask
    nnx.update(layer, last)
    np.testing.assert_array_equal(masks_of(layer)["mask",], before)


@pytest.mark.exhaustive
def test_no_tracer_leaks_from_a_dry_run():
    model = nnx.Sequential(
        sdn.Dropout(0.5),
        sdn.DropConnectLinear(
            6, 4, invariant=True, activation=LIF(), samples_num=2, rngs=nnx.Rngs(0)
        ),
    )
    with checking_leaks():
        sdn.init_masks(model, X_SEQ[0], key=KEY)
        sdn.reset_masks(model)
        model.eval()
        with sdn.simulation(model, X_SEQ[0]):
            model(X_SEQ[0])
