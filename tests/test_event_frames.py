"""Spikes of any dtype: what a leaf of the state is made of, it stays."""

import ast
import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.neurons import LIF, loop

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(7)
DTYPES = jnp.bool_, jnp.uint8, jnp.int32, jnp.bfloat16, jnp.float16, jnp.float32
FRAMES = jax.random.bernoulli(KEY, 0.5, (4, 3, 8))


def neurons_of(file):
    """The neurons that a page or an example shows, made of its own text."""
    text = file.read_text()
    if file.suffix == ".md":
        text = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    names = {"jax": jax, "jnp": jnp, "nn": nn, "sd": sd, "Any": object}
    found = {}
    for node in ast.parse(text).body:
        source = ast.unparse(node)
        is_neuron = isinstance(node, ast.ClassDef) and ".variable(" in source
        if is_neuron or re.search(r"^def (spike|_|_spike_jvp)\(", source, re.M):
            exec(source, names)
        if is_neuron:
            found[node.name] = names[node.name]
    return found


SHOWN = {
    f"{file.name}:{name}": neuron
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py")]
    for name, neuron in neurons_of(file).items()
    if name in ("LIF", "Integrator")
}


def test_every_neuron_that_is_shown_is_looked_at():
    assert sorted(SHOWN) == [
        "README.md:LIF",
        "devices.md:LIF",
        "index.md:LIF",
        "recipes.md:Integrator",
        "recipes.md:LIF",
        "state.md:LIF",
        "streaming.py:LIF",
        "train_digits.py:LIF",
        "uncertainty.md:LIF",
    ]


@cases("name", SHOWN, short=["README.md:LIF", "recipes.md:Integrator"])
def test_the_neurons_that_are_shown_take_spikes_of_any_dtype(name):
    neuron = SHOWN[name](*([(0.5, 0.9)] if name.startswith("streaming") else []))
    given = {"mutable": ("carry",)} if name.endswith("Integrator") else {}
    run = jax.jit(partial(sd.simulate, neuron, **given))
    expected = run({}, FRAMES.astype(jnp.float32))
    for dtype in DTYPES:
        x_seq = FRAMES.astype(dtype)
        shapes = jax.eval_shape(run, {}, x_seq)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        mutable = {"mutable": ["state", "carry"]}
        by_hand = jax.eval_shape(partial(loop, neuron, **mutable), {}, x_seq)
        assert jax.tree.leaves(by_hand) == jax.tree.leaves(shapes)
        first = neuron.init(KEY, x_seq[0])
        over_time = sd.MultiStep(neuron, state_collections=("state", "carry"))
        assert jax.eval_shape(over_time.apply, first, x_seq) == shapes[0]
    y_seq, _ = run({}, FRAMES.astype(jnp.uint8))
    np.testing.assert_array_equal(y_seq, expected[0])


RUNS = {
    "simulate": partial(sd.simulate, LIF()),
    "jit": jax.jit(partial(sd.simulate, LIF())),
    "MultiStep": sd.MultiStep(LIF()).apply,
    "init_state": lambda v, x_seq: sd.init_state(LIF(), v, x_seq[0], rngs=None),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_leaf_that_changes_its_dtype_is_named(run):
    """What the message says to type is right, with and without a state of `init`."""
    frames = FRAMES.astype(jnp.uint8)
    stale = LIF().init(KEY, frames[0])
    message = (
        r"leaf state/v must keep its dtype .* is uint8 before a step and float32 after .*"
        r"`jnp\.zeros_like\(x, jnp\.float32\)`.*`x_seq\.astype\(jnp\.float32\)`.*`init` too"
    )
    for variables, x_seq in (({}, frames), (stale, frames), (stale, frames * 1.0)):
        with pytest.raises(ValueError, match=message):
            RUNS[run](variables, x_seq)
    cast = frames.astype(jnp.float32)
    RUNS[run](LIF().init(KEY, cast[0]), cast)


def test_a_leaf_of_sampled_neurons_is_named_too():
    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x):
            n = self.variable("state", "n", lambda: jnp.zeros(x.shape, jnp.int32))
            if not self.is_initializing():
                n.value = n.value + 0.5 * x
            return n.value * 1.0

    layer = sd.DropConnectLinear(8, 5, samples_num=2, activation=Counts())
    x_seq = FRAMES.astype(jnp.float32)
    variables = layer.init(KEY, x_seq[0], True)
    for run in (
        lambda **kw: sd.simulate(layer, variables, x_seq, **kw),
        lambda **kw: layer.clone(step_mode="m").apply(variables, x_seq, **kw),
    ):
        with pytest.raises(
            ValueError, match=r"leaf state/[\w/]*n must keep its dtype.*int32"
        ):
            run(deterministic=True, rngs={"dropout": KEY})


@pytest.mark.parametrize(
    "start",
    [0, 0.0, np.float64(0), np.zeros((), np.float32), jnp.asarray(0.0), jnp.asarray(0)],
    ids=repr,
)
def test_a_weak_type_does_not_matter(start):
    """A carry may start from a number that has no dtype of its own."""

    class Weak(nn.Module):
        @nn.compact
        def __call__(self, x):
            v = self.variable("state", "v", lambda: start)
            if not self.is_initializing():
                v.value = v.value / 2 + x.sum()
            return v.value

    x_seq = FRAMES.astype(jnp.float32)
    y_seq, updated = sd.simulate(Weak(), {}, x_seq)
    assert y_seq.dtype == updated["state"]["v"].dtype == jnp.float32
    y_loop, _ = loop(Weak(), {}, x_seq)
    np.testing.assert_array_equal(y_seq, y_loop)
    state = sd.init_state(Weak(), {}, x_seq[0], rngs=None)
    assert np.shape(state["v"]) == ()


def test_a_key_in_the_state_is_a_leaf_as_any_other():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            key = self.variable("state", "key", jax.random.key, 0)
            if not self.is_initializing():
                key.value, now = jax.random.split(key.value)
                return x + jax.random.normal(now, x.shape)
            return x

    x_seq = FRAMES.astype(jnp.float32)
    y_seq, _ = sd.simulate(Noisy(), {}, x_seq)
    np.testing.assert_allclose(y_seq, loop(Noisy(), {}, x_seq)[0], rtol=1e-6)
