"""Streams and collections of other names, several in one model."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.functional.test_words import assert_all_independent, one_bit_apart
from tests.laws.catalogue import KINDS, every
from tests.neurons import LIF, loop

STEPS, EXAMPLES, INPUTS = 3, 4, 6
STREAMS = "units", "connections", "fresh", "noise"


class Net(nn.Module):
    """Four layers, each with a stream of its own, seen apart in the output."""

    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        def connected(stream, **fields):
            return sd.DropConnectLinear(
                INPUTS, 8, activation=None, rng_collection=stream, **fields
            )

        training = {"deterministic": self.deterministic}
        return jnp.stack(
            [
                sd.Dropout(0.5, rng_collection="units", **training)(jnp.ones((len(x), 8))),
                connected("connections", invariant=True, **training)(x),
                connected("fresh", **training)(x),
                connected("noise", samples_num=2, deterministic=True)(x),
            ],
            1,
        )  # [N, 4, 8]


def keys(*changed):
    """A key a stream, another one for those that are named; nobody reads the last."""
    return {
        name: jax.random.key(number + 100 * (name in changed))
        for number, name in enumerate((*STREAMS, "dropout"))
    }


@functools.cache
def problem():
    x_seq = jax.random.normal(jax.random.key(9), (STEPS, EXAMPLES, INPUTS)) + 3
    variables = Net().init({"params": jax.random.key(0), **keys()}, x_seq[0])
    return x_seq, {"params": variables["params"]}


@jax.jit
def simulated(x_seq, rngs):
    return sd.simulate(Net(), problem()[1], x_seq, rngs=rngs)[0]


def test_each_layer_draws_from_its_own_stream_and_from_no_other():
    x_seq, _ = problem()
    y_seq = np.asarray(simulated(x_seq, keys()))
    for number, name in enumerate((*STREAMS, "dropout")):
        other = np.asarray(simulated(x_seq, keys(name)))
        for layer in range(len(STREAMS)):
            same = (other[:, :, layer] == y_seq[:, :, layer]).all()
            assert same == (layer != number), (name, layer)


def test_what_is_fresh_is_new_at_every_step_whatever_the_name_of_its_stream():
    """The step is folded into each key, as the loop does."""
    x_seq, variables = problem()
    # The same input at every step shows what is held and what is not.
    still = jnp.broadcast_to(x_seq[:1], x_seq.shape)
    y_seq = np.asarray(simulated(still, keys()))
    differs = (y_seq != y_seq[:1]).any((1, 3))
    np.testing.assert_array_equal(differs[1:], [[False, False, True, True]] * (STEPS - 1))
    y_loop, _ = loop(Net(), variables, still, rngs=keys(), fold=True, jit=True)
    np.testing.assert_allclose(y_seq, y_loop, rtol=1e-5, atol=1e-6)


def test_a_stream_that_is_missing_is_named_though_others_are_there():
    x_seq, variables = problem()
    for name in STREAMS:
        given = keys()
        del given[name]
        with pytest.raises(flax.errors.InvalidRngError, match=f"the stream '{name}'"):
            sd.simulate(Net(), variables, x_seq, rngs=given)


@cases("at_once", [1, 3], short=[3])
def test_monte_carlo_folds_the_sample_into_every_stream(at_once):
    """Mean and variance of each layer are those of a loop over simulations."""
    samples = 4
    x_seq, variables = problem()
    each = []
    for number in range(samples):
        rngs = {name: jax.random.fold_in(key, number) for name, key in keys().items()}
        each.append(np.asarray(simulated(x_seq, rngs).mean(0), np.float64))
    each = np.stack(each)

    @jax.jit
    def uncertainty(rngs):
        return sd.monte_carlo(
            Net(True), variables, x_seq, rngs=rngs, samples=samples, at_once=at_once
        )

    found = uncertainty(keys())
    assert (found.variance.max((0, 2)) > 1e-3).all(), "of every layer"
    # The last layer infers in the loop, and loses connections in the samples.
    mean, variance = found.mean[:, :3], found.variance[:, :3]
    np.testing.assert_allclose(mean, each.mean(0)[:, :3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, each.var(0)[:, :3], rtol=1e-3, atol=1e-5)


@pytest.mark.exhaustive
def test_masks_and_membranes_in_collections_of_other_names():
    """What is named is carried; the masks lie where the field says, and nowhere else."""

    class Stored(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = sd.Dropout(0.5, deterministic=False, state_collection="masks")(x)
            x = sd.DropConnectLinear(
                INPUTS,
                5,
                invariant=True,
                deterministic=False,
                activation=LIF("masks"),
                state_collection="masks",
            )(4 * x)
            return LIF("membranes")(4 * x)

    x_seq, _ = problem()
    variables = Stored().init(jax.random.key(0), x_seq[0])
    given = {"rngs": {"dropout": jax.random.key(1)}, "mutable": ["masks", "membranes"]}
    y_loop, updated = loop(Stored(), variables, x_seq, jit=True, **given)
    y_seq, found = jax.jit(lambda v: sd.simulate(Stored(), v, x_seq, **given))(variables)
    np.testing.assert_array_equal(y_seq, y_loop)
    assert not found.get("state")
    assert found["masks"]["Dropout_0"].keys() >= {"mask"}
    assert found["masks"]["DropConnectLinear_0"].keys() == {"kernel_mask", "bias_mask"}
    jax.tree.map(np.testing.assert_array_equal, found["masks"], updated["masks"])
    jax.tree.map(np.testing.assert_array_equal, found["membranes"], updated["membranes"])
    # Nothing but the neurons is left, whatever the collection is called.
    kept = sd.reset_masks(found["masks"])
    assert jax.tree.map(jnp.shape, kept) == {"LIF_0": {"v": (EXAMPLES, 5)}}


@every(KINDS, lambda row: row.name in ("Dropout", "DropPath") or "bias" in str(row.leaves))
def test_every_bit_of_a_users_key_makes_other_masks_of_a_layer(row):
    """What is folded into a key, names and counters, takes nothing away from it."""
    x = jnp.ones((512 if row.name == "DropPath" else row.shape[0], *row.shape[1:]))

    @jax.jit
    @jax.vmap
    def masks(key):
        with jax.default_prng_impl("threefry2x32"):
            return row.masks(x, {"dropout": key})

    for mask in masks(one_bit_apart(2)):
        assert_all_independent(mask, 1 - row.p)


class Nested(nn.Module):
    """Two dropouts, and below either of two names the same again."""

    depth: int

    @nn.compact
    def __call__(self, x):
        for name in ("a", "b") if self.depth > 1 else ():
            Nested(self.depth - 1, name=name)(x)
        sd.Dropout(0.5, deterministic=False, name="drop")(x)
        sd.Dropout(0.5, deterministic=False, name="c")(x)


def test_every_path_has_a_mask_of_its_own():
    """Names of layers and of what they are in, in their order, make the key."""
    _, updated = Nested(3).apply(
        {}, jnp.ones((16, 32)), rngs={"dropout": jax.random.key(0)}, mutable=["state"]
    )
    masks = [leaf for leaf in jax.tree.leaves(updated["state"]) if leaf.shape == (16, 32)]
    assert len(masks) == 2 * (1 + 2 + 4)
    assert_all_independent(np.stack(masks), 0.5)
