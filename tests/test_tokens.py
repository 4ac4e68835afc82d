"""`DropConnectLinear` with axes between batch and features: tokens that share a mask."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout import functional
from tests.depth import cases
from tests.neurons import LIF

KEY = jax.random.key(0)
RNGS = {"dropout": jax.random.key(5)}
STEPS, EXAMPLES, INPUTS, OUTPUTS = 3, 2, 4, 5

every_shape = cases("tokens", [(3,), (2, 3), (1,), (0,)], short=[(3,), (2, 3), (0,)])


def layer_of(**fields):
    fields = {"invariant": True, "activation": None, "samples_num": 6, **fields}
    return sd.DropConnectLinear(INPUTS, OUTPUTS, **fields)


def problem(tokens):
    x_seq = jax.random.normal(KEY, (STEPS, EXAMPLES, *tokens, INPUTS))
    params = layer_of().init(KEY, jnp.ones((1, INPUTS)), True)["params"]
    return {"params": params}, x_seq


def flat(x_seq):
    """Tokens as examples of their own."""
    return x_seq.reshape(STEPS, -1, x_seq.shape[-1])


@cases("tokens", [(3,), (2, 3), (1,), (0,)], short=[(2, 3)])
def test_held_masks_are_one_an_example_forward_and_backward_in_both_modes(tokens):
    variables, x_seq = problem(tokens)
    multi, single = layer_of(step_mode="m"), layer_of()
    kept = {"deterministic": False, "rngs": RNGS, "mutable": ["state"]}

    @jax.jit
    def both(params, x_seq):
        def loss(params, x_seq):
            y_seq, updated = multi.apply({"params": params}, x_seq, **kept)
            return (y_seq**2).sum(), (y_seq, updated["state"])

        by_steps = sd.simulate(single, variables, x_seq, deterministic=False, rngs=RNGS)
        grads, (y_seq, state) = jax.grad(loss, (0, 1), has_aux=True)(params, x_seq)
        return y_seq, state, grads, by_steps

    y_seq, state, grads, (by_steps, updated) = both(variables["params"], x_seq)
    assert y_seq.shape == (STEPS, EXAMPLES, *tokens, OUTPUTS)
    np.testing.assert_allclose(by_steps, y_seq, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state, updated["state"])
    assert state["bias_mask"].shape == (EXAMPLES, OUTPUTS)
    mask = np.asarray(functional.unpack_bits(state["kernel_mask"], OUTPUTS), np.float32)
    bias_mask = np.asarray(state["bias_mask"], np.float32)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    number = int(np.prod(tokens))
    x = np.asarray(x_seq).reshape(STEPS, EXAMPLES, number, INPUTS)
    y_seq = y_seq.reshape(STEPS, EXAMPLES, number, OUTPUTS)
    expected = np.einsum("tnli,nio,io->tnlo", x, mask, kernel)
    expected += (bias_mask * bias[None])[None, :, None]
    np.testing.assert_allclose(y_seq, expected, rtol=1e-5, atol=1e-5)
    dy = 2 * expected
    dparams, dx = grads
    product = np.einsum("tnli,nio,tnlo->io", x, mask, dy)
    np.testing.assert_allclose(dparams["kernel"], product, rtol=1e-4, atol=1e-4)
    by_bias = np.einsum("no,tnlo->o", bias_mask, dy)
    np.testing.assert_allclose(dparams["bias"], by_bias, rtol=1e-4, atol=1e-4)
    by_input = np.einsum("nio,io,tnlo->tnli", mask, kernel, dy)
    np.testing.assert_allclose(dx.reshape(x.shape), by_input, rtol=1e-4, atol=1e-4)


@cases("step_mode", ["s", "m"], short=["m"])
@cases("use_bias", [True, False], short=[True])
def test_fresh_masks_are_one_an_example_and_step(step_mode, use_bias):
    """Equal tokens have equal outputs, other examples and steps other ones."""
    layer = sd.DropConnectLinear(
        *(64, 40), use_bias, activation=None, step_mode=step_mode, deterministic=False
    )
    x_seq = jnp.ones((STEPS, EXAMPLES, 2, 3, 64))
    variables = layer.init(KEY, x_seq)
    if step_mode == "m":
        y_seq = layer.apply(variables, x_seq, rngs=RNGS)
    else:
        y_seq, _ = sd.simulate(layer, variables, x_seq, rngs=RNGS)
    np.testing.assert_allclose(
        y_seq, jnp.broadcast_to(y_seq[:, :, :1, :1], y_seq.shape), rtol=1e-5, atol=1e-5
    )
    rows = np.asarray(y_seq[:, :, 0, 0]).reshape(-1, 40)
    differ = (abs(rows[:, None] - rows[None]) > 1e-3).mean(-1)
    assert (differ[~np.eye(len(rows), dtype=bool)] > 0.9).all()


@cases("step_mode", ["s", "m"], short=["m"])
@cases(
    "fields",
    [
        {"inference": "analytic", "activation": nn.relu},
        {"activation": nn.relu},
        {"activation": LIF()},
    ],
    ids=["analytic", "sampled", "neurons"],
    short=lambda fields: "inference" not in fields,
)
def test_in_inference_tokens_are_as_examples_of_their_own(step_mode, fields):
    """Bit for bit: they share the draws, as examples do."""
    variables, x_seq = problem((3,))
    layer = layer_of(step_mode=step_mode, deterministic=True, **fields)

    @jax.jit
    def run(x_seq):
        if step_mode == "m":
            return layer.apply(variables, x_seq, rngs=RNGS)
        return sd.simulate(layer, variables, x_seq, rngs=RNGS)[0]

    y_seq = run(4 * x_seq)
    np.testing.assert_allclose(flat(y_seq), run(4 * flat(x_seq)), rtol=1e-5, atol=1e-6)
    assert y_seq.any()


@cases("step_mode", ["s", "m"], short=["m"])
def test_every_token_has_a_membrane_of_its_own(step_mode):
    variables, x_seq = problem((3,))
    layer = layer_of(step_mode=step_mode, activation=LIF(), deterministic=False)
    given = {"rngs": RNGS, "mutable": ["state"]}

    def run(variables, x_seq):
        if step_mode == "m":
            return layer.apply(variables, x_seq, **given)
        return sd.simulate(layer, variables, x_seq, rngs=RNGS)

    y_seq, updated = run(variables, 8 * x_seq)
    state = updated["state"]
    assert state["activation"]["v"].shape == (EXAMPLES, 3, OUTPUTS)
    masks = {name: jnp.repeat(state[name], 3, 0) for name in ("kernel_mask", "bias_mask")}
    expected, _ = run({**variables, "state": masks}, 8 * flat(x_seq))
    np.testing.assert_array_equal(flat(y_seq), expected)
    assert y_seq.any()


@pytest.mark.parametrize("invariant", [True, False])
def test_a_whole_sequence_that_is_taken_for_tokens_raises_where_it_can_be_seen(invariant):
    class Model(nn.Module):
        step_mode: str

        @nn.compact
        def __call__(self, x_seq):
            x_seq = sd.MultiStep(LIF())(x_seq)
            layer = layer_of(
                invariant=invariant, step_mode=self.step_mode, deterministic=False
            )
            return layer(x_seq)

    _, x_seq = problem(())
    given = {"rngs": RNGS, "mutable": ["state"]}
    variables = Model("m").init(KEY, x_seq)
    Model("m").apply(variables, x_seq, **given)
    with pytest.raises(ValueError, match=r"It seems to hold all steps.*`step_mode='m'`"):
        Model("s").apply(variables, x_seq, **given)


def test_tokens_in_a_simulation_are_no_sequence():
    """Also where neurons run over all steps beside, if the numbers are others."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return LIF()(layer_of(deterministic=False)(x))

    _, x_seq = problem((7,))
    variables = Model().init(KEY, x_seq[0])
    y_seq, updated = sd.simulate(Model(), variables, x_seq, rngs=RNGS)
    assert y_seq.shape == (STEPS, EXAMPLES, 7, OUTPUTS)
    assert updated["state"]["DropConnectLinear_0"]["kernel_mask"].shape[0] == EXAMPLES


@cases("kind", ["Auto", "Explicit"], short=["Explicit"])
@cases("deterministic", [True, False], short=[False])
def test_tokens_of_a_batch_that_is_split_over_devices(kind, deterministic):
    kind = jax.sharding.AxisType[kind]
    variables, x_seq = problem((3,))
    layer = layer_of(step_mode="m", activation=nn.relu, deterministic=deterministic)
    alone = layer.apply(variables, x_seq, rngs=RNGS)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec(None, "data")
        x = jax.device_put(x_seq, jax.sharding.NamedSharding(mesh, spec))
        y_seq = jax.jit(lambda v, x: layer.apply(v, x, rngs=RNGS))(variables, x)
        np.testing.assert_allclose(y_seq, alone, rtol=1e-5, atol=1e-6)
