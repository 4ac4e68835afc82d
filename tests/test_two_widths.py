"""One layer on inputs of two shapes: a second one is the remedy, and no reset."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.laws.catalogue import every_kind_of_dropout

RNGS = {"dropout": jax.random.key(5)}
X_SEQ = jnp.ones((4, 3, 8))


class Shared(nn.Module):
    """One layer for two inputs, or one for each."""

    layers: list[nn.Module]

    def __call__(self, first, second):
        return self.layers[0](first), self.layers[-1](second)


def narrow(x):
    return x[..., :5]


REMEDY = r"inputs that need shape .*8\) and shape .*5\)\. Make a second layer"


def call(model, *args, mutable=(), variables=None):
    """The outputs for both inputs, and the state that is left."""
    return model.apply(variables or {}, *args, rngs=RNGS, mutable=list(mutable))


class OverTime(nn.Module):
    """The same, both inputs at each step."""

    layers: list[nn.Module]

    @nn.compact
    def __call__(self, first, second):
        class Both(nn.Module):
            layers: list[nn.Module]

            def __call__(self, inputs):
                return Shared.__call__(self, *inputs)

        return sd.MultiStep(Both(self.layers))((first, second))


SINGLE = sd.Dropout(0.5, deterministic=False)
WAYS = {
    "m": (Shared, lambda: SINGLE.clone(step_mode="m")),
    "a MultiStep each": (Shared, lambda: sd.MultiStep(SINGLE.clone())),
    "one MultiStep": (OverTime, lambda: SINGLE.clone()),
    "remat": (Shared, lambda: nn.remat(sd.Dropout)(0.5, "m", deterministic=False)),
}


@cases("way", WAYS, short=list(WAYS)[:2])
def test_two_widths_raise_whether_or_not_the_state_is_mutable(way):
    model, layer = WAYS[way]
    for mutable in ((), ("state",)):
        with pytest.raises(ValueError, match=REMEDY):
            call(model([layer()]), X_SEQ, narrow(X_SEQ), mutable=mutable)
        two = model([layer(), layer()])
        (first, second), _ = call(two, X_SEQ, narrow(X_SEQ), mutable=mutable)
        assert first.shape == X_SEQ.shape
        assert second.shape == narrow(X_SEQ).shape


@every_kind_of_dropout
def test_every_layer_names_a_second_one(row):
    x_seq = row.x_seq()
    # Every mask has the batch, or the features where all examples share it.
    axis = -1 if "shared batch" in row.name else 1
    second = jnp.concatenate([x_seq, x_seq], axis)
    for mutable in ((), ("state",)):
        with pytest.raises(ValueError, match=r"must have one mask .* second layer"):
            call(Shared([row.layer("m", deterministic=False)]), x_seq, second,
                 mutable=mutable)  # fmt: skip
    with pytest.raises(ValueError, match=r"must have one mask .* second layer"):
        call(Shared([row.layer(deterministic=False)]), x_seq[0], second[0],
             mutable=["state"])  # fmt: skip


def test_lost_connections_of_two_batches():
    layer = sd.DropConnectLinear(8, 4, invariant=True, step_mode="m", deterministic=False)
    params = layer.init(jax.random.key(0), X_SEQ)["params"]
    variables = {"params": {"layers_0": params}}
    for mutable in ((), ("state",)):
        with pytest.raises(ValueError, match=r"must have one mask .* second layer"):
            call(Shared([layer]), X_SEQ, X_SEQ[:, :2], mutable=mutable, variables=variables)


def test_a_mask_of_an_earlier_call_that_fits_one_of_two_inputs():
    model = Shared([sd.Dropout(0.5, deterministic=False)])
    _, updated = call(model, X_SEQ[0], X_SEQ[1], mutable=["state"])
    with pytest.raises(ValueError, match=REMEDY):
        call(model, X_SEQ[0], narrow(X_SEQ[0]), mutable=["state"], variables=updated)
    # Of another simulation, it has to be reset.
    with pytest.raises(ValueError, match=r"must fit the input.*reset_masks"):
        call(
            model, narrow(X_SEQ[0]), narrow(X_SEQ[0]), mutable=["state"], variables=updated
        )


def test_one_shape_is_one_mask_and_inference_takes_all_shapes():
    model = Shared([sd.Dropout(0.5, "m", deterministic=False)])
    (first, second), _ = call(model, X_SEQ, X_SEQ)
    np.testing.assert_array_equal(first, second)
    model = Shared([sd.Dropout(0.5, "m", deterministic=True)])
    (first, second), _ = call(model, X_SEQ, narrow(X_SEQ))
    assert first is X_SEQ
    # Other lengths of time are no other shape of a step.
    model = Shared([sd.Dropout(0.5, "m", deterministic=False)])
    (first, second), _ = call(model, X_SEQ, X_SEQ[:2])
    np.testing.assert_array_equal(first[:2], second)
