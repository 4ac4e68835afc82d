"""Bad input: every error names the argument, the rule, what was given and the remedy."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import snn_dropout as sd
import snn_dropout.nnx as sdn
from tests.depth import cases
from tests.nnx.catalogue import KEY, LIF, Membrane, Net, holds_nothing

X = jnp.ones((4, 6))
X_SEQ = jnp.ones((5, 4, 6))


def model():
    return Net(rngs=nnx.Rngs(0))


KEYS = {
    "missing": (None, r"`key` must be given.*Dropout_0 is in training.*jax\.random\.key"),
    "rngs": (nnx.Rngs(0), r"got Rngs; .*`key=rngs\.dropout\(\)`"),
    "stream": (nnx.Rngs(0).dropout, r"got RngStream; .*`key=stream\(\)`"),
    "number": (3, r"got int; write `key=jax\.random\.key\(seed\)`"),
    "many": (jax.random.split(KEY, 3), r"got key<fry>\[3\]; .*`key=keys\[0\]`"),
    "floats": (jnp.ones(2), r"got float32\[2\]; write for example"),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_key_is_one_key(name):
    key, match = KEYS[name]
    with pytest.raises(TypeError, match=match):
        sdn.simulate(model(), X_SEQ, key=key)
    with pytest.raises(TypeError, match=match):
        sdn.simulation(model(), X, key=key).__enter__()
    if key is not None:
        with pytest.raises(TypeError, match=match):
            sdn.init_masks(model(), X, key=key)


MODELS = {
    "class": (Net, r"the class Net; write for example `Net\(rngs=nnx\.Rngs\(0\)\)`"),
    "function": (lambda x: x, r"got function; .*nnx\.Sequential\(function\)"),
    "linen": (
        nn.Dense(3),
        r"got a module of linen; use `snn_dropout\.simulate`",
    ),
    "class of linen": (nn.Dense, r"got a module of linen; use `snn_dropout\.simulate`"),
    "no call": (nnx.Rngs(0), r"must be an NNX module with a `__call__`, but got Rngs"),
}


@pytest.mark.short
@pytest.mark.parametrize(("given", "match"), MODELS.values(), ids=MODELS)
def test_the_model_is_a_module_of_nnx(given, match):
    for call in (
        lambda: sdn.simulate(given, X_SEQ, key=KEY),
        lambda: sdn.simulation(given, X, key=KEY).__enter__(),
        lambda: sdn.init_masks(given, X, key=KEY),
        lambda: sdn.reset_masks(given),
        lambda: sdn.reset_rows(jnp.ones(4, bool), given, key=KEY),
        lambda: sdn.monte_carlo(given, X_SEQ, key=KEY, samples=2),
    ):
        with pytest.raises(TypeError, match=match):
            call()


def test_a_model_without_our_layers_has_no_masks_to_make_and_runs_all_the_same():
    other = nnx.Sequential(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.0))
    with pytest.raises(ValueError, match=r"`init_masks` makes their masks, but has none"):
        sdn.init_masks(other, X, key=KEY)
    assert sdn.simulate(other, X_SEQ, key=KEY).shape == (5, 4, 3)
    assert sdn.simulate(other, X_SEQ).shape == (5, 4, 3)
    with sdn.simulation(other, X):
        other(X)
    with pytest.raises(ValueError, match="holds none; call `init_masks"):
        sdn.reset_rows(jnp.ones(4, bool), other, key=KEY)


def test_connections_in_mode_s_have_their_masks_before_the_first_step():
    layer = sdn.DropConnectLinear(6, 3, invariant=True, rngs=nnx.Rngs(0))
    with pytest.raises(RuntimeError, match=r"must have its mask before.*`kernel_mask`"):
        layer(X)
    assert holds_nothing(layer)


@pytest.mark.parametrize("held", [jnp.ones((3, 1)), jnp.ones((4, 1), jnp.int32)])
def test_a_rate_that_is_held_fits_its_mask(held):
    layer = sdn.Dropout(jnp.full((4, 1), 0.5))
    with sdn.simulation(layer, X, key=KEY):
        layer.mask_p.set_value(held)
        with pytest.raises(ValueError, match=r"`mask_p` .* must fit its mask.*\(4, 1\)"):
            layer(X)


class Counts(nnx.Module):
    """A step that is not the one before, and says so in an attribute."""

    def __init__(self):
        self.steps = 0

    def __call__(self, x):
        self.steps += 1
        return x * self.steps


def test_a_step_that_changes_attributes_raises():
    with pytest.raises(ValueError, match="A step must leave the attributes and Variables"):
        sdn.simulate(Counts(), X_SEQ)


def test_a_step_that_changes_only_when_it_is_traced_again_raises():
    calls = itertools.count()

    class Whims(nnx.Module):
        def __init__(self):
            self.note = "old"

        def __call__(self, x):
            if next(calls) == 1:
                self.note = "new"
            return x

    with pytest.raises(ValueError, match="A step must leave the attributes and Variables"):
        sdn.simulate(Whims(), X_SEQ)


def test_time_comes_first_in_what_is_simulated():
    with pytest.raises(TypeError, match=r"list of 5.*jnp\.stack\(x_seq\)"):
        sdn.simulate(model(), list(X_SEQ), key=KEY)
    with pytest.raises(ValueError, match="time axis first"):
        sdn.simulate(model(), jnp.ones(()), key=KEY)


def test_a_layer_in_mode_m_raises_inside_of_a_simulation_of_steps():
    whole = nnx.Sequential(LIF(), sdn.Dropout(0.5, step_mode="m"))
    connected = sdn.DropConnectLinear(6, 3, step_mode="m", rngs=nnx.Rngs(0))
    for wrong in (whole, connected):
        for run in (
            lambda wrong=wrong: sdn.simulate(wrong, X_SEQ, key=KEY),
            lambda wrong=wrong: sdn.monte_carlo(wrong, X_SEQ, key=KEY, samples=2),
        ):
            with pytest.raises(ValueError, match=r"in mode 'm'.*batch for time.*'s'"):
                run()
    whole.eval()  # in inference too
    with pytest.raises(ValueError, match="batch for time"):
        sdn.simulate(whole, X_SEQ)
    inside = sdn.DropConnectLinear(
        6, 6, activation=whole, invariant=True, step_mode="m", rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="batch for time"):
        sdn.simulation(inside, X_SEQ, key=KEY).__enter__()


def test_a_layer_in_mode_s_beside_one_in_mode_m_raises():
    mixed = nnx.Sequential(sdn.Dropout(0.5, step_mode="m"), sdn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"at layers/1 got shape \(5, 4, 6\).*T = 5 steps"):
        sdn.init_masks(mixed, X_SEQ, key=KEY)


def test_streams_are_asked_for_where_they_are_needed():
    layer = sdn.Dropout(0.5, step_mode="m")
    with pytest.raises(ValueError, match=r"made without `rngs`.*\(\.\.\., rngs=rngs"):
        layer(X_SEQ)
    with pytest.raises(TypeError, match=r"`rngs` must be an `nnx\.Rngs`.*got int"):
        sdn.Dropout(0.5, rngs=0)
    with pytest.raises(TypeError, match=r"`rngs` must be one key.*got int"):
        layer(X_SEQ, rngs=0)
    connected = sdn.DropConnectLinear(6, 3, rngs=nnx.Rngs(params=0))
    with pytest.raises(ValueError, match="the masks of DropConnectLinear needs a stream"):
        sdn.simulate(connected, X_SEQ, key=KEY)
    connected.eval()
    with pytest.raises(ValueError, match=r"the samples \(`inference='analytic'`"):
        connected(X)
    held = sdn.DropConnectLinear(6, 3, invariant=True, rngs=nnx.Rngs(params=0))
    assert sdn.simulate(held, X_SEQ, key=KEY).shape == (5, 4, 3)


def test_arguments_behind_p_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        sdn.Dropout(0.5, "m")
    with pytest.raises(TypeError, match="positional"):
        sdn.Dropout2d(0.5, 1)
    with pytest.raises(TypeError, match="rngs"):
        sdn.DropConnectLinear(6, 3)


ARGUMENTS = {
    "p": (lambda: sdn.Dropout(1.5), ValueError, r"`p` must be in \[0, 1\]"),
    "traced": (
        lambda: jax.jit(lambda p: sdn.DropConnectLinear(6, 3, p=p, rngs=nnx.Rngs(0)))(0.5),
        TypeError,
        "`p` must be a static",
    ),
    "a list": (lambda: sdn.Dropout([0.5]), TypeError, "`p` must be a Python number or an"),
    "rates": (
        lambda: sdn.Dropout(jnp.float32([0.5, 2])),
        ValueError,
        r"`p` must be in \[0, 1\].*array with 2.0",
    ),
    "rates of others": (
        lambda: sdn.init_masks(sdn.Dropout(jnp.full(4, 0.5)), X, key=KEY),
        ValueError,
        r"broadcast to the mask.*p\.reshape\(-1, 1\)",
    ),
    "mode": (lambda: sdn.Dropout(step_mode="x"), ValueError, "`step_mode` must be"),
    "axis": (lambda: sdn.Dropout2d(channel_axis=0), ValueError, "`channel_axis` must be"),
    "flag": (lambda: sdn.Dropout(deterministic=1), TypeError, "`deterministic` must be"),
    "no flag": (
        lambda: sdn.Dropout(deterministic=None)(X),
        ValueError,
        r"`deterministic` must be given to Dropout.*model\.eval\(\)",
    ),
    "traced flag": (
        lambda: jax.jit(lambda d: sdn.Dropout()(X, deterministic=d))(True),
        TypeError,
        "static Python bool",
    ),
    "rank": (lambda: sdn.Dropout2d()(X), ValueError, r"`x` of Dropout2d must be"),
    "no examples": (lambda: sdn.DropPath()(X[0]), ValueError, "behind the examples"),
    "list": (lambda: sdn.Dropout()([X]), TypeError, "list of 1"),
    "features": (
        lambda: sdn.DropConnectLinear(5, 3, rngs=nnx.Rngs(0))(X),
        ValueError,
        "in_features=5",
    ),
    "inference": (
        lambda: sdn.DropConnectLinear(6, 3, inference="mean", rngs=nnx.Rngs(0)),
        ValueError,
        "`inference` must be",
    ),
    "analytic neurons": (
        lambda: sdn.DropConnectLinear(
            6, 3, inference="analytic", activation=LIF(), rngs=nnx.Rngs(0)
        ),
        ValueError,
        "`inference='sample'`",
    ),
    "class": (
        lambda: sdn.DropConnectLinear(6, 3, activation=LIF, rngs=nnx.Rngs(0)),
        TypeError,
        r"the class LIF; write for example `activation=LIF\(\)`",
    ),
    "samples": (
        lambda: sdn.monte_carlo(model(), X_SEQ, key=KEY, samples=0),
        ValueError,
        "`samples` must be 1 or more",
    ),
    "carried": (
        lambda: sdn.Carried(nnx.Dropout(0.5)),
        TypeError,
        r"`layer` must be a dropout layer .*`Carried\(Dropout\(0\.5, rngs=rngs\)\)`",
    ),
}


@cases("name", ARGUMENTS, short=["p", "mode", "no flag", "class", "carried"])
def test_arguments(name):
    call, error, match = ARGUMENTS[name]
    with pytest.raises(error, match=match):
        call()


SET_LATER = {
    "step_mode": "multi",
    "deterministic": "no",
    "scale": "no",
    "p": 1.5,
    "samples_num": 0,
    "invariant": "yes",
    "use_bias": 0.5,
    "in_features": 0,
    "activation": LIF,
    "inference": "samples",
    "broadcast_dims": 0.5,
    "channel_axis": 0,
}


@cases("name", SET_LATER, short=["step_mode", "inference"])
def test_an_attribute_that_is_set_is_checked_as_the_argument(name):
    linear = sdn.DropConnectLinear(6, 3, rngs=nnx.Rngs(0))
    for layer in (sdn.Dropout(), sdn.DropPath(), sdn.Dropout2d(), linear):
        if hasattr(layer, name):
            for assign in (setattr, lambda it, name, to: it.set_attributes(**{name: to})):
                with pytest.raises((TypeError, ValueError), match=rf"`{name}` must be"):
                    assign(layer, name, SET_LATER[name])
            holds_nothing(layer)
            assert getattr(layer, name) != SET_LATER[name]


def test_neurons_that_are_set_have_no_exact_expectation_either():
    layer = sdn.DropConnectLinear(6, 3, inference="analytic", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`inference='analytic'` needs an activation"):
        layer.activation = LIF()
    layer = sdn.DropConnectLinear(6, 3, activation=LIF(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`inference='analytic'` needs an activation"):
        layer.inference = "analytic"


def test_set_attributes_switches_a_model_to_all_steps():
    """As `functional.set_step_mode` of SpikingJelly."""
    net = nnx.Sequential(sdn.Dropout(0.5), sdn.Dropout(0.2))
    stepped = sdn.simulate(net, X_SEQ, key=KEY)
    net.set_attributes(step_mode="m")
    with sdn.simulation(net, X_SEQ, key=KEY):
        assert (net(X_SEQ) == stepped).all()


def test_a_neuron_of_linen_is_no_activation_of_a_layer_of_nnx():
    with pytest.raises(TypeError, match=r"one of linen; use `snn_dropout\.Drop"):
        sdn.DropConnectLinear(6, 3, activation=nn.Dense(3), rngs=nnx.Rngs(0))


def test_a_layer_that_the_dry_run_did_not_reach_has_no_mask():
    class Sometimes(nnx.Module):
        def __init__(self):
            self.drop, self.other = sdn.Dropout(0.5), sdn.Dropout(0.5)

        def __call__(self, x, more=False):
            return self.other(self.drop(x)) if more else self.drop(x)

    sometimes = Sometimes()
    with sdn.simulation(sometimes, X, key=KEY):
        sometimes(X)
        with pytest.raises(RuntimeError, match="one call of the model with these argum"):
            sometimes(X, more=True)
    with sdn.simulation(sometimes, X, more=True, key=KEY):
        sometimes(X, more=True)


class Bad(nnx.Module):
    def __init__(self, change, first=None):
        self.change = change
        self.v = Membrane(jnp.zeros((4, 6)) if first is None else first)

    def __call__(self, x):
        self.v.set_value(self.change(self.v.get_value(), x))
        return x


def test_variables_keep_their_shape_and_dtype():
    grows = Bad(lambda v, x: v + x, first=jnp.zeros((1, 6)))
    with pytest.raises(ValueError, match=r"The Variable v must keep its shape.*Restart"):
        sdn.simulate(grows, X_SEQ)
    widens = Bad(lambda v, x: v + x, first=jnp.zeros((4, 6), jnp.bfloat16))
    with pytest.raises(ValueError, match=r"must keep its dtype.*is bfloat16 before"):
        sdn.simulate(widens, X_SEQ)


def test_a_model_that_changes_at_every_step_is_told_to_return_what_is_to_be_seen():
    class Counts(nnx.Module):
        def __init__(self):
            self.steps = 0

        def __call__(self, x):
            self.steps += 1
            return x

    with pytest.raises(ValueError, match=r"keep counters in an `nnx\.Variable`"):
        sdn.simulate(Counts(), X_SEQ)


def test_an_error_in_the_block_takes_the_masks_away():
    net = model()
    with pytest.raises(ZeroDivisionError), sdn.simulation(net, X, key=KEY):
        raise ZeroDivisionError
    assert holds_nothing(net)


def test_errors_of_flax_in_the_block_stay_what_they_are():
    theirs = nnx.Sequential(sdn.Dropout(0.5), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with sdn.simulation(theirs, X, key=KEY), pytest.raises(Exception, match="trace"):
        jax.lax.scan(lambda carry, x: (carry, theirs(x)), (), X_SEQ)
    assert holds_nothing(theirs)


def test_rows_are_checked():
    layer = sdn.Dropout(0.5)
    sdn.init_masks(layer, X, key=KEY)
    with pytest.raises(ValueError, match=r"`done` must be a bool array \[N\]"):
        sdn.reset_rows(jnp.ones(4), layer, key=KEY)
    with pytest.raises(ValueError, match=r"has 3 where what Dropout holds is of 4 ex"):
        sdn.reset_rows(jnp.ones(3, bool), layer, key=KEY)


def test_layers_of_linen_in_an_nnx_model_say_that_they_are_none():
    class Mixed(nnx.Module):
        def __init__(self):
            self.drop = nnx.static(sd.Dropout(0.5))

        def __call__(self, x):
            return self.drop(x, deterministic=False)

    with pytest.raises(ValueError, match="the layers of linen are no NNX modules"):
        sdn.init_masks(Mixed(), X, key=KEY)


def test_monte_carlo_needs_masks_of_its_own():
    net = model()
    sdn.init_masks(net, X, key=KEY)
    with pytest.raises(ValueError, match=r"one at Dropout_0/mask,.*reset_masks\(model\)"):
        sdn.monte_carlo(net, X_SEQ, key=KEY, samples=2)
