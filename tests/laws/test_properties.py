"""Any sequence of what users do, and any shape, dtype and p, against a model in NumPy."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import snn_dropout as sd
from snn_dropout import functional

SETTINGS = settings(
    derandomize=True,
    deadline=None,
    max_examples=15,
    stateful_step_count=15,
    suppress_health_check=list(HealthCheck),
)
PROBABILITIES = st.sampled_from([0.0, 0.25, 0.5, 1.0])
DTYPES = st.sampled_from([jnp.float32, jnp.bfloat16])


def dropped(x, mask, p):
    """What a dropout layer computes: selected, scaled in float32, cast once."""
    scale = np.float32(1 / (1 - p)) if p < 1 else np.float32(0)
    wide = np.asarray(x, np.float32) * scale
    return np.where(mask, wide, np.float32(0)).astype(np.asarray(x).dtype)


class Integrator(nn.Module):
    """A neuron that adds up its inputs, behind it a dropout."""

    p: float

    @nn.compact
    def __call__(self, x, train):
        v = self.variable("state", "v", jnp.zeros_like, x)
        if not self.is_initializing():
            v.value = v.value + x
        return sd.Dropout(self.p, name="drop")(v.value, deterministic=not train)


@functools.partial(jax.jit, static_argnums=(0, 3))
def simulate(model, state, x_seq, train, key):
    return sd.simulate(model, {"state": state}, x_seq, train, rngs={"dropout": key})


class Simulation(RuleBasedStateMachine):
    """A user of one layer: the state is carried, reset, saved; batches change."""

    @initialize(p=PROBABILITIES, dtype=DTYPES, batch=st.integers(2, 3))
    def begin(self, p, dtype, batch):
        self.p, self.dtype, self.model, self.keys = p, dtype, Integrator(p), 0
        self.start(batch)

    @rule(batch=st.integers(2, 3))
    def start(self, batch):
        # Small integers, so that sums are exact in any dtype.
        self.x = jnp.arange(1, 1 + 4 * batch).reshape(batch, 4).astype(self.dtype)
        self.state = self.model.init({}, self.x, True)["state"]
        self.v, self.mask = np.zeros((batch, 4)), None

    def key(self):
        self.keys += 1
        return jax.random.key(self.keys)

    def call(self, x, train):
        variables, rngs = {"state": self.state}, {"dropout": self.key()}
        y, updated = self.model.apply(variables, x, train, rngs=rngs, mutable=["state"])
        return y, updated["state"]

    def expect(self, y, state, train):
        """One more step of the model: `y` and the state have to be those."""
        self.v = self.v + np.asarray(self.x, np.float64)
        self.read(state, train)
        v = self.v.astype(self.dtype)
        expected = dropped(v, self.mask, self.p) if train and self.p > 0 else v
        assert y.dtype == self.dtype
        np.testing.assert_array_equal(y, expected)

    def read(self, state, train):
        if self.mask is None and train and self.p > 0:
            self.mask = np.asarray(state["drop"]["mask"])
        self.state = state

    @rule(train=st.booleans())
    def step(self, train):
        self.expect(*self.call(self.x, train), train)

    @rule(train=st.booleans())
    def two_steps_by_simulate(self, train):
        x_seq = jnp.stack([self.x, self.x])
        y_seq, updated = simulate(self.model, self.state, x_seq, train, self.key())
        middle = {**updated["state"], "v": updated["state"]["v"] - self.x}
        self.expect(y_seq[0], middle, train)
        self.expect(y_seq[1], updated["state"], train)

    @rule()
    def draw_the_masks_ahead(self):
        rngs = {"dropout": self.key()}
        state = sd.init_state(self.model, {"state": self.state}, self.x, True, rngs=rngs)
        self.read(state, True)

    @rule()
    def reset_the_masks(self):
        self.state, self.mask = sd.reset_masks(self.state), None

    @precondition(lambda self: self.p == 0 or self.mask is not None)
    @rule(done=st.lists(st.booleans(), min_size=3, max_size=3))
    def reset_rows(self, done):
        done = np.array(done[: len(self.x)])
        rngs = {"dropout": self.key()}
        fresh = sd.init_state(self.model, {}, self.x, True, rngs=rngs)
        self.state = sd.reset_rows(jnp.asarray(done), self.state, fresh)
        self.v = np.where(done[:, None], 0, self.v)
        if self.p > 0:
            self.mask = np.where(done[:, None], fresh["drop"]["mask"], self.mask)

    @rule()
    def save_and_restore(self):
        saved = flax.serialization.to_bytes(self.state)
        target = jax.tree.map(jnp.zeros_like, self.state)
        self.state = flax.serialization.from_bytes(target, saved)

    @precondition(lambda self: self.p > 0 and self.mask is not None)
    @rule()
    def an_example_alone_meets_the_masks_of_the_batch(self):
        state = {"drop": self.state["drop"]}
        with pytest.raises(ValueError, match=r"state/drop/mask must fit the input"):
            Integrator(self.p).apply({"state": state}, self.x[:1], True, mutable=["state"])

    @invariant()
    def the_state_is_that_of_the_model(self):
        if not hasattr(self, "state"):
            return
        np.testing.assert_array_equal(self.state["v"], self.v.astype(self.dtype))
        assert ("drop" in self.state) == (self.mask is not None)
        if self.mask is not None:
            assert self.state["drop"]["mask"].dtype == jnp.bool_
            np.testing.assert_array_equal(self.state["drop"]["mask"], self.mask)


TestSimulation = Simulation.TestCase
TestSimulation.settings = SETTINGS


LAYERS = {
    sd.Dropout: ((2, 3), lambda shape: shape),
    sd.DropPath: ((3, 2, 1), lambda shape: (shape[0], 1, 1)),
    sd.Dropout2d: ((2, 1, 3, 4), lambda shape: (shape[0], 1, 1, shape[-1])),
}


@settings(SETTINGS, max_examples=12)
@given(
    layer=st.sampled_from(list(LAYERS)),
    # From a list, because each is a program of its own.
    p=PROBABILITIES | st.sampled_from([1e-9, 0.3, 0.999999]),
    dtype=DTYPES | st.sampled_from([jnp.float16, jnp.bool_, jnp.int8]),
    steps=st.integers(0, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_all_steps_at_once_and_one_by_one_against_numpy(layer, p, dtype, steps, seed):
    shape, shared = LAYERS[layer]
    x_seq = np.arange(steps * np.prod(shape)).reshape(steps, *shape) % 7
    x_seq = jnp.asarray(x_seq).astype(dtype)
    rngs = {"dropout": jax.random.key(seed)}
    y_seq, updated = layer(p, "m").apply({}, x_seq, False, rngs=rngs, mutable=["state"])
    state = updated.get("state", {})
    assert (state == {}) == (p == 0)
    if p == 0:
        np.testing.assert_array_equal(y_seq, x_seq)
        return
    assert state["mask"].shape == shared(shape)
    wide = x_seq if jnp.issubdtype(dtype, jnp.inexact) else x_seq.astype(jnp.float32)
    assert y_seq.dtype == wide.dtype
    if p == 1 or 1 / (1 - p) < 1e30:
        np.testing.assert_array_equal(y_seq, dropped(wide, state["mask"], p))
    alone = {}
    for x, expected in zip(x_seq, y_seq, strict=True):
        y, updated = layer(p).apply(alone, x, False, rngs=rngs, mutable=["state"])
        alone = {"state": updated["state"]}
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(updated["state"]["mask"], state["mask"])


@settings(SETTINGS, max_examples=12)
@given(
    size=st.sampled_from([(1, 1), (3, 4), (5, 33)]),
    use_bias=st.booleans(),
    p=PROBABILITIES,
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**31 - 1),
)
def test_lost_connections_against_numpy(size, use_bias, p, batch, seed):
    layer = sd.DropConnectLinear(*size, use_bias, p=p, invariant=True, activation=None)
    x = np.arange(batch * size[0], dtype=np.float32).reshape(batch, size[0]) % 5 - 2
    params = layer.init(jax.random.key(0), x, True)["params"]
    rngs = {"dropout": jax.random.key(seed)}
    y, updated = layer.apply({"params": params}, x, False, rngs=rngs, mutable=["state"])
    masks = updated.get("state", {})
    kernel_mask = np.ones((batch, *size), bool)
    bias_mask = np.ones((batch, size[1]), bool)
    assert (masks == {}) == (p == 0)
    if p > 0:
        kernel_mask = functional.unpack_bits(masks["kernel_mask"], size[1])
        bias_mask = masks.get("bias_mask", bias_mask)
    expected = np.einsum("ni,io,nio->no", x, params["kernel"], kernel_mask)
    if use_bias:
        expected = expected + np.where(bias_mask, params["bias"][None], 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
