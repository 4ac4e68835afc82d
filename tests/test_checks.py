"""Bad input: every error names the argument, the rule, what was given and the remedy."""

import copy
import pickle
import re

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import snn_dropout as sd
from tests.laws.catalogue import (
    DROPOUTS,
    ROWS,
    every,
    every_connection,
    every_dropout,
    every_row,
)

KEY = jax.random.key(0)
RNGS = {"dropout": KEY}


def fails_and_stores_nothing(layer, x, error, match, state=None, **kwargs):
    """Calls a layer that must raise, and looks that the given state is as it was."""
    variables = {"state": dict(state or {})}
    with pytest.raises(error, match=match):
        layer.apply(variables, x, mutable=["state"], **{"rngs": RNGS, **kwargs})
    assert variables == {"state": dict(state or {})}


@every(ROWS, lambda row: not row.array)
@pytest.mark.parametrize(
    ("p", "error", "match"),
    [
        (-0.1, ValueError, r"`p` must be in \[0, 1\].*got -0\.1.*`p=0\.5`"),
        (1.0000001, ValueError, r"`p` must be in \[0, 1\].*got 1\.0000001"),
        (float("nan"), ValueError, r"`p` must be in \[0, 1\].*got nan"),
        (256, ValueError, r"`p` must be in \[0, 1\].*got 256"),
        ("0.5", TypeError, r"`p` must be a Python number.*got '0\.5' of type str"),
        (None, TypeError, r"`p` must be a Python number.*got None"),
        (True, TypeError, r"`p` must be a Python number.*got True of type bool"),
        ([0.5], TypeError, r"`p` must be a Python number.*got \[0\.5\] of type list"),
    ],
)
def test_p_is_a_number_from_0_to_1(row, p, error, match):
    with pytest.raises(error, match=match):
        row.make(p=p)


@every_connection
def test_p_of_connections_is_static(row):
    with pytest.raises(TypeError, match=r"`p` must be a static .*traced.*static_argnames"):
        jax.jit(lambda p: row.make(p=p).apply({}, row.x_seq()[0], True))(0.5)
    for p in (jnp.float32(0.5), np.full(40, 0.5)):
        with pytest.raises(TypeError, match=r"`p` must be a Python number.*`p=0\.5`"):
            row.make(p=p)


@pytest.mark.parametrize("p", [np.float32(0.5), np.float64(0.5), 1, 0])
def test_numpy_scalars_and_integers_are_numbers(p):
    x = jnp.ones((2, 3), jnp.bfloat16)
    layer = sd.Dropout(p, "m", deterministic=False)
    assert layer.apply({}, x, rngs=RNGS).dtype == jnp.bfloat16


@every_row
@pytest.mark.parametrize("step_mode", ["x", None, "S", 1])
def test_step_mode_is_s_or_m(row, step_mode):
    with pytest.raises(ValueError, match=r"`step_mode` must be 's'.*or 'm'.*but got"):
        row.make(step_mode=step_mode)


@pytest.mark.parametrize("channel_axis", [0, 4, -4, 1.0, True, None])
def test_channel_axis_is_an_axis_of_one_step_other_than_the_batch(channel_axis):
    with pytest.raises(ValueError, match=r"`channel_axis` must be .*of 4 axes.*write -1"):
        sd.Dropout2d(channel_axis=channel_axis)


@pytest.mark.parametrize("channel_axis", [1, 2, 3, -1, -2, -3])
def test_every_other_axis_can_be_the_channel(channel_axis):
    layer = sd.Dropout2d(0.5, channel_axis=channel_axis, deterministic=False)
    x = jnp.ones((2, 3, 4, 5))
    _, updated = layer.apply({}, x, rngs=RNGS, mutable=["state"])
    expected = [2, 1, 1, 1]
    expected[channel_axis] = x.shape[channel_axis]
    assert updated["state"]["mask"].shape == tuple(expected)


RANKS = {sd.Dropout1d: 3, sd.Dropout2d: 4, sd.Dropout3d: 5}


OTHER = {2: "Dropout", **{rank: layer.__name__ for layer, rank in RANKS.items()}}


@pytest.mark.short
@pytest.mark.parametrize("layer", RANKS)
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_wrong_rank_names_the_layer_for_it_and_the_mode_that_may_be_meant(
    layer, step_mode, deterministic
):
    time = step_mode == "m"
    other = "s" if time else "m"
    for given in range(8):
        rank = given - time
        if rank == RANKS[layer]:
            continue
        remedies = [rf"`{'x_seq' if time else 'x'}` of {layer.__name__} must be \["]
        if rank in OTHER:
            fields = r"\.\.\., step_mode='m'" if time else r"\.\.\."
            remedies.append(rf"for \[\w, .*\] use `{OTHER[rank]}\({fields}\)`, or")
        remedies.append("reshape it")
        if given - (not time) == RANKS[layer]:
            # Only after the layer, and as a possibility: it may share masks over a batch.
            remedies.append(rf"If it rather looks like .*, use `step_mode='{other}'`")
        fails_and_stores_nothing(
            layer(0.5, step_mode),
            jnp.ones((2,) * given),
            ValueError,
            ".*".join(remedies),
            deterministic=deterministic,
        )


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (sd.Dropout2d(0.5, "m"), (4, 3, 5, 6), r"for \[T, N, L, C\] use `Dropout1d\("),
        (sd.Dropout1d(0.5, "m"), (4, 3, 6), r"for \[T, N, C\] use `Dropout\("),
        (sd.Dropout1d(0.5), (3, 2, 2, 6), r"for \[N, H, W, C\] use `Dropout2d\("),
        (sd.Dropout2d(0.5), (3, 1, 2, 2, 6), r"for \[N, D, H, W, C\] use `Dropout3d\("),
        (sd.Dropout2d(0.5), (3, 5, 6), r"for \[N, L, C\] use `Dropout1d\("),
        (
            sd.Dropout2d(0.5, "m", channel_axis=1),
            (4, 3, 6, 5),
            r"for \[T, N, C, L\] use `Dropout1d\(\.\.\., channel_axis=1, step_mode='m'\)`",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_rank_error_says_drops_whole_channels_of_each_example(
    layer, shape, message
):
    with pytest.raises(ValueError, match=message) as error:
        layer.apply({}, jnp.ones(shape), False, rngs=RNGS)
    # Obeyed to the letter.
    call = re.search(r"use `(.+?)`", str(error.value))[1].replace("...", "0.5")
    other = eval(f"sd.{call}")
    x = jnp.ones(shape)
    _, updated = other.apply({}, x, False, rngs=RNGS, mutable=["state"])
    step = shape[1:] if other.step_mode == "m" else shape
    mask = updated["state"]["mask"]
    assert mask.shape[0] == step[0], "one for each example"
    assert mask.size == step[0] * 6, "and channel"


def test_the_rank_error_shows_the_layout():
    with pytest.raises(
        ValueError, match=r"must be \[N, C, H, W\].*looks like \[T, N, C, H, W\]"
    ):
        sd.Dropout2d(channel_axis=1).apply({}, jnp.ones((2,) * 5), True)


def test_drop_path_and_multi_step_mode_need_their_axes():
    with pytest.raises(ValueError, match=r"`x` of DropPath must be \[N, \.\.\.\]"):
        sd.DropPath().apply({}, jnp.float32(1), True)
    with pytest.raises(
        ValueError, match=r"`x_seq` of DropPath must be \[T, N.*step_mode='s'"
    ):
        sd.DropPath(step_mode="m").apply({}, jnp.ones(3), True)
    with pytest.raises(
        ValueError, match=r"`x_seq` of Dropout must be \[T, N.*step_mode='s'"
    ):
        sd.Dropout(step_mode="m").apply({}, jnp.float32(1), True)


def test_what_is_no_array_raises():
    with pytest.raises(
        TypeError, match=r"`x` must be an array, but got list.*jnp\.asarray"
    ):
        sd.Dropout().apply({}, [1.0, 2.0], True)
    assert sd.Dropout(deterministic=True).apply({}, np.ones((2, 3))).dtype == np.float64


@every_dropout
def test_a_missing_stream_names_the_stream(row):
    for rngs in (None, {"params": KEY}):
        for step_mode in ("s", "m"):
            layer = row.layer(step_mode, deterministic=False, rng_collection="noise")
            x = row.x_seq() if step_mode == "m" else row.x_seq()[0]
            fails_and_stores_nothing(
                layer,
                x,
                flax.errors.InvalidRngError,
                r"the mask state/mask needs the stream 'noise'.*rngs=\{'noise': key\}",
                rngs=rngs,
            )


@every_dropout
def test_state_not_mutable_in_single_step_mode(row):
    with pytest.raises(
        RuntimeError, match=r"'state' must be mutable.*mutable=\['state'\].*init_state"
    ):
        row.layer().apply({}, row.x_seq()[0], False, rngs=RNGS)


@every(DROPOUTS, lambda row: row.name != "Dropout shared batch", ["Dropout p per unit"])
def test_a_stored_mask_of_another_batch_names_both_shapes(row):
    x = row.x_seq()[0]
    _, one = row.layer().apply({}, x[:1], False, rngs=RNGS, mutable=["state"])
    _, all_ = row.layer().apply({}, x, False, rngs=RNGS, mutable=["state"])
    for state, given in ((one["state"], x), (all_["state"], x[:1])):
        fails_and_stores_nothing(
            row.layer(deterministic=False),
            given,
            ValueError,
            rf"must fit the input.*\({len(state['mask'])}, .*needs shape \({len(given)}, ",
            state=state,
        )


@every_row
def test_deterministic_is_given_once(row):
    x = row.x_seq()[0]
    variables = row.variables(x)
    with pytest.raises(
        ValueError, match=r"must be given to \w+, .*but was not.*=not train"
    ):
        row.layer().apply(variables, x)
    with pytest.raises(ValueError, match=r"once, but got True as its field and False in"):
        row.layer(deterministic=True).apply(variables, x, deterministic=False)
    with pytest.raises(
        TypeError, match=r"`deterministic` must be a static.*static_argnames"
    ):
        jax.jit(lambda flag: row.layer().apply(variables, x, deterministic=flag))(True)


@every_row
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_layer_that_is_called_alone_raises(row, deterministic):
    for layer in (row.layer(), row.layer("m"), sd.MultiStep(row.layer())):
        x = row.x_seq() if getattr(layer, "step_mode", "m") == "m" else row.x_seq()[0]
        with pytest.raises(
            RuntimeError, match=r"must be called by `apply`.*layer\.apply\("
        ):
            layer(x, deterministic=deterministic)


def test_errors_say_where_the_layer_is():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Sequential([sd.Dropout(deterministic=False)], name="block")(x)

    model = nn.Sequential([Deep(name="deep")])
    with pytest.raises(RuntimeError, match=r"a mask at state/.*/mask"):
        model.apply({}, jnp.ones((2, 3)), rngs=RNGS)


@pytest.mark.parametrize("run", ["simulate", "MultiStep"])
def test_x_seq_has_a_time_axis(run):
    def simulate(x_seq):
        layer = sd.Dropout(deterministic=True)
        if run == "simulate":
            return sd.simulate(layer, {}, x_seq)
        return sd.MultiStep(layer).apply({}, x_seq)

    with pytest.raises(ValueError, match=r"`x_seq` must have a time axis.*`x_seq\[None\]`"):
        simulate(jnp.float32(1))
    with pytest.raises(ValueError, match=r"`x_seq` must hold at least one array"):
        simulate({})
    with pytest.raises(TypeError, match=r"`x_seq` must be an array, but got float"):
        simulate([1.0, 2.0])
    with pytest.raises(ValueError, match=r"same number of time steps, but got 2, 3;"):
        simulate((jnp.ones((2, 1)), jnp.ones((3, 1))))


def test_mutable_names_collections_to_carry():
    layer, x_seq = sd.Dropout(deterministic=True), jnp.ones((2, 3))
    for mutable in (True, None, 3, [3]):
        with pytest.raises(
            TypeError, match=r"`mutable` must name .*mutable=\('batch_stats',\)"
        ):
            sd.simulate(layer, {}, x_seq, mutable=mutable)
    for mutable in ("params", ["params", "carry"]):
        with pytest.raises(
            ValueError, match=r"`mutable` must not hold 'params'.*leave it out"
        ):
            sd.simulate(layer, {}, x_seq, mutable=mutable)


@pytest.mark.parametrize("flag", ["false", 1, 0.0, "train"])
def test_deterministic_is_a_bool(flag):
    for run in (
        lambda: sd.Dropout(deterministic=flag),
        lambda: sd.Dropout().apply({}, jnp.ones((2, 3)), flag),
    ):
        with pytest.raises(TypeError, match=r"`deterministic` must be True .*not train"):
            run()
    assert sd.Dropout(deterministic=np.bool_(True)).apply({}, jnp.ones(2)).all()


class Counter(nnx.Module):
    def __call__(self, x):
        return x


MODULES = {
    "class": (nn.Dense, r"class Dense; .*`Dense\(\)`"),
    "function": (lambda x: x, r"function <lambda>; .*nn\.Sequential\(\[function\]\)"),
    "relu": (jax.nn.relu, r"function relu; .*nn\.Sequential"),
    "ufunc": (np.add, r"function add; .*nn\.Sequential"),
    "NNX": (Counter(), r"Counter of NNX; use .*`snn_dropout\.nnx\.simulate\(model"),
    "class of NNX": (Counter, r"class Counter of NNX; use .*`snn_dropout\.nnx\.simul"),
    "object": (type("Neuron", (), {"__call__": len})(), r"Neuron; write a class of `nn\.M"),
    "none": (None, r"NoneType; write a class of `nn\.Module`"),
}


@pytest.mark.short
@pytest.mark.parametrize(("module", "remedy"), MODULES.values(), ids=MODULES)
def test_what_is_run_over_time_is_an_instance_of_a_module(module, remedy):
    """Of linen: what another object remembers would be lost in a `Sequential`."""
    x_seq = jnp.ones((2, 3))
    for run in (
        lambda: sd.MultiStep(module),
        lambda: sd.DropConnect(module),
        lambda: sd.simulate(module, {}, x_seq),
        lambda: sd.init_state(module, {}, x_seq[0], rngs=None),
        lambda: sd.monte_carlo(module, {}, x_seq, rngs=None, samples=2),
    ):
        with pytest.raises(TypeError, match=rf"of a linen module, but got .*{remedy}"):
            run()


def test_a_neuron_of_nnx_is_no_activation_of_a_layer_of_linen():
    with pytest.raises(TypeError, match=r"one of NNX; use `snn_dropout\.nnx\.Drop"):
        sd.DropConnectLinear(3, 2, activation=Counter())
    # One that was made a module of linen is one.
    sd.DropConnectLinear(3, 2, activation=nnx.bridge.to_linen(Counter))


def test_a_layer_of_linen_alone_names_those_of_nnx():
    for layer in (sd.Dropout(), sd.DropConnectLinear(3, 2), sd.DropConnect(nn.Dense(3))):
        with pytest.raises(RuntimeError, match=r"NNX use the layers of `snn_dropout\.nnx`"):
            layer(jnp.ones((2, 3)))


@pytest.mark.parametrize("name", ["use_bias", "invariant"])
def test_flags_are_bools(name):
    for given in (0.5, 1, "no", None):
        with pytest.raises(TypeError, match=rf"`{name}` must be True or False"):
            sd.DropConnectLinear(3, 2, **{name: given})
        with pytest.raises(TypeError, match=rf"`{name}` must be True or False"):
            sd.nnx.DropConnectLinear(3, 2, rngs=nnx.Rngs(0), **{name: given})


def test_state_collections_are_names():
    for collections, error in (
        ("carry", TypeError),
        (3, TypeError),
        (("params",), ValueError),
    ):
        with pytest.raises(error, match=r"`state_collections` must"):
            sd.MultiStep(nn.Dense(3), state_collections=collections)


def test_simulate_takes_no_method():
    with pytest.raises(TypeError, match=r"takes no `method`.*wrap the method"):
        sd.simulate(nn.Dense(3), {}, jnp.ones((2, 3)), method="setup")


def test_layers_can_be_cloned_pickled_hashed_and_printed():
    for row in ROWS:
        layer = row.layer("m")
        again = [layer.clone()]
        if "DropConnect" not in row.name:  # `jax.nn.relu` itself can not be copied
            again += [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
        for other in again:
            assert repr(other) == repr(layer)
            if row.array:
                continue  # has no hash, as any array
            assert other == layer
            assert hash(other) == hash(layer)
        assert f"p = {layer.p!r}" in repr(layer) or row.array


def test_tabulate_lists_every_layer():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for layer in (sd.Dropout, sd.Dropout2d, sd.DropPath):
                x = layer(0.5, deterministic=False)(x)
            x = x.reshape(len(x), -1)
            return sd.DropConnectLinear(64, 3, deterministic=False)(x)

    wide = {"width": 200, "force_terminal": False}
    show = nn.tabulate(Model(), jax.random.key(0), console_kwargs=wide)
    table = show(jnp.ones((2, 4, 4, 4)))
    for name in ("Dropout_0", "Dropout2d_0", "DropPath_0", "DropConnectLinear_0"):
        assert name in table
    assert "195" in table, "64 * 3 + 3 parameters"
