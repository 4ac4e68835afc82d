"""Single examples are restarted, and nothing else: also in blocks that `nn.scan` stacks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout.linen.state import MASK_NAMES
from tests.depth import cases
from tests.neurons import LIF

WIDTH = 5


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = LIF()(x * self.param("gain", nn.initializers.constant(4.0), ()))
        return sd.Dropout(0.5, deterministic=False, name="drop")(x), None


class Model(nn.Module):
    """Blocks that are stacked, and with `plain` a layer that is not."""

    layers: int
    plain: bool = True

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            Block,
            variable_axes={"params": 0, "state": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.layers,
        )
        x, _ = stack(name="blocks")(x, None)
        return sd.Dropout(0.5, deterministic=False, name="last")(x) if self.plain else x


def states(model, examples):
    """Two states of a model, no leaf of one like that of the other."""

    def first(key):
        x = jnp.ones((examples, WIDTH))
        variables = model.init(key, x)
        return sd.init_state(model, variables, x, rngs={"dropout": key})

    shapes = jax.eval_shape(first, jax.random.key(0))
    return tuple(
        jax.tree.map(lambda leaf, n=n: np.full(leaf.shape, n, leaf.dtype), shapes)
        for n in (0, 1)
    )


def assert_rows(new, old, fresh, done, axis):
    for ours, theirs, other in zip(*map(jax.tree.leaves, (new, old, fresh)), strict=True):
        for n, restarted in enumerate(done):
            expected = np.take(other if restarted else theirs, n, axis)
            np.testing.assert_array_equal(np.take(np.asarray(ours), n, axis), expected)


@cases(("layers", "examples"), [(2, 3), (3, 3), (3, 1)], short=[(3, 1), (3, 3)])
def test_stacked_blocks_are_restarted_along_the_axis_that_is_named(layers, examples):
    old, fresh = states(Model(layers), examples)
    assert old["blocks"]["drop"]["mask"].shape == (layers, examples, WIDTH)
    done = jnp.arange(examples) == 0
    axes = {"blocks": 1, "last": 0}

    @jax.jit
    def both(old, fresh):
        alone = {
            branch: sd.reset_rows(done, old[branch], fresh[branch], axis=axis)
            for branch, axis in axes.items()
        }
        return sd.reset_rows(done, old, fresh, axis=axes), alone

    for new in both(old, fresh):
        for branch, axis in axes.items():
            assert_rows(new[branch], old[branch], fresh[branch], done, axis)


@pytest.mark.parametrize(("layers", "examples"), [(2, 3), (3, 3)])
@pytest.mark.parametrize("plain", [True, False])
def test_stacked_blocks_are_never_restarted_along_the_layers(layers, examples, plain):
    old, fresh = states(Model(layers, plain), examples)
    with pytest.raises(ValueError, match=r"axis=1.*\{'blocks': 1, 'last': 0\}") as error:
        sd.reset_rows(jnp.arange(examples) == 0, old, fresh)
    assert "['blocks']" in str(error.value)


def test_one_axis_for_stacked_and_plain_leaves_raises():
    old, fresh = states(Model(2), 3)
    done = jnp.arange(3) == 0
    for axis in (0, 1, {"blocks": 0, "last": 0}, {"blocks": 1, "last": 1}):
        with pytest.raises(ValueError, match=r"rows of the batch axis"):
            sd.reset_rows(done, old, fresh, axis=axis)


def test_a_batch_as_large_as_a_layer_has_to_be_named():
    state, fresh = ({"v": jnp.full((WIDTH, WIDTH), value)} for value in (1.0, 0.0))
    done = jnp.arange(WIDTH) == 1
    with pytest.raises(ValueError, match=r"\['v'\] .*any of \[0, 1\]\. Write `axis=0`"):
        sd.reset_rows(done, state, fresh)
    for axis in (0, 1):
        new = sd.reset_rows(done, state, fresh, axis={"v": axis})["v"]
        np.testing.assert_array_equal(new.mean(1 - axis), 1.0 - done)


def test_a_single_example_needs_no_name():
    state, fresh = {"v": jnp.ones((1, 1, 3))}, {"v": jnp.zeros((1, 1, 3))}
    new = sd.reset_rows(jnp.array([True]), state, fresh)
    np.testing.assert_array_equal(new["v"], fresh["v"])


@cases(
    ("axis", "error", "match"),
    [
        (1.0, TypeError, r"`axis` must be a whole number.*got 1\.0"),
        (True, TypeError, r"`axis` must be a whole number.*got True"),
        ("batch", TypeError, r"`axis` must be a whole number.*got 'batch'"),
        ({"a": 0}, ValueError, r"prefix of `state`.*branches \['a', 'b'\]"),
        ({"a": 0, "b": 0, "c": 0}, ValueError, r"prefix of `state`"),
        (2, ValueError, r"batch axis 2, but the leaf at \['a'\]"),
        (1, ValueError, r"batch axis 1.*Write `axis=0`"),
    ],
    short=lambda case: case[0] in (True, 2) or isinstance(case[0], dict),
)
def test_the_axis_is_that_of_the_batch(axis, error, match):
    state = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4))}
    done = jnp.array([True, False])
    with pytest.raises(error, match=match):
        sd.reset_rows(done, state, state, axis=axis)
    named = sd.reset_rows(done, state, state, axis={"a": 0, "b": None})
    jax.tree.map(np.testing.assert_array_equal, named, state)


def test_reset_masks_drops_leaves_of_these_names_and_not_what_is_below_them():
    mask = {"mask": jnp.ones((2, 3), bool), "mask_p": jnp.full((2, 1), 0.5)}
    state = {name: {"v": jnp.ones(2)} for name in MASK_NAMES}
    assert set(sd.reset_masks({**state, "drop": mask})) == set(MASK_NAMES)
