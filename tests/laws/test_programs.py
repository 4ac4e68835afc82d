"""What the traced and the compiled programs do: draws, residuals, temporary memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import snn_dropout as sd
from tests.depth import cases
from tests.jaxprs import equations
from tests.laws.catalogue import DROPOUTS, ROWS, every, every_dropout
from tests.laws.test_laws import run

KEY = jax.random.key(3)
STEPS = 7  # the length of no other axis

NAMES = (
    *("Dropout p=0.3", "Dropout2d NCHW", "DropPath", "DropConnect invariant"),
    "DropConnect of Dense",
)
SOME = [row for row in ROWS if row.name in NAMES]
some_rows = every(
    SOME, short=("Dropout p=0.3", "DropConnect invariant", "DropConnect of Dense")
)
every_way = cases(
    "way", ["m", "simulate", "MultiStep", "lax.scan"], short=["m", "simulate"]
)


def program(row, way, variables, deterministic=False):
    """A function of all steps and a key, which returns outputs and masks."""
    single, multi = row.layer("s"), row.layer("m")

    def function(x_seq, key):
        keys = {"rngs": {"dropout": key}, "deterministic": deterministic}
        if way == "m":
            return run(multi, x_seq, variables, **keys)
        if way == "simulate":
            return sd.simulate(single, variables, x_seq, **keys)
        if way == "MultiStep":
            return run(sd.MultiStep(single), x_seq, variables, **keys)
        state = sd.init_state(single, variables, x_seq[0], **keys)

        def step(state, x):
            y, state = run(single, x, {**variables, "state": state}, **keys)
            return state, y

        state, y_seq = jax.lax.scan(step, state, x_seq)
        return y_seq, state

    return function


def draws(jaxpr):
    """Counts what is drawn from a key of the user's kind, whatever branch is taken."""
    number = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "random_bits":
            number += equation.invars[0].aval.dtype == KEY.dtype
        inner = [draws(one) for one in jaxprs_in_params(equation.params)]
        # One branch a platform.
        number += max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
    return number


def scans_over_time(jaxpr):
    return [
        equation.params["jaxpr"].jaxpr
        for equation in equations(jaxpr)
        if equation.primitive.name == "scan" and equation.params["length"] == STEPS
    ]


@some_rows
@every_way
def test_each_mask_is_drawn_once_and_never_inside_the_scan(row, way):
    x_seq = row.x_seq(steps=STEPS)
    variables = row.variables(x_seq[0])
    jaxpr = jax.make_jaxpr(program(row, way, variables))(x_seq, KEY).jaxpr
    assert draws(jaxpr) == len(row.leaves)
    scans = scans_over_time(jaxpr)
    assert scans or way == "m"
    assert [draws(scan) for scan in scans] == [0] * len(scans)


@some_rows
@every_way
def test_nothing_is_drawn_where_the_state_is_given(row, way):
    x_seq = row.x_seq(steps=STEPS)
    variables = row.variables(x_seq[0])
    _, state = program(row, "m", variables)(x_seq, KEY)
    function = program(row, way, {**variables, "state": state})
    assert draws(jax.make_jaxpr(function)(x_seq, KEY).jaxpr) == 0


@every_dropout
@cases("way", ["m", "simulate"], short=["simulate"])
def test_nothing_is_drawn_at_inference(row, way):
    x_seq = row.x_seq(steps=STEPS)
    function = program(row, way, {}, deterministic=True)
    assert draws(jax.make_jaxpr(function)(x_seq, KEY).jaxpr) == 0


@some_rows
@every_way
def test_the_backward_pass_keeps_no_mask_for_each_step(row, way):
    x_seq = row.x_seq(steps=STEPS)
    function = program(row, way, row.variables(x_seq[0]))
    _, pullback = jax.vjp(lambda x_seq: function(x_seq, KEY)[0], x_seq)
    residuals = jax.tree.leaves(pullback)
    dtype = jnp.bool_ if row in DROPOUTS else jnp.uint32
    masks = [leaf.shape for leaf in residuals if leaf.dtype == dtype]
    # That of a wrapped module reads its kernel, which is masked once.
    assert bool(masks) != row.wrapped, "the backward pass reads the mask"
    assert not [shape for shape in masks if shape[0] == STEPS]
    kernel = (6, 40)
    assert not [leaf.shape for leaf in residuals if leaf.shape[1:] == kernel]


@every_dropout
def test_dropout_needs_no_temporary_memory_but_its_mask(row):
    x_seq = row.x_seq((64, *row.shape[1:-1], 512), steps=STEPS)
    layer = row.layer("m")

    def both(x_seq, dy_seq, key):
        rngs = {"dropout": key}
        y_seq, pullback = jax.vjp(lambda x_seq: run(layer, x_seq, rngs=rngs)[0], x_seq)
        return y_seq, pullback(dy_seq)

    program = jax.jit(both).lower(x_seq, x_seq, KEY).compile()
    # Two sets of random words and the mask; small change for keys and loops.
    elements = 64 if row.name == "DropPath" else 64 * 512 * np.size(row.p)
    assert program.memory_analysis().temp_size_in_bytes <= 4 * elements + 4096


@pytest.mark.parametrize("invariant", [False, True])
def test_the_gradient_of_a_scan_unpacks_connections_where_they_are_used(invariant):
    """JAX moves what no step changes out of a loop that is differentiated.

    Zeros and bit positions that are read from memory are many times as slow.
    """
    layer = sd.DropConnectLinear(64, 40, invariant=invariant, deterministic=False)
    variables = layer.init(KEY, jnp.ones((3, 64)))

    def loss(params, x_seq):
        variables = {"params": params}
        y_seq, _ = sd.simulate(layer, variables, x_seq, rngs={"dropout": KEY})
        return (y_seq**2).sum()

    x_seq = jnp.ones((STEPS, 3, 64))
    gradient = jax.make_jaxpr(jax.grad(loss))(variables["params"], x_seq).jaxpr
    walks = [
        equation
        for equation in equations(gradient)
        if equation.primitive.name == "scan" and equation.params["length"] == 3
    ]
    assert len(walks) >= 3, "the forward pass, and the two of the backward pass"
    for walk in walks:
        body = walk.params["jaxpr"]
        whole = unsliced(walk.invars, body.in_avals)
        carried = unsliced(walk.outvars, body.out_avals)
        read = whole[: len(whole) - len(carried)]
        assert read in ([], [(64, 40)]), "nothing but the kernel"


def unsliced(variables, avals):
    """The shapes of what a loop hands to each of its steps whole, or has from the last."""
    pairs = zip(variables, avals, strict=True)
    return [aval.shape for variable, aval in pairs if variable.aval.shape == aval.shape]
