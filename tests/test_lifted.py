"""Inside of Flax's lifted transforms: a mask for all steps, or an error that leads there.

Who follows an error does what stands in it: the arguments are taken from its text.
"""

import re
from pathlib import Path
from types import MappingProxyType

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.neurons import LIF

RNGS = {"dropout": jax.random.key(5)}
STEPS, LAYERS = 5, 3
WIDTH = 8
X_SEQ = jnp.ones((STEPS, 2, WIDTH))
X = X_SEQ[0]


def init(model, *args):
    """Variables of the right shapes, all 1, without running or compiling anything."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def apply(model, variables, *args, mutable=()):
    """One compiled call: the output, and what it leaves."""

    @jax.jit
    def run(variables, args):
        return model.apply(variables, *args, rngs=RNGS, mutable=list(mutable))

    return run(variables, args)


class Cell(nn.Module):
    """A step of a recurrent network, with or without parameters or neurons."""

    drop: nn.Module
    dense: bool = True
    neurons: bool = False

    @nn.compact
    def __call__(self, carry, x):
        if self.dense:
            x = nn.Dense(WIDTH)(x)
        if self.neurons:
            x = LIF()(4 * x)
        return carry, self.drop(x)


class Layers(nn.Module):
    """A block that is stacked over depth: what is passed on is its input."""

    drop: nn.Module

    @nn.compact
    def __call__(self, x, _):
        return self.drop(nn.Dense(WIDTH)(x)), None


class RecurrentCell(Cell):
    num_feature_axes = 1

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return ()


def dropout(**fields):
    return sd.Dropout(0.5, deterministic=False, **fields)


def connections(**fields):
    return sd.DropConnectLinear(WIDTH, WIDTH, invariant=True, deterministic=False, **fields)


KINDS = {"Dropout": dropout, "DropConnect": connections}
every_kind = pytest.mark.parametrize("kind", KINDS)


class ByScan:
    """The cell by `nn.scan`, with the arguments that its user gives."""

    usual = MappingProxyType(
        {"variable_broadcast": "params", "split_rngs": {"params": False}}
    )

    def model(self, cell, options):
        return nn.scan(type(cell), **options)(cell.drop, cell.dense, cell.neurons)

    def arguments(self, cell):
        return {"params": init(cell, (), X).get("params", {})}, ((), X_SEQ)

    def outputs(self, result):
        return result[1]


class ByRNN(ByScan):
    """The cell by `nn.RNN`."""

    usual = MappingProxyType({})

    def model(self, cell, options):
        cell = RecurrentCell(cell.drop, cell.dense, cell.neurons)
        return nn.RNN(cell, time_major=True, **options)

    def arguments(self, cell):
        params = init(self.model(cell, {}), X_SEQ).get("params", {})
        return {"params": params}, (X_SEQ,)

    def outputs(self, result):
        return result


class ByFunction(ByScan):
    """A layer by `nn.scan` of a function: nothing but the layer is in the scan."""

    class Model(nn.Module):
        drop: nn.Module
        options: dict

        @nn.compact
        def __call__(self, x_seq):
            def step(drop, carry, x):
                return carry, drop(x)

            return nn.scan(step, **self.options)(self.drop, (), x_seq)[1]

    def model(self, cell, options):
        return self.Model(cell.drop, options)

    def arguments(self, cell):
        params = init(cell.drop, X).get("params", {})
        return {"params": {"drop": params}}, (X_SEQ,)

    def outputs(self, result):
        return result


WAYS = {"nn.scan": ByScan(), "nn.RNN": ByRNN(), "a function": ByFunction()}
every_way = pytest.mark.parametrize("way", WAYS)

# What a person tries first, and next.
REFLEXES = {
    "the usual arguments": {},
    "a stream that is not split": {"split_rngs": {"params": False, "dropout": False}},
    "a stream that is split": {"split_rngs": {"params": False, "dropout": True}},
    "a state a step": {"variable_axes": {"state": 0}},
    "a state a step, with one key": {
        "variable_axes": {"state": 0},
        "split_rngs": {"params": False, "dropout": False},
    },
    "a state a step, split": {
        "variable_axes": {"state": 0},
        "split_rngs": {"params": False, "dropout": True},
    },
    "a state a step, split, no more said": {
        "variable_axes": {"state": 0},
        "split_rngs": {"dropout": True},
    },
    "a state that is carried": {"variable_carry": "state"},
    "a state that is carried, with one key": {
        "variable_carry": "state",
        "split_rngs": {"params": False, "dropout": False},
    },
    "a state that is carried, split": {
        "variable_carry": "state",
        "split_rngs": {"params": False, "dropout": True},
    },
    "a state that is broadcast": {"variable_broadcast": ("params", "state")},
    "a state that is broadcast, split": {
        "variable_broadcast": ("params", "state"),
        "split_rngs": {"params": False, "dropout": True},
    },
}
ERRORS = (RuntimeError, flax.errors.InvalidRngError)


def arguments_in(error, start):
    """The arguments that stand in an error, from a name on, as one would type them."""
    text = re.search(rf"`({start}=.*?)`", str(error))[1]
    return eval(f"dict({text})")


def mutable_in(error):
    return eval(re.search(r"mutable=(\[.*?\])", str(error))[1])


def follow(way, cell, reflex):
    """Does what the first error says, and nothing else."""
    variables, args = way.arguments(cell)
    with pytest.raises(ERRORS) as first:
        way.model(cell, {**way.usual, **reflex}).apply(variables, *args, rngs=RNGS)
    options = arguments_in(first.value, "variable_broadcast")
    assert options == {
        "variable_broadcast": ("params", "state"),
        "split_rngs": {"params": False, "dropout": False},
    }
    model = way.model(cell, options)
    result, updated = apply(model, variables, *args, mutable=mutable_in(first.value))
    return way.outputs(result), updated["state"]


@every_way
@cases("kind", KINDS, short=["Dropout"])
def test_the_first_error_names_what_works(way, kind):
    cell, way = Cell(KINDS[kind]()), WAYS[way]
    y_seq, state = follow(way, cell, {})
    np.testing.assert_array_equal(y_seq, jnp.broadcast_to(y_seq[0], y_seq.shape))
    for path, leaf in jax.tree.leaves_with_path(state):
        assert "mask" in path[-1].key
        assert leaf.shape[0] == 2, "one mask, no mask a step"


def assert_leads_on(way, cell, options):
    """Every call under these options ends in an error that names what works."""
    variables, args = way.arguments(cell)
    model = way.model(cell, {**way.usual, **options})
    given = {"rngs": RNGS}
    for run in (
        lambda: model.apply(variables, *args, mutable=["state"], **given),
        lambda: sd.init_state(model, variables, *args, **given),
    ):
        with pytest.raises(ERRORS) as error:
            run()
        assert arguments_in(error.value, "variable_broadcast") == {
            "variable_broadcast": ("params", "state"),
            "split_rngs": {"params": False, "dropout": False},
        }
        assert mutable_in(error.value) == ["state"]
        assert "has none of that name" not in str(error.value)


@pytest.mark.short
@every_way
@pytest.mark.parametrize("reflex", REFLEXES)
def test_every_half_measure_leads_on(way, reflex):
    assert_leads_on(WAYS[way], Cell(dropout()), REFLEXES[reflex])


def test_every_half_measure_leads_on_without_parameters():
    for reflex in ("the usual arguments", "a state a step, split", "a state a step"):
        assert_leads_on(WAYS["nn.RNN"], Cell(dropout(), dense=False), REFLEXES[reflex])


@every_way
def test_a_mask_per_step_is_refused_under_every_outer_transform(way):
    way, options = WAYS[way], REFLEXES["a state a step, split"]
    cell = Cell(dropout())
    variables, args = way.arguments(cell)
    model = way.model(cell, {**way.usual, **options})

    def run(variables, key):
        return model.apply(variables, *args, rngs={"dropout": key}, mutable=["state"])

    keys = jax.random.split(RNGS["dropout"])
    for outer in (
        lambda: jax.jit(run)(variables, keys[0]),
        lambda: jax.vmap(run, in_axes=(None, 0))(variables, keys),
        lambda: jax.jit(jax.checkpoint(run))(variables, keys[0]),
    ):
        with pytest.raises(RuntimeError, match=r"drawn once for all steps"):
            outer()


def test_a_mask_per_step_is_refused_with_a_vmap_in_between_and_around():
    over_heads = {"variable_axes": {"params": 0, "state": 0}, "in_axes": (None, 0)}
    split = {"split_rngs": {"params": True, "dropout": True}}
    per_step = {
        "variable_broadcast": "params",
        "variable_axes": {"state": 0},
        "split_rngs": {"params": False, "dropout": True},
    }
    held = {
        "variable_broadcast": ("params", "state"),
        "split_rngs": {"params": False, "dropout": False},
    }
    heads = jnp.ones((STEPS, 4, 2, WIDTH))
    for make, x_seq in (
        (lambda o: nn.scan(nn.vmap(Cell, **over_heads, **split), **o), heads),
        (
            lambda o: nn.vmap(nn.scan(Cell, **o), **over_heads, **split),
            heads.swapaxes(0, 1),
        ),
    ):
        model = make(held)(dropout())
        params = {"params": init(model, (), x_seq)["params"]}
        _, updated = apply(model, params, (), x_seq, mutable=["state"])
        assert updated["state"]["drop"]["mask"].shape == (4, 2, WIDTH)
        with pytest.raises(RuntimeError, match=r"drawn once for all steps"):
            make(per_step)(dropout()).apply(params, (), x_seq, rngs=RNGS, mutable=["state"])


def test_neurons_in_the_cell_carry_and_masks_are_broadcast():
    cell, way = Cell(dropout(), neurons=True), WAYS["nn.scan"]
    variables, args = init(cell, (), X), ((), X_SEQ)
    carried = {"variable_broadcast": "params", "variable_carry": "state"}
    for rngs in ({}, {"dropout": False}, {"dropout": True}):
        model = way.model(cell, {**carried, "split_rngs": {"params": False, **rngs}})
        with pytest.raises(ERRORS, match="neurons carry") as error:
            model.apply(variables, *args, rngs=RNGS, mutable=["state"])
    options = arguments_in(error.value, "variable_broadcast")
    field = arguments_in(error.value, "state_collection")
    model = way.model(Cell(dropout(**field), neurons=True), options)
    (_, y_seq), updated = apply(model, variables, *args, mutable=mutable_in(error.value))
    mask = updated["masks"]["drop"]["mask"]
    assert mask.shape == (2, WIDTH)
    assert not y_seq[:, ~mask].any()
    assert updated["state"]["LIF_0"]["v"].shape == (2, WIDTH)


# Over layers, each has a mask of its own.

OVER_LAYERS = {
    "length": LAYERS,
    "variable_axes": {"params": 0},
    "split_rngs": {"params": True},
}


@every_kind
@cases(
    "between",
    [lambda block: block, nn.remat],
    ids=["", "remat"],
    short=lambda between: between is not nn.remat,
)
def test_layers_have_masks_of_their_own_under_what_the_error_says(kind, between):
    def model(**options):
        return nn.scan(between(Layers), **{**OVER_LAYERS, **options})(KINDS[kind]())

    params = {"params": init(model(), X, None)["params"]}
    for options in ({}, {"variable_axes": {"params": 0, "state": 0}}):
        with pytest.raises(ERRORS) as error:
            model(**options).apply(params, X, None, rngs=RNGS, mutable=["state"])
    options = arguments_in(error.value, "variable_axes")
    _, updated = apply(model(**options), params, X, None, mutable=["state"])
    for path, leaf in jax.tree.leaves_with_path(updated["state"]["drop"]):
        assert leaf.shape[:2] == (LAYERS, 2)
        assert path[-1].key == "mask_p" or not (leaf[0] == leaf[1]).all()


def test_whole_simulations_inside_of_a_scan_have_masks_of_their_own():
    class Whole(nn.Module):
        @nn.compact
        def __call__(self, carry, x_seq):
            return carry, sd.MultiStep(nn.Sequential([nn.Dense(WIDTH), dropout()]))(x_seq)

    model = nn.scan(
        Whole,
        variable_broadcast="params",
        split_rngs={"params": False, "dropout": True},
    )()
    x_seqs = jnp.stack([X_SEQ] * 3)
    params = {"params": init(model, (), x_seqs)["params"]}
    (_, y_seqs), _ = apply(model, params, (), x_seqs, mutable=["state"])
    off = (y_seqs == 0).all(1)
    np.testing.assert_array_equal(off, (y_seqs == 0).any(1))
    assert not (off[0] == off[1]).all()


# Other transforms.


def test_vmap_works_under_what_the_error_says():
    def model(axes, rngs):
        mapped = nn.vmap(Layers, in_axes=(0, None), variable_axes=axes, split_rngs=rngs)
        return mapped(dropout())

    axes, rngs = {"params": 0}, {"params": True}
    xs = jnp.stack([X] * 4)
    params = {"params": init(model(axes, rngs), xs, None)["params"]}
    for more_axes, more_rngs in (
        ({}, {}),
        ({}, {"dropout": True}),
        ({"state": 0}, {}),
    ):
        half = model({**axes, **more_axes}, {**rngs, **more_rngs})
        with pytest.raises(ERRORS) as error:
            half.apply(params, xs, None, rngs=RNGS, mutable=["state"])
        added = re.findall(r"`('\w+': \w+)`", str(error.value))
        assert added == ["'state': 0", "'dropout': True"]
    axes, rngs = (
        {**d, **eval(f"{{{a}}}")} for d, a in zip((axes, rngs), added, strict=True)
    )
    model, mutable = model(axes, rngs), mutable_in(error.value)
    (y, _), updated = apply(model, params, xs, None, mutable=mutable)
    mask = updated["state"]["drop"]["mask"]
    np.testing.assert_array_equal(y != 0, mask)
    assert not (mask[0] == mask[1]).all()


@cases("training", [True, False], short=[True])
def test_a_recurrent_network_in_both_branches_of_nn_cond(training):
    held = REFLEXES["a stream that is not split"] | REFLEXES["a state that is broadcast"]

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            def branch(gain):
                return lambda rnn, x_seq: gain * rnn(x_seq)

            rnn = nn.RNN(RecurrentCell(dropout()), time_major=True, **held)
            return nn.cond(jnp.bool_(training), branch(1.0), branch(2.0), rnn, x_seq)

    variables = {"params": init(Model(), X_SEQ)["params"]}
    _, updated = apply(Model(), variables, X_SEQ, mutable=["state"])
    assert [leaf.shape for leaf in jax.tree.leaves(updated)] == [(2, WIDTH), (2, 1)]


def test_while_loop_reads_a_mask_that_was_drawn_before_it():
    class Model(nn.Module):
        before: bool

        @nn.compact
        def __call__(self, x):
            def more(_, carry):
                return carry[0] < 3

            def step(drop, carry):
                return carry[0] + 1, drop(carry[1])

            drop = dropout(name="drop")
            if not self.before:
                state = {"carry_variables": "state", "split_rngs": {"dropout": False}}
                return nn.while_loop(more, step, drop, (0, x), **state)
            drop(x)
            return nn.while_loop(more, step, drop, (0, x), **options)

    with pytest.raises(RuntimeError, match=r"call the layer once before it") as error:
        Model(False).apply({}, X, rngs=RNGS, mutable=["state"])
    options = arguments_in(error.value, "broadcast_variables")
    (_, y), updated = apply(Model(True), {}, X, mutable=mutable_in(error.value))
    np.testing.assert_array_equal(y, 8.0 * updated["state"]["drop"]["mask"])


def test_weight_norm_goes_around_the_weights_alone():
    class Model(nn.Module):
        outside: bool

        @nn.compact
        def __call__(self, x):
            if self.outside:
                return dropout()(nn.WeightNorm(nn.Dense(WIDTH))(x))
            return nn.WeightNorm(nn.Sequential([nn.Dense(WIDTH), dropout()]))(x)

    within = Model(False)
    variables = init(within, X)
    for run in (
        lambda: within.apply(variables, X, rngs=RNGS, mutable=["state"]),
        lambda: sd.init_state(within, variables, X, rngs=RNGS),
    ):
        with pytest.raises(RuntimeError, match=r"`nn\.WeightNorm\(nn\.Dense\(.*outside"):
            run()
    y, updated = apply(Model(True), init(Model(True), X), X, mutable=["state"])
    np.testing.assert_array_equal(y != 0, updated["state"]["Dropout_0"]["mask"])
    normed = nn.WeightNorm(connections())
    variables = init(normed, X)
    with pytest.raises(RuntimeError, match=r"whole sequences, `step_mode='m'`"):
        normed.apply(variables, X, rngs=RNGS, mutable=["state"])
    y_seq, _ = apply(nn.WeightNorm(connections(step_mode="m")), variables, X_SEQ)
    np.testing.assert_array_equal(y_seq[0], y_seq[1])


def test_fresh_connections_name_the_stream_that_is_split():
    cell = Cell(sd.DropConnectLinear(WIDTH, WIDTH, deterministic=False), dense=False)
    way = WAYS["nn.RNN"]
    variables, args = way.arguments(cell)
    with pytest.raises(flax.errors.InvalidRngError, match=r"does not hand it on") as error:
        way.model(cell, {}).apply(variables, *args, rngs=RNGS)
    options = arguments_in(error.value, "split_rngs")
    y_seq, _ = apply(way.model(cell, options), variables, *args)
    assert not (y_seq[0] == y_seq[1]).all()


@pytest.mark.parametrize(
    ("options", "neurons"),
    [
        ({"variable_broadcast": ("params", "state"), "dropout": True}, False),
        ({"variable_broadcast": ("params", "state"), "dropout": False}, True),
        ({"variable_broadcast": "params", "variable_carry": "state"}, False),
        ({"variable_broadcast": "params", "variable_carry": "state"}, True),
    ],
)
def test_what_is_said_behind_remat_is_among_the_questions(options, neurons):
    """There it is Flax and JAX who raise, in their words."""
    keys = {"params": False, "dropout": options.get("dropout", False)}
    options = {name: options[name] for name in options if name != "dropout"}
    given = {"drop": dropout(), "neurons": neurons}
    variables = {"params": init(Cell(**given), (), X)["params"]}
    scanned = nn.scan(nn.remat(Cell), split_rngs=keys, **options)(**given)
    with pytest.raises((TypeError, ValueError)) as error:
        scanned.apply(variables, (), X_SEQ, rngs=RNGS, mutable=["state"])
    said = str(error.value).split(",")[0].removesuffix(".")
    page = Path(__file__).parents[1] / "docs" / "questions.md"
    assert said in " ".join(page.read_text().split())
    # What the page says to type for neurons.
    if neurons:

        class Step(nn.Module):
            @nn.compact
            def __call__(self, x):
                return LIF()(dropout()(nn.Dense(WIDTH)(x)))

        model = sd.MultiStep(nn.remat(Step)())
        _, updated = apply(model, init(model, X_SEQ), X_SEQ, mutable=["state"])
        assert [m.shape for m in jax.tree.leaves(updated) if m.dtype == bool] == [X.shape]
