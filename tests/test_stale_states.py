"""A state of another batch: named, with both shapes, before a neuron meets it."""

import re
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.neurons import LIF, AdaptiveLIF, LateLIF, LateVariable, Net

KEY = jax.random.key(7)
RNGS = {"dropout": KEY}
X_SEQ = jax.random.normal(jax.random.key(3), (4, 3, 8))

WAYS = {
    "simulate": lambda model, v, x: sd.simulate(model, v, x, rngs=RNGS),
    "jit": lambda model, v, x: jax.jit(partial(sd.simulate, model, rngs=RNGS))(v, x),
    "MultiStep": lambda model, v, x: sd.MultiStep(model).apply(v, x, rngs=RNGS),
    "mutable": lambda model, v, x: sd.MultiStep(model).apply(
        v, x, rngs=RNGS, mutable=["state"]
    ),
    "init_state": lambda model, v, x: sd.init_state(model, v, x[0], rngs=RNGS),
    "jit init_state": lambda model, v, x: jax.jit(partial(sd.init_state, model, rngs=RNGS))(
        v, x[0]
    ),
    "monte_carlo": lambda model, v, x: sd.monte_carlo(model, v, x, rngs=RNGS, samples=2),
}
BATCHES = [(3, 2), (3, 1), (1, 3)]


def refused(leaf, before, now):
    shapes = rf"{leaf} must keep its shape, but it has .*\({before}, .*\({now}, "
    return pytest.raises(ValueError, match=shapes + r".*of another batch.*'params'")


@pytest.mark.short
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("before", "now"), BATCHES)
def test_membranes_of_another_batch_are_named(way, before, now):
    """The last, smaller batch of an epoch, with the whole variables of `init`."""
    variables = Net().init(KEY, jnp.zeros((before, 8)))
    with refused("state/LIF_0/v", before, now):
        WAYS[way](Net(), variables, jnp.zeros((4, now, 8)))


def test_what_the_message_says_to_type():
    variables = Net().init(KEY, X_SEQ[0])
    last = X_SEQ[:, :2]
    run = jax.jit(partial(sd.simulate, Net()))
    with refused("state/LIF_0/v", 3, 2):
        run(variables, last)
    y_seq, _ = run({"params": variables["params"]}, last)
    anew = Net().init(KEY, last[0])["state"]
    again, _ = run({"params": variables["params"], "state": anew}, last)
    np.testing.assert_array_equal(y_seq, again)
    # A batch before time is noticed where the two differ.
    with pytest.raises(ValueError, match=r"time first: .* `jnp\.swapaxes\(x_seq, 0, 1\)`"):
        run(variables, X_SEQ.swapaxes(0, 1))


def test_the_whole_path_is_named_in_a_layer_by_layer_network():
    class Layered(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            x_seq = sd.MultiStep(LIF(name="first"))(x_seq)
            return sd.MultiStep(nn.Sequential([LIF()]))(x_seq)

    model = nn.Sequential([Layered()])
    stale = model.init(KEY, X_SEQ)
    with refused("state/layers_0/first/v", 3, 2):
        model.apply(stale, X_SEQ[:, :2])
    del stale["state"]["layers_0"]["first"]
    with refused("state/layers_0/LIF_0/v", 3, 2):
        model.apply(stale, X_SEQ[:, :2])


def test_other_collections_are_held_against_the_input_too():
    model = AdaptiveLIF()
    stale = model.init(KEY, X_SEQ[0])
    with refused("carry/(v|threshold)", 3, 2):
        sd.simulate(model, stale, X_SEQ[:, :2], mutable="carry")
    over_time = sd.MultiStep(model, state_collections=("carry",))
    with refused("carry/(v|threshold)", 3, 2):
        over_time.apply(stale, X_SEQ[:, :2])


@cases("way", WAYS, ("simulate", "mutable", "init_state"))
@cases("neuron", [LateLIF, LateVariable], short=[LateLIF])
def test_neurons_that_make_their_state_late_are_too(way, neuron):
    if way == "monte_carlo":
        pytest.skip("takes no state with a mask")
    model = nn.Sequential([neuron(), sd.Dropout(0.5, deterministic=False)])
    _, state = sd.simulate(model, {}, X_SEQ, rngs=RNGS)
    with refused("state/layers_0/(v|carry)", 3, 1):
        WAYS[way](model, {"state": sd.reset_masks(state["state"])}, X_SEQ[:, :1])
    # Of the same batch it goes on, and needs no key for a mask that is there.
    going_on = sd.simulate(model, state, X_SEQ)
    chex.assert_tree_all_finite(going_on)


def test_a_leaf_of_another_rank_is_its_users_own():
    """A threshold for each neuron, where `init` makes one for all."""

    class Thresholds(nn.Module):
        @nn.compact
        def __call__(self, x):
            v = self.variable("state", "v", jnp.zeros_like, x)
            threshold = self.variable("state", "threshold", jnp.ones, ())
            if not self.is_initializing():
                v.value = (v.value + x) / 2
            return (v.value > jnp.broadcast_to(threshold.value, x.shape)).astype(x.dtype)

    state = {"threshold": jnp.linspace(-1, 1, 8)[None] * jnp.ones((3, 1))}
    y_seq, updated = sd.simulate(Thresholds(), {"state": state}, X_SEQ)
    assert updated["state"]["threshold"].shape == (3, 8)
    assert (y_seq.mean((0, 1))[0] > y_seq.mean((0, 1))[-1]).all()


def test_a_module_may_read_what_only_its_user_makes():
    class Reads(nn.Module):
        @nn.compact
        def __call__(self, x):
            v = self.variable("state", "v", jnp.zeros_like, x)
            if not self.is_initializing():
                v.value = v.value + x
            return self.get_variable("state", "gain") * v.value

    state = {"gain": jnp.float32(2)}
    y_seq, _ = sd.simulate(Reads(), {"state": state}, X_SEQ)
    np.testing.assert_allclose(y_seq, 2 * jnp.cumsum(X_SEQ, 0), rtol=1e-5, atol=1e-5)
    made = sd.init_state(Reads(), {"state": state}, X_SEQ[0], rngs=None)
    assert made.keys() == {"gain", "v"}
    with pytest.raises(TypeError, match="unsupported operand"):
        sd.simulate(Reads(), {}, X_SEQ)


@pytest.mark.parametrize("way", WAYS)
@cases("shape", [(4, 3), (3, 3), (7, 3), (2, 4, 3)], short=[(3, 3), (2, 4, 3)])
def test_membranes_of_a_whole_sequence_are_named(way, shape):
    """From `init(key, x_seq)`; JAX would broadcast over them, and make masks [T, N, F]."""
    variables = Net().init(KEY, jnp.zeros((*shape, 8)))
    assert variables["state"]["LIF_0"]["v"].shape == (*shape, 16)
    with of_a_sequence("state/LIF_0/v", (*shape, 16), (shape[-1], 16)):
        WAYS[way](Net(), variables, jnp.zeros((4, shape[-1], 8)))


def of_a_sequence(leaf, given, made):
    message = f"The leaf {leaf} must be of one step, but it has {given} where .* {made}: "
    message = re.escape(message).replace(re.escape(" .* "), " .* ")
    return pytest.raises(ValueError, match=message + r".*init\(key, x_seq\[0\]\)`")


def test_what_the_message_about_a_sequence_says_to_type():
    whole = Net().init(KEY, X_SEQ)
    with of_a_sequence("state/LIF_0/v", (4, 3, 16), (3, 16)):
        sd.simulate(Net(), whole, X_SEQ)
    expected, _ = sd.simulate(Net(), Net().init(KEY, X_SEQ[0]), X_SEQ)
    np.testing.assert_array_equal(
        sd.simulate(Net(), {"params": whole["params"]}, X_SEQ)[0], expected
    )


@cases("neuron", [LateLIF, LateVariable], short=[LateLIF])
@pytest.mark.parametrize("before", [(), (LIF(),)])
def test_late_neurons_that_ran_on_a_whole_sequence_are_named(neuron, before):
    model = nn.Sequential([*before, neuron()])
    _, state = model.apply({}, X_SEQ, mutable=["state"])
    where = f"layers_{len(before)}"
    state = {"state": {where: state["state"][where]}}
    with pytest.raises(ValueError, match=rf"{where}/\w+ must be of one step.*\(4, 3, 8\)"):
        sd.simulate(model, state, X_SEQ)


def test_other_shapes_of_a_whole_sequence_are_named():
    """Images, leaves of several arrays and other collections; one layer of many."""

    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            rest = lambda: (jnp.zeros_like(x), 0, jnp.zeros_like(x))  # noqa: E731
            carry = self.variable("state", "carry", rest)
            v, steps, last = carry.value
            if not self.is_initializing():
                carry.value = (v + x, steps + 1, last)
            return v

    model = nn.Sequential([nn.Conv(2, (3, 3)), Pair()])
    images = jnp.zeros((4, 3, 5, 5, 1))
    variables = model.init(KEY, images)
    with pytest.raises(ValueError, match=r"layers_1/carry must be of one step"):
        sd.simulate(model, variables, images)
    fine = model.init(KEY, images[0])
    assert sd.simulate(model, fine, images)[0].shape == (4, 3, 5, 5, 2)

    model = AdaptiveLIF()
    with pytest.raises(ValueError, match=r"carry/\w+ must be of one step"):
        sd.simulate(model, model.init(KEY, X_SEQ), X_SEQ, mutable="carry")


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return LIF()(x), None


@pytest.mark.parametrize("layers", [2, 4])
def test_blocks_that_are_stacked_have_time_behind_their_layers(layers):
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.scan(Block, variable_axes={"state": 0}, length=layers)()(x, None)[0]

    whole = Deep().init(KEY, X_SEQ)
    shape = re.escape(f"({layers}, 4, 3, 8)")
    with pytest.raises(ValueError, match=rf"LIF_0/v must be of one step.*{shape}"):
        sd.simulate(Deep(), whole, X_SEQ)
    y_seq, _ = sd.simulate(Deep(), Deep().init(KEY, X_SEQ[0]), X_SEQ)
    assert y_seq.shape == X_SEQ.shape


@pytest.mark.parametrize("shape", [(8,), (3, 8), (3, 3), (1, 8)])
def test_a_leaf_of_its_user_may_have_axes_in_front(shape):
    """A threshold for each example, where `init` makes one a unit, or one for all."""

    class Thresholds(nn.Module):
        @nn.compact
        def __call__(self, x):
            v = self.variable("state", "v", jnp.zeros_like, x)
            threshold = self.variable("state", "threshold", jnp.ones, shape[-1:])
            one = self.variable("state", "one", jnp.ones, ())
            if not self.is_initializing():
                v.value = (v.value + x) / 2
            limit = jnp.broadcast_to(threshold.value, x.shape)
            limit *= jnp.broadcast_to(one.value, x.shape)
            return (v.value > limit).astype(x.dtype)

    state = {"threshold": jnp.zeros(shape), "one": jnp.zeros((3, 1))}
    x_seq = X_SEQ[..., : shape[-1]]
    y_seq, updated = sd.simulate(Thresholds(), {"state": state}, x_seq)
    assert updated["state"]["threshold"].shape == shape
    assert y_seq.shape == x_seq.shape
    made = sd.init_state(Thresholds(), {"state": state}, x_seq[0], rngs=None)
    assert made["threshold"].shape == shape
