"""`DropConnectLinear` for NNX on tokens, the axes between batch and features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from snn_dropout import functional
from snn_dropout.functional.keys import mask_key
from tests import neurons
from tests.depth import cases
from tests.nnx.catalogue import KEY, LIF, RNGS, masks_of, take

STEPS, EXAMPLES, INPUTS, OUTPUTS = 3, 2, 6, 40
LINEN = sd.DropConnectLinear(INPUTS, OUTPUTS, invariant=True, activation=None)


def problem(tokens):
    x_seq = jax.random.normal(KEY, (STEPS, EXAMPLES, *tokens, INPUTS))
    return x_seq, LINEN.init(KEY, x_seq[0], True)["params"]


def layer_of(params, **fields):
    fields = {"activation": None, "samples_num": 8, **fields}
    layer = sdn.DropConnectLinear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0), **fields)
    take(layer, params)
    return layer


@cases("step_mode", ["s", "m"], short=["m"])
@cases("tokens", [(2, 3), (0,)], short=[(2, 3)])
def test_held_connections_are_those_of_linen(tokens, step_mode):
    x_seq, params = problem(tokens)
    linen, layer = (
        LINEN.clone(step_mode=step_mode),
        layer_of(params, invariant=True, step_mode=step_mode),
    )

    @jax.jit
    def expected(x_seq):
        if step_mode == "s":
            return sd.simulate(
                linen, {"params": params}, x_seq, deterministic=False, rngs=RNGS
            )
        given = {"rngs": RNGS, "mutable": ["state"]}
        return linen.apply({"params": params}, x_seq, False, **given)

    run = nnx.jit(
        lambda layer, x_seq: (
            sdn.simulate(layer, x_seq, key=KEY)
            if step_mode == "s"
            else layer(x_seq, rngs=KEY)
        )
    )
    y_seq, updated = expected(x_seq)
    assert y_seq.shape == (STEPS, EXAMPLES, *tokens, OUTPUTS)
    np.testing.assert_array_equal(run(layer, x_seq), y_seq)
    x = x_seq if step_mode == "m" else x_seq[0]
    with sdn.simulation(layer, x, key=KEY):
        for name in ("kernel_mask", "bias_mask"):
            np.testing.assert_array_equal(masks_of(layer)[name,], updated["state"][name])


@cases("step_mode", ["s", "m"], short=["m"])
def test_fresh_connections_are_one_an_example_and_step(step_mode):
    x_seq, params = problem((2, 3))
    layer = layer_of(params, step_mode=step_mode)
    x_seq = x_seq if step_mode == "m" else x_seq[:1]
    y_seq = nnx.jit(lambda layer, x: layer(x, rngs=KEY))(
        layer, x_seq if step_mode == "m" else x_seq[0]
    )
    rows = (len(x_seq) * EXAMPLES, INPUTS, OUTPUTS)
    keys = {name: mask_key(KEY, (), name) for name in ("kernel_mask", "bias_mask")}
    words = functional.draw_bits(keys["kernel_mask"], rows, 0.5)
    bias_mask = functional.draw_mask(keys["bias_mask"], (rows[0], OUTPUTS), 0.5)
    # The steps of an example lie together.
    masks = functional.unpack_bits(words, OUTPUTS).reshape(EXAMPLES, -1, INPUTS, OUTPUTS)
    expected = jnp.einsum("tnhli,ntio,io->tnhlo", x_seq, masks, params["kernel"])
    kept = (bias_mask * params["bias"][None]).reshape(EXAMPLES, -1, 1, 1, OUTPUTS)
    expected += kept.swapaxes(0, 1)
    y_seq = y_seq if step_mode == "m" else y_seq[None]
    np.testing.assert_allclose(y_seq, expected, rtol=1e-5, atol=1e-5)


INFERENCE = {
    "analytic": {"inference": "analytic", "activation": jax.nn.relu},
    "sampled": {"activation": jax.nn.relu},
    "neurons": {"activation": LIF},
}


@cases("step_mode", ["s", "m"], short=["m"])
@cases("kind", INFERENCE, short=["neurons"])
def test_in_inference_tokens_are_as_examples_of_their_own(kind, step_mode):
    x_seq, params = problem((3,))

    def run(x_seq):
        fields = {**INFERENCE[kind], "deterministic": True, "step_mode": step_mode}
        if fields["activation"] is LIF:
            fields["activation"] = LIF()
        layer = layer_of(params, **fields)
        if step_mode == "m":
            return layer(x_seq)
        return sdn.simulate(layer, x_seq)

    y_seq, flat = jax.jit(run)(4 * x_seq), 4 * x_seq.reshape(STEPS, -1, INPUTS)
    np.testing.assert_allclose(
        y_seq.reshape(*flat.shape[:2], OUTPUTS), jax.jit(run)(flat), rtol=1e-5, atol=1e-6
    )
    assert y_seq.any()


@cases("inference", ["analytic", "sample"], short=["sample"])
def test_inference_by_one_key_is_that_of_linen(inference):
    x_seq, params = problem((3,))
    fields = {"activation": jnp.tanh, "inference": inference, "samples_num": 8}
    fields |= {"step_mode": "m", "deterministic": True}
    linen, layer = LINEN.clone(**fields), layer_of(params, **fields)

    @jax.jit
    def expected(params, x_seq):
        key = linen.apply({}, rngs=RNGS, method=lambda linen: linen.make_rng("dropout"))
        return linen.apply({"params": params}, x_seq, rngs=RNGS), key

    y_seq, key = expected(params, x_seq)
    found = nnx.jit(lambda layer, x_seq, key: layer(x_seq, rngs=key))(layer, x_seq, key)
    np.testing.assert_array_equal(found, y_seq)


@pytest.mark.exhaustive
def test_every_token_has_a_membrane_of_its_own_and_copies_restart_by_rows():
    x_seq, params = problem((3,))
    linen = LINEN.clone(activation=neurons.LIF())
    expected, _ = sd.simulate(
        linen, {"params": params}, 8 * x_seq, deterministic=False, rngs=RNGS
    )
    layer = layer_of(params, invariant=True, activation=LIF())
    np.testing.assert_array_equal(sdn.simulate(layer, 8 * x_seq, key=KEY), expected)
    assert layer.activation.v.shape == (EXAMPLES, 3, OUTPUTS)

    inferring = layer_of(params, activation=LIF(), deterministic=True)
    sdn.init_masks(inferring, x_seq[0], key=KEY)
    inferring(8 * x_seq[0])
    sdn.reset_rows(jnp.array([True, False]), inferring, key=KEY)
    (v,) = (leaf for leaf in inferring.samples.get_value() if leaf.ndim > 1)
    assert v.shape == (EXAMPLES, 8, 3, OUTPUTS)
    assert not v[0].any()
    assert v[1].any()


def test_a_whole_sequence_that_is_taken_for_tokens_raises_where_it_can_be_seen():
    x_seq, params = problem(())

    class Model(nnx.Module):
        def __init__(self, step_mode):
            self.first = sdn.Dropout(0.5, step_mode="m")
            self.second = layer_of(params, invariant=True, step_mode=step_mode)

        def __call__(self, x_seq):
            return self.second(self.first(x_seq))

    sdn.init_masks(Model("m"), x_seq, key=KEY)
    with pytest.raises(ValueError, match=r"It seems to hold all steps.*`step_mode='m'`"):
        sdn.init_masks(Model("s"), x_seq, key=KEY)
