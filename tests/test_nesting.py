"""What runs inside of what: layers of all steps, and simulations within simulations."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.laws.catalogue import every_kind
from tests.neurons import LIF, Net

KEY = jax.random.key(7)
RNGS = {"dropout": KEY}
RAISES = (
    r"{} (is in mode 'm'|runs over all steps).*handed one step \[N, \.\.\.\].*Use {} in "
    r"what.*`model\.apply\(.*`monte_carlo\(\.\.\., step_mode='m'\)`.*two_time_scales=True"
)


class Layered(nn.Module):
    """A network of whole sequences, and `Single`, the same one of single steps."""

    @nn.compact
    def __call__(self, x_seq, train=False):
        x_seq = sd.MultiStep(LIF())(nn.Dense(6)(x_seq))
        x_seq = sd.Dropout(0.5, "m")(4 * x_seq, deterministic=not train)
        connected = sd.DropConnectLinear(6, 5, invariant=True, step_mode="m")
        return nn.Dense(3)(connected(x_seq, deterministic=not train))


class Single(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = LIF()(nn.Dense(6)(x))
        x = sd.Dropout(0.5)(4 * x, deterministic=not train)
        connected = sd.DropConnectLinear(6, 5, invariant=True)
        return nn.Dense(3)(connected(x, deterministic=not train))


@pytest.fixture(scope="module")
def x_seq():
    return jnp.round(4 * jax.random.normal(jax.random.key(3), (4, 3, 8)))


@pytest.fixture(scope="module")
def params(x_seq):
    # Multiples of 1/4: every sum is exact, in whatever order a compiler adds up.
    params = jax.jit(Single().init)(KEY, x_seq[0])["params"]
    return {"params": jax.tree.map(lambda leaf: jnp.round(4 * leaf) / 4, params)}


def ways_in(module, x_seq):
    """Runs a module as one of single steps, in every way that there is."""
    both = nn.Sequential([LIF(), module])
    activated = sd.DropConnectLinear(x_seq.shape[-1], x_seq.shape[-1], activation=both)
    return {
        "simulate": lambda: sd.simulate(module, {}, x_seq, rngs=RNGS),
        "MultiStep": lambda: sd.MultiStep(module).apply({}, x_seq, rngs=RNGS),
        "MultiStep.init": lambda: sd.MultiStep(module).init(KEY, x_seq),
        "a Sequential": lambda: sd.simulate(both, {}, x_seq, rngs=RNGS),
        "monte_carlo": lambda: sd.monte_carlo(module, {}, x_seq, rngs=RNGS, samples=2),
        "nn.remat": lambda: sd.simulate(Lifted(module, nn.remat), {}, x_seq, rngs=RNGS),
        "nn.jit": lambda: sd.simulate(Lifted(module, nn.jit), {}, x_seq, rngs=RNGS),
        "an activation": lambda: activated.clone(step_mode="m", deterministic=False).apply(
            activated.init(KEY, x_seq[0], False), x_seq, rngs=RNGS
        ),
    }


class Lifted(nn.Module):
    module: nn.Module
    transform: object

    @nn.compact
    def __call__(self, x):
        return self.transform(lambda module, x: module(x))(self.module, x)


@every_kind
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_layer_of_all_steps_raises_inside_of_a_simulation(row, deterministic):
    x_seq = row.x_seq()[:2, None]  # a step looks like a sequence
    layer = row.layer("m", deterministic=deterministic)
    kind, variables = type(layer).__name__, row.variables(row.x_seq()[0])
    for run in (
        lambda: sd.simulate(layer, variables, x_seq, rngs=RNGS),
        lambda: sd.MultiStep(layer).apply(variables, x_seq, rngs=RNGS),
        lambda: sd.monte_carlo(layer, variables, x_seq, rngs=RNGS, samples=2),
    ):
        with pytest.raises(ValueError, match=RAISES.format(kind, "`step_mode='s'`")):
            run()


@pytest.mark.short
@pytest.mark.parametrize("way", ways_in(sd.Dropout(), jnp.ones((1, 1))))
@pytest.mark.parametrize("kind", ["m", "multi_step_forward", "MultiStep"])
def test_every_way_in_is_closed(way, kind):
    class Forward(nn.Module):
        @nn.compact
        def __call__(self, x):
            return sd.Dropout(name="drop").multi_step_forward(x, False)

    module, match = {
        "m": (sd.Dropout(0.5, "m", deterministic=False), r"Dropout.* is in mode 'm'"),
        "multi_step_forward": (Forward(), r"Dropout at .*drop is in mode 'm'"),
        "MultiStep": (sd.MultiStep(LIF()), r"MultiStep.*Use no `MultiStep` in"),
    }[kind]
    with pytest.raises(ValueError, match=match):
        ways_in(module, jnp.ones((3, 2, 4)))[way]()


def test_a_lifted_jit_does_not_remember_where_it_was_traced():
    layer = nn.jit(sd.Dropout)(0.5, "m", deterministic=False)
    x_seq = jnp.ones((4, 3, 8))
    layer.apply({}, x_seq[0], rngs=RNGS)
    with pytest.raises(ValueError, match="inside of a simulation"):
        sd.simulate(layer, {}, x_seq, rngs=RNGS)
    layer.apply({}, x_seq[0], rngs=RNGS)


def test_what_a_step_applies_by_itself_is_another_simulation(x_seq, params):
    """A module within the step's own `apply` may have all of its steps at hand."""

    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            y_seq = Layered().apply(params, jnp.stack([x, x, x, x]), True, rngs=RNGS)
            return LIF()(y_seq[0])

    y_seq, _ = jax.eval_shape(partial(sd.simulate, Inner()), {}, x_seq)
    assert y_seq.shape == (4, 3, 3)


def two_scales(module):
    return sd.MultiStep(module, two_time_scales=True)


def test_two_time_scales_hold_one_mask(x_seq, params):
    chunks = jnp.stack([x_seq, -x_seq])
    flat = chunks.reshape(8, 3, 8)
    single = jax.jit(partial(sd.simulate, Single(), train=True))
    expected, state = single(params, flat, rngs=RNGS)
    for module in (Layered(), sd.MultiStep(Single())):
        run = jax.jit(partial(two_scales(module).apply, train=True, mutable=["state"]))
        y, kept = run(params, chunks, rngs=RNGS)
        np.testing.assert_array_equal(y.reshape(expected.shape), expected)
        chex.assert_trees_all_equal(kept, state)
    with pytest.raises(ValueError, match=r"MultiStep.* runs over all steps"):
        sd.MultiStep(two_scales(Layered())).apply(params, chunks[None], rngs=RNGS)
    for flag in (None, 1, "T1"):
        with pytest.raises(TypeError, match=r"`two_time_scales` must be True or False"):
            sd.MultiStep(Net(), two_time_scales=flag)


def test_nested_simulations_have_the_tree_of_the_module(x_seq):
    inner = nn.Sequential([nn.Sequential([nn.Dense(3), LIF()]), nn.Dense(2)])
    expected = jax.eval_shape(inner.init, KEY, x_seq[0])
    twice = two_scales(sd.MultiStep(inner)), x_seq[None]
    for nested, x in (twice, (two_scales(twice[0]), x_seq[None, None])):
        assert jax.eval_shape(nested.init, KEY, x) == expected
        y = jax.eval_shape(nested.apply, expected, x)
        assert y.shape == (*x.shape[:-1], 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("at_once", [1, 3])
def test_monte_carlo_takes_a_whole_sequence_model(x_seq, params, at_once):
    """The numbers of its single-step form, bit for bit."""

    @jax.jit
    def both(x_seq):
        given = {"rngs": RNGS, "samples": 5, "at_once": at_once}
        return (
            sd.monte_carlo(Layered(), params, x_seq, step_mode="m", **given),
            sd.monte_carlo(Single(), params, x_seq, **given),
        )

    whole, single = both(x_seq)
    assert (single.variance > 0).any()
    chex.assert_trees_all_equal(whole, single)
    with pytest.raises(
        ValueError, match=RAISES.format("MultiStep at .*", "no `MultiStep`")
    ):
        sd.monte_carlo(Layered(), params, x_seq, rngs=RNGS, samples=2)
    with pytest.raises(ValueError, match="`step_mode` must be 's'"):
        sd.monte_carlo(Layered(), params, x_seq, rngs=RNGS, samples=2, step_mode="M")


def test_monte_carlo_takes_a_recurrent_network(x_seq):
    """It steps its layers itself, so it says that it writes the state, as for `apply`."""

    class Cell(nn.SimpleCell):
        @nn.compact
        def __call__(self, carry, x):
            return super().__call__(carry, sd.Dropout(0.5)(x, deterministic=True))

    rnn = nn.RNN(
        Cell(6),
        time_major=True,
        variable_broadcast=("params", "state"),
        split_rngs={"params": False, "dropout": False},
    )
    variables = jax.jit(rnn.init)(KEY, x_seq)
    given = {"rngs": RNGS, "samples": 3, "step_mode": "m"}
    run = jax.jit(partial(sd.monte_carlo, rnn, mutable="state", **given))
    found = run(variables, x_seq)
    assert (found.variance > 0).any()
    with pytest.raises(RuntimeError, match="must be mutable"):
        sd.monte_carlo(rnn, variables, x_seq, **given)


def test_a_step_s_layer_in_a_whole_sequence_is_not_taken_in_silence(x_seq):
    """Who forgets `step_mode='m'` is told, and has no mask a step."""
    given = {"rngs": RNGS, "samples": 2, "step_mode": "m"}
    with pytest.raises(RuntimeError, match="must be mutable"):
        sd.monte_carlo(sd.Dropout(deterministic=True), {}, x_seq, **given)
