"""Lost connections meet the right row: the step, the example, the input, the output.

All numbers are small integers, so that sums are exact in any order.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from snn_dropout import functional
from tests.depth import cases
from tests.neurons import loop

# The length of no two axes is the same, and 40 outputs are no whole number of words.
STEPS, EXAMPLES, INPUTS, OUTPUTS = 3, 4, 6, 40
RNGS = {"dropout": jax.random.key(5)}
NEVER = 1e-9  # a probability of 2^-23: some thousand connections are all kept

every_layer = pytest.mark.parametrize("invariant", [False, True], ids=["fresh", "held"])


def layer_of(invariant, **fields):
    fields = {"invariant": invariant, "activation": None, "deterministic": False, **fields}
    return sd.DropConnectLinear(INPUTS, OUTPUTS, **fields)


def ways_of(invariant, **fields):
    """Ways to run a simulation, as functions of parameters and the inputs of all steps."""
    single, multi = (layer_of(invariant, step_mode=mode, **fields) for mode in "sm")
    kept = {"rngs": RNGS, "mutable": ["state"]}

    def by_steps(params, x_seq):
        return loop(single, {"params": params}, x_seq, rngs=RNGS, fold=not invariant)[0]

    return {
        "loop": by_steps,
        "m": lambda params, x_seq: multi.apply({"params": params}, x_seq, **kept)[0],
        "simulate": lambda params, x_seq: sd.simulate(
            single, {"params": params}, x_seq, rngs=RNGS
        )[0],
        "MultiStep": lambda params, x_seq: sd.MultiStep(single).apply(
            {"params": params}, x_seq, rngs=RNGS
        ),
    }


def integers(seed, *shape, most=4):
    numbers = np.random.default_rng(seed).integers(-most, most + 1, shape)
    return jnp.asarray(numbers, jnp.float32)


def problem(use_bias=True):
    params = {"kernel": integers(0, INPUTS, OUTPUTS)}
    if use_bias:
        params["bias"] = integers(1, OUTPUTS)
    x_seq = integers(2, STEPS, EXAMPLES, INPUTS)
    dy_seq = integers(3, STEPS, EXAMPLES, OUTPUTS)
    return params, x_seq, dy_seq


def with_gradients(run):
    def both(params, x_seq, dy_seq):
        y_seq, pullback = jax.vjp(run, params, x_seq)
        return y_seq, pullback(dy_seq)

    return both


@cases("invariant", [False, True], short=[False], ids=["fresh", "held"])
@cases("use_bias", [True, False], short=[True])
def test_where_nothing_is_lost_every_way_is_the_dense_layer(invariant, use_bias):
    """Outputs and all gradients, for inputs that differ at every step and example."""
    arguments = problem(use_bias)
    layer = layer_of(invariant, p=NEVER)
    kept = {"rngs": RNGS, "mutable": ["state"]}

    def one_by_one(params, x_seq):
        # A loop of its own for each step would take long to compile.
        return jax.lax.map(lambda x: layer.apply({"params": params}, x, **kept)[0], x_seq)

    ways = ways_of(invariant, p=NEVER, use_bias=use_bias)
    ways = {"m": ways["m"]} if not use_bias else ways | {"loop": one_by_one}
    dense = nn.Dense(OUTPUTS, use_bias=use_bias)
    expected = with_gradients(lambda params, x: dense.apply({"params": params}, x))

    @jax.jit
    def everything(*arguments):
        found = {way: with_gradients(run)(*arguments) for way, run in ways.items()}
        return found, expected(*arguments)

    found, wanted = everything(*arguments)
    chex.assert_trees_all_equal(found, dict.fromkeys(ways, wanted))


# The masks themselves, read off the outputs: each input has a prime number of its own
# for its step and example, each kernel element a power of two for its input.
PRIMES = jnp.array([257, 263, 269, 271, 277, 281, 283, 293, 307, 311, 313, 317.0])
POWERS = jnp.broadcast_to(2.0 ** jnp.arange(INPUTS)[:, None], (INPUTS, OUTPUTS))
BIAS = 2.0**22


def read(y_seq, x_seq):
    """The masks of kernel and bias, or an error where another step or example answers."""
    y_seq, primes = np.asarray(y_seq, np.int64), np.asarray(x_seq, np.int64)[..., :1]
    bias_mask = y_seq >= BIAS
    numbers, rest = np.divmod(y_seq - bias_mask * int(BIAS), primes)
    assert not rest.any(), "the inputs of another row"
    assert (numbers < 2**INPUTS).all()
    kernel_mask = numbers[:, :, None] >> np.arange(INPUTS)[:, None] & 1 == 1
    return kernel_mask, bias_mask  # [T, N, I, O], [T, N, O]


@every_layer
@cases("way", ["loop", "m", "simulate"], short=["m", "simulate"])
def test_every_row_has_its_own_mask_and_gradients_meet_the_same(invariant, way):
    params = {"kernel": POWERS, "bias": jnp.full(OUTPUTS, BIAS)}
    x_seq = jnp.broadcast_to(PRIMES.reshape(STEPS, EXAMPLES, 1), (STEPS, EXAMPLES, INPUTS))
    dy_seq = problem()[2]
    run = jax.jit(with_gradients(ways_of(invariant)[way]))
    y_seq, (dparams, dx_seq) = run(params, x_seq, dy_seq)
    kernel_mask, bias_mask = read(y_seq, x_seq)

    masks = np.concatenate([kernel_mask, bias_mask[:, :, None]], 2)
    if invariant:
        assert (masks == masks[:1]).all(), "held over time"
        masks = masks[:1]
    # No line comes twice: of an input or of the bias, at any step, of any example.
    lines = masks.reshape(-1, OUTPUTS)
    assert len(np.unique(lines, axis=0)) == len(lines)
    masks = masks.reshape(-1, (INPUTS + 1) * OUTPUTS)
    # Half of 280 bits differ, give or take six deviations, for any two rows.
    differ = (masks[:, None] != masks[None]).sum(-1)
    far = abs(differ[np.triu_indices(len(masks), 1)] - masks.shape[1] / 2)
    assert far.max() < 6 * np.sqrt(masks.shape[1]) / 2

    dy_seq = np.asarray(dy_seq)
    expected = {
        "kernel": np.einsum("tnio,tni,tno->io", kernel_mask, x_seq, dy_seq),
        "bias": np.einsum("tno,tno->o", bias_mask, dy_seq),
    }
    chex.assert_trees_all_equal(dparams, jax.tree.map(np.float32, expected))
    by_input = np.einsum("tnio,io,tno->tni", kernel_mask, params["kernel"], dy_seq)
    np.testing.assert_array_equal(dx_seq, by_input)


def test_held_masks_in_the_state_are_those_that_the_outputs_show():
    """Bit by bit: example, input and output of a stored mask."""
    params = {"kernel": POWERS, "bias": jnp.full(OUTPUTS, BIAS)}
    x_seq = jnp.broadcast_to(PRIMES.reshape(STEPS, EXAMPLES, 1), (STEPS, EXAMPLES, INPUTS))
    layer = layer_of(True, step_mode="m")

    @jax.jit
    def run(x_seq):
        return layer.apply({"params": params}, x_seq, rngs=RNGS, mutable=["state"])

    y_seq, updated = run(x_seq)
    state = updated["state"]
    kernel_mask, bias_mask = read(y_seq, x_seq)
    words = functional.unpack_bits(state["kernel_mask"], OUTPUTS)
    np.testing.assert_array_equal(kernel_mask[0], words)
    np.testing.assert_array_equal(bias_mask[0], state["bias_mask"])


@pytest.mark.parametrize("inputs_per_mask", [1, 3])
def test_each_connection_alone_takes_its_input_to_its_output(inputs_per_mask):
    """One bit of one mask: forward, and back to the input and to the kernel."""
    examples, inputs, outputs = 2, 5, 34
    connections = examples * inputs * outputs
    x = integers(4, examples, inputs_per_mask, inputs)
    kernel = integers(5, inputs, outputs)
    dy = integers(6, examples, inputs_per_mask, outputs)
    # In the k-th problem all connections are lost but the k-th.
    alone = np.eye(connections, dtype=bool).reshape(-1, examples, inputs, outputs)
    chosen = alone[:: connections // 20]

    @jax.jit
    @jax.vmap
    def run(mask):
        words = functional.pack_bits(mask)
        return with_gradients(lambda kernel, x: functional.masked_matmul(x, kernel, words))(
            kernel, x, dy
        )

    y, (dkernel, dx) = run(chosen)
    np.testing.assert_array_equal(y, np.einsum("knio,io,nsi->knso", chosen, kernel, x))
    expected = np.einsum("knio,nsi,nso->kio", chosen, x, dy)
    np.testing.assert_array_equal(dkernel, expected)
    np.testing.assert_array_equal(dx, np.einsum("knio,io,nso->knsi", chosen, kernel, dy))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_fresh_layer_that_is_called_twice_loses_other_connections(step_mode):
    """Of kernel and bias; a held one loses the same."""
    params = {"kernel": POWERS, "bias": jnp.full(OUTPUTS, BIAS)}
    x_seq = jnp.broadcast_to(PRIMES[0], (1, 1, INPUTS))
    x = x_seq if step_mode == "m" else x_seq[0]

    def twice(layer, x):
        return layer(x), layer(x)

    for invariant in (False, True):
        layer = layer_of(invariant, step_mode=step_mode)
        run = nn.apply(twice, layer, mutable=["state"])
        outputs, _ = run({"params": params}, x, rngs=RNGS)
        first, second = (read(y.reshape(1, 1, OUTPUTS), x_seq) for y in outputs)
        for one, other in zip(first, second, strict=True):
            assert (one == other).all() == invariant
