"""Neurons that make their state in the first call, and none in `init`."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.jaxprs import equations
from tests.neurons import LIF, LateLIF, LateVariable, Net, loop

KEY = jax.random.key(7)
RNGS = {"dropout": KEY}
every_neuron = cases("neuron", [LateLIF, LateVariable], short=[LateLIF])


class Late(nn.Module):
    """Late neurons before and behind a held dropout, and one that is not late."""

    neuron: type
    noise: float = 0.0

    @nn.compact
    def __call__(self, x):
        x = self.neuron()(nn.Dense(6)(x))
        x = LIF()(4 * sd.Dropout(0.5)(x, False))
        self.sow("intermediates", "spikes", x)
        return self.neuron()(4 * nn.Dropout(self.noise)(x, False))


@pytest.fixture(scope="module")
def x_seq():
    return jnp.round(4 * jax.random.normal(jax.random.key(3), (5, 3, 8)))


@pytest.fixture(scope="module")
def params(x_seq):
    params = jax.jit(Late(LateLIF).init)(KEY, x_seq[0])["params"]
    return {"params": jax.tree.map(lambda leaf: jnp.ceil(4 * abs(leaf)) / 4, params)}


@every_neuron
def test_a_simulation_is_the_loop(x_seq, params, neuron):
    model = Late(neuron)
    y_loop, state = loop(model, params, x_seq, rngs=RNGS, jit=True)
    assert 0 < y_loop.mean() < 1
    over_time = partial(sd.MultiStep(model).apply, rngs=RNGS)
    for run in (
        partial(sd.simulate, model, rngs=RNGS),
        partial(over_time, mutable=["state"]),
    ):
        y_seq, updated = jax.jit(run)(params, x_seq)
        np.testing.assert_array_equal(y_seq, y_loop)
        chex.assert_trees_all_equal(updated, state)
    # Without a mutable state, and from part of one.
    np.testing.assert_array_equal(jax.jit(over_time)(params, x_seq), y_loop)
    part = model.init(KEY, x_seq[0])["state"]
    assert part.keys() == {"LIF_0"}
    y_seq, _ = jax.jit(over_time)({**params, "state": part}, x_seq), None
    np.testing.assert_array_equal(y_seq, y_loop)


@every_neuron
def test_gradients_are_those_of_the_loop(x_seq, params, neuron):
    def loss(run):
        return lambda v, x: (run(Late(neuron), v, x, rngs=RNGS)[0] * x[..., :6]).sum()

    grads = [jax.jit(jax.grad(loss(run)))(params, x_seq) for run in (loop, sd.simulate)]
    assert jnp.abs(grads[0]["params"]["Dense_0"]["kernel"]).max() > 0.1
    chex.assert_trees_all_close(*grads, rtol=1e-5, atol=1e-5)


@pytest.mark.exhaustive
@every_neuron
def test_chunks_are_the_whole(x_seq, params, neuron):
    run = jax.jit(
        partial(sd.simulate, Late(neuron, 0.5), rngs=RNGS, mutable="intermediates")
    )
    whole, end = run(params, x_seq)
    (sown,) = end.pop("intermediates")["spikes"]
    assert sown.shape == (5, 3, 6)
    for cut in (1, 3):
        first, middle = run(params, x_seq[:cut])
        (sown_first,) = middle.pop("intermediates")["spikes"]
        last, state = run({**params, **middle}, x_seq[cut:], first_time_step=cut)
        (sown_last,) = state.pop("intermediates")["spikes"]
        np.testing.assert_array_equal(jnp.concatenate([first, last]), whole)
        np.testing.assert_array_equal(jnp.concatenate([sown_first, sown_last]), sown)
        chex.assert_trees_all_equal(state, end)


def test_only_then_is_there_a_first_step_outside_of_the_scan(x_seq, params):
    """A state that is whole has one body; no steps make no state."""

    def bodies(model, variables, x_seq):
        run = partial(sd.simulate, model, rngs=RNGS)
        jaxpr = jax.make_jaxpr(run)(variables, x_seq).jaxpr
        scans = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
        return [scan.params["length"] for scan in scans]

    late = Late(LateLIF)
    assert bodies(late, params, x_seq) == [4]
    _, state = sd.simulate(late, params, x_seq[:1], rngs=RNGS)
    assert bodies(late, {**params, **state}, x_seq) == [5]
    assert bodies(Net(), Net().init(KEY, x_seq[0]), x_seq) == [5]
    y_seq, updated = sd.simulate(late, params, x_seq[:0], rngs=RNGS)
    assert y_seq.shape == (0, 3, 6)
    assert updated["state"].keys() == {"Dropout_0", "LIF_0"}


@pytest.mark.exhaustive
def test_one_exported_program_serves_any_number_of_steps(x_seq, params):
    run = jax.jit(lambda x_seq: sd.simulate(Late(LateLIF), params, x_seq, rngs=RNGS)[0])
    # JAX asks for a step in the scan, which is one less than there are.
    (steps,) = jax.export.symbolic_shape("steps", constraints=["steps >= 2"])
    shape = jax.ShapeDtypeStruct((steps, 3, 8), x_seq.dtype)
    exported = jax.export.export(run)(shape)
    for given in (x_seq, x_seq[:2]):
        np.testing.assert_array_equal(exported.call(given), run(given))


@every_neuron
def test_a_scan_by_hand_is_told_to_run_the_first_step(x_seq, params, neuron):
    model = Late(neuron)
    with pytest.raises(
        ValueError,
        match=r"made by the first call and not by `init`.*x_seq\[0\].*`x_seq\[1:\]` from",
    ):
        sd.init_state(model, params, x_seq[0], rngs=RNGS)

    def step(state, x):
        variables = {**params, "state": state}
        y, updated = model.apply(variables, x, rngs=RNGS, mutable=["state"])
        return updated["state"], y

    # What the message says to type.
    y, updated = model.apply(params, x_seq[0], rngs=RNGS, mutable=["state"])
    _, y_seq = jax.lax.scan(step, updated["state"], x_seq[1:])
    expected, _ = sd.simulate(model, params, x_seq, rngs=RNGS)
    np.testing.assert_array_equal(jnp.concatenate([y[None], y_seq]), expected)
    # With a state that is whole, `init_state` is content.
    state = sd.init_state(model, {**params, **updated}, x_seq[0], rngs=RNGS)
    chex.assert_trees_all_equal(state, updated["state"])


def test_a_leaf_that_comes_later_still_is_named(x_seq):
    class Later(nn.Module):
        @nn.compact
        def __call__(self, x):
            seen = self.has_variable("state", "v")
            if not self.is_initializing():
                self.put_variable("state", "v", x)
                if seen:
                    self.put_variable("state", "w", x)
            return x

    with pytest.raises(
        ValueError, match=r"all of its state in its first call, but state/w"
    ):
        sd.simulate(Later(), {}, x_seq)


@every_neuron
def test_monte_carlo_runs_them(x_seq, params, neuron):
    run = jax.jit(partial(sd.monte_carlo, Late(neuron), samples=3, at_once=2))
    found = run(params, x_seq, rngs=RNGS)
    means = [
        sd.simulate(
            Late(neuron), params, x_seq, rngs={"dropout": jax.random.fold_in(KEY, n)}
        )[0].mean(0)
        for n in range(3)
    ]
    np.testing.assert_allclose(found.mean, sum(means) / 3, rtol=1e-6)
    assert (found.variance > 0).any()


@cases(
    ("neuron", "step_mode"),
    [(LateLIF, "s"), (LateLIF, "m"), (LateVariable, "s")],
    short=[(LateLIF, "m")],
)
@pytest.mark.exhaustive
def test_as_an_activation_they_are_sampled(x_seq, neuron, step_mode):
    """The draws of a layer are the same for any neuron: hold it against one not late."""

    class Early(nn.Module):
        @nn.compact
        def __call__(self, x):
            late = neuron()
            if self.is_initializing():  # makes what the other makes later, at rest
                rest = {"carry": (0 * x, 0 * x)} if neuron is LateLIF else {"v": 0 * x}
                for name, leaf in rest.items():
                    late.put_variable("state", name, leaf)
                return x
            return late(x)

    x_seq = abs(x_seq)
    runs = []
    for activation in (neuron(), Early()):
        layer = sd.DropConnectLinear(
            8, 5, samples_num=4, activation=activation, deterministic=True
        )
        variables = layer.init(KEY, x_seq[0])
        if step_mode == "m":
            layer = layer.clone(step_mode="m")
            run = jax.jit(partial(layer.apply, rngs=RNGS, mutable=["state"]))
        else:
            run = jax.jit(partial(sd.simulate, layer, rngs=RNGS))
        y_seq, state = run(variables, x_seq)
        # And once more, from the state that is there now.
        again, _ = run({**variables, **state}, x_seq)
        runs.append((y_seq, again, jax.tree.leaves(state["state"]["samples"])))
    assert 0 < runs[0][0].mean() < 1
    assert (runs[0][0] != runs[0][1]).any()
    # But for a rounding, where the compiler fuses other operations.
    chex.assert_trees_all_close(*runs, rtol=1e-6, atol=1e-6)
    stale = {**variables, **state}
    with pytest.raises(ValueError, match=r"leaf state/[\w/]+ must keep its shape"):
        run(stale, x_seq[:, :2])


def test_a_membrane_of_another_batch_raises_beside_masks_that_fit(x_seq):
    model = nn.Sequential([LateLIF(), sd.Dropout(0.5, deterministic=False)])
    states = {
        n: sd.simulate(model, {}, x_seq[:, :n], rngs=RNGS)[1]["state"] for n in (1, 3)
    }
    mixed = {**states[1], "layers_0": states[3]["layers_0"]}
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match=r"layers_0/carry must keep.*of another batch"),
    ):
        sd.simulate(model, {"state": mixed}, x_seq[:, :1], rngs=RNGS)
    sd.simulate(model, {"state": states[1]}, x_seq[:, :1], rngs=RNGS)
