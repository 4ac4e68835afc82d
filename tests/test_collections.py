"""Masks in a collection of another name than the neurons', and what carries it."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.neurons import LIF

KEY = jax.random.key(7)
RNGS = {"dropout": KEY}
X_SEQ = 4 * jax.random.normal(jax.random.key(3), (4, 3, 6))
OWN = {"state_collection": "masks", "deterministic": False}

LAYERS = {
    "Dropout": lambda: sd.Dropout(0.5, **OWN),
    "DropConnect": lambda: sd.DropConnect(nn.Dense(6), p=0.5, **OWN),
    "DropConnectLinear": lambda: sd.DropConnectLinear(6, 6, invariant=True, **OWN),
}
every_layer = cases(
    "make",
    LAYERS.values(),
    short=[LAYERS["DropConnectLinear"]],
    ids=LAYERS,
)


def parts(make):
    model = nn.Sequential([LIF(), make()])
    return model, model.init(KEY, X_SEQ[0])


@every_layer
def test_a_simulation_is_told_how_to_carry_them(make):
    model, variables = parts(make)
    for run in (
        lambda: sd.simulate(model, variables, X_SEQ, rngs=RNGS),
        lambda: sd.MultiStep(model).apply(variables, X_SEQ, rngs=RNGS),
        lambda: sd.MultiStep(model).apply(variables, X_SEQ, rngs=RNGS, mutable=["state"]),
        lambda: sd.monte_carlo(model, variables, X_SEQ, rngs=RNGS, samples=2),
    ):
        with pytest.raises(RuntimeError, match="The collection 'masks' must") as error:
            run()
        message = str(error.value)
        assert "step_mode" not in message
        assert "apply" not in message

    # What the message says to type.
    mutable = eval(re.search(r"`simulate\(\.\.\., mutable=(\[.*?\])\)`", message)[1])
    names = eval(
        re.search(r"`MultiStep\(module, state_collections=(\(.*?\))\)`", message)[1]
    )
    y_seq, updated = sd.simulate(model, variables, X_SEQ, rngs=RNGS, mutable=mutable)
    assert updated.keys() == {"state", "masks"}
    over_time = sd.MultiStep(model, state_collections=names)
    np.testing.assert_array_equal(over_time.apply(variables, X_SEQ, rngs=RNGS), y_seq)
    found = sd.monte_carlo(
        model, variables, X_SEQ, rngs=RNGS, samples=2, mutable=mutable, entropies=False
    )
    assert (found.variance > 0).any()


@every_layer
def test_masks_that_are_there_already_are_no_samples(make):
    model, variables = parts(make)
    masks = sd.init_state(model, variables, X_SEQ[0], rngs=RNGS, state_collection="masks")
    with pytest.raises(ValueError, match=r"must hold no mask.*one at masks/layers_1/"):
        sd.monte_carlo(
            model,
            {**variables, "masks": masks},
            X_SEQ,
            rngs=RNGS,
            samples=2,
            mutable=["state", "masks"],
        )


@every_layer
def test_a_single_step_is_told_how_to_keep_them(make):
    model, variables = parts(make)
    with pytest.raises(RuntimeError, match="The collection 'masks' must") as error:
        model.apply(variables, X_SEQ[0], rngs=RNGS, mutable=["state"])
    assert "`step_mode='m'`" in str(error.value)
    assert "mutable=['masks']" in str(error.value)
    text = r"`init_state\(\.\.\., (state_collection='masks')\)`"
    assert re.search(text, str(error.value))
    masks = sd.init_state(model, variables, X_SEQ[0], rngs=RNGS, state_collection="masks")
    y, _ = model.apply({**variables, "masks": masks}, X_SEQ[0], mutable=["state"])
    whole, kept = sd.simulate(model, variables, X_SEQ[:1], rngs=RNGS, mutable="masks")
    jax.tree.map(np.testing.assert_array_equal, kept["masks"], masks)
    np.testing.assert_allclose(y, whole[0], rtol=1e-6)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return LAYERS["Dropout"]()(nn.Dense(6)(x)), None


def stacked(block, *collections):
    """Blocks over depth; a scan hands on the collections that it is told of."""
    axes, split = dict.fromkeys(collections, 0), {"params": True, "dropout": True}
    return nn.scan(block, variable_axes=axes, split_rngs=split, length=2)


def test_blocks_inside_of_a_simulation_are_told_both():
    """A scan over layers that does not hand on the collection, in a step."""

    class Blocks(nn.Module):
        collections: tuple[str, ...]

        @nn.compact
        def __call__(self, x):
            return stacked(Block, *self.collections)()(x, None)[0]

    variables = Blocks(("params",)).init(KEY, X_SEQ[0])
    with pytest.raises(
        RuntimeError, match=r"'masks': 0.*`simulate\(\.\.\., mutable=\['mas"
    ):
        sd.simulate(Blocks(("params",)), variables, X_SEQ, rngs=RNGS)
    blocks = Blocks(("params", "masks"))
    _, updated = sd.simulate(blocks, variables, X_SEQ, rngs=RNGS, mutable=["masks"])
    (mask,) = (leaf for leaf in jax.tree.leaves(updated) if leaf.dtype == jnp.bool_)
    assert mask.shape == (2, 3, 6)
    assert (mask[0] != mask[1]).any()


def test_around_a_simulation_a_scan_has_no_part_in_it():
    class OverTime(nn.Module):
        names: tuple[str, ...]

        @nn.compact
        def __call__(self, x_seq, _):
            x_seq, _ = sd.MultiStep(Block(), state_collections=self.names)(x_seq, None)
            return x_seq, None

    class Around(nn.Module):
        names: tuple[str, ...] = ("state",)

        @nn.compact
        def __call__(self, x_seq):
            return stacked(OverTime, "params")(self.names)(x_seq, None)[0]

    variables = Around().init(KEY, X_SEQ)
    with pytest.raises(
        RuntimeError, match=r"state_collections=\('state', 'masks'\)"
    ) as error:
        Around().apply(variables, X_SEQ, rngs=RNGS)
    assert "nn.scan" not in str(error.value)
    y_seq = Around(("state", "masks")).apply(variables, X_SEQ, rngs=RNGS)
    assert (y_seq == 0).all(0).any()
