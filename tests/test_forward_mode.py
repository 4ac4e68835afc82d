"""Forward mode through `DropConnectLinear` in training, and both modes together."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.neurons import LIF

KEY = jax.random.key(0)
RNGS = {"dropout": KEY}
STEPS = 3

FIELDS = {
    "fresh": {},
    "fresh, no bias": {"use_bias": False},
    "held": {"invariant": True},
    "held, p = 0.3": {"invariant": True, "p": 0.3, "activation": jnp.tanh},
    "spiking": {"invariant": True, "activation": LIF()},
}


def whole(layer, variables, x_seq):
    y_seq, _ = layer.clone(step_mode="m").apply(
        variables, x_seq, rngs=RNGS, mutable=["state"]
    )
    return y_seq


def simulated(layer, variables, x_seq):
    return sd.simulate(layer, variables, x_seq, rngs=RNGS)[0]


def multi_step(layer, variables, x_seq):
    return sd.MultiStep(layer).apply(variables, x_seq, rngs=RNGS)


def vmapped(layer, variables, x_seq):
    def under_another_key(number):
        rngs = {"dropout": jax.random.fold_in(KEY, number)}
        return sd.simulate(layer, variables, x_seq, rngs=rngs)[0]

    return jax.vmap(under_another_key)(jnp.arange(2))


def scanned(layer, variables, x_seq):
    state = sd.init_state(layer, variables, x_seq[0], rngs=RNGS)

    def step(state, inputs):
        number, x = inputs
        y, updated = layer.apply(
            {**variables, "state": state},
            x,
            rngs={"dropout": jax.random.fold_in(KEY, number)},
            mutable=["state"],
        )
        return updated["state"], y

    return jax.lax.scan(step, state, (jnp.arange(STEPS), x_seq))[1]


WAYS = [whole, simulated, multi_step, vmapped, scanned]


@cases(
    "fields, way",
    [(fields, way) for fields in FIELDS for way in WAYS],
    short=[
        ("held, p = 0.3", vmapped),
    ],
)
def test_forward_mode_is_the_transpose_of_reverse_mode(fields, way):
    layer = sd.DropConnectLinear(5, 4, deterministic=False, **FIELDS[fields])
    keys = iter(jax.random.split(KEY, 9))
    x_seq = jax.random.normal(next(keys), (STEPS, 2, 5))
    params = layer.init(KEY, x_seq[0])["params"]

    def outputs(params, x_seq):
        return way(layer, {"params": params}, x_seq)

    def normals(tree):
        return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), tree)

    @jax.jit
    def both(primals, tangents, dy_seq):
        y_seq, tangent = jax.jvp(outputs, primals, tangents)
        again, pullback = jax.vjp(outputs, *primals)
        return y_seq, again, (tangent * dy_seq).sum(), pullback(dy_seq)

    primals = params, x_seq
    tangents = normals(primals)
    dy_seq = normals(jax.eval_shape(outputs, *primals))
    y_seq, again, forward, gradients = both(primals, tangents, dy_seq)
    np.testing.assert_array_equal(y_seq, again)
    products = jax.tree.map(lambda a, b: (a * b).sum(), gradients, tangents)
    assert forward != 0
    np.testing.assert_allclose(forward, sum(jax.tree.leaves(products)), rtol=1e-3)


@cases("invariant", [False, True], short=[True])
@pytest.mark.exhaustive
def test_hessians_of_any_order_of_modes_agree(invariant):
    layer = sd.DropConnectLinear(
        3, 2, invariant=invariant, activation=jnp.tanh, deterministic=False
    )
    x_seq = jax.random.normal(KEY, (2, 2, 3))
    params = layer.init(KEY, x_seq[0])["params"]

    def loss(params):
        return (whole(layer, {"params": params}, x_seq) ** 2).sum()

    @jax.jit
    def hessians(params):
        return [
            outer(inner(loss))(params)
            for outer, inner in (
                (jax.jacfwd, jax.jacrev),
                (jax.jacrev, jax.jacfwd),
                (jax.jacrev, jax.jacrev),
            )
        ]

    first, *others = hessians(params)
    for other in others:
        chex.assert_trees_all_close(other, first, rtol=1e-4, atol=1e-6)
    assert jnp.abs(first["kernel"]["kernel"]).max() > 0
