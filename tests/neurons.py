"""Neurons and small networks for the tests: other people's modules, as users write them.

Their constants are powers of two, so that a compiler may fuse a product with a sum
without changing a bit: a loop, a scan and a jitted scan then agree exactly.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import snn_dropout as sd


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + jnp.abs(v)) ** 2


class LIF(nn.Module):
    """Leaky integrate and fire with one leaf of state, in a collection of any name."""

    collection: str = "state"
    tau: float = 2.0

    @nn.compact
    def __call__(self, x):
        v = self.variable(self.collection, "v", jnp.zeros_like, x)
        potential = v.value + (x - v.value) / self.tau
        fired = spike(potential - 1)
        if not self.is_initializing():
            v.value = potential * (1 - fired)
        return fired


class AdaptiveLIF(nn.Module):
    """Two leaves of state, one of them not zero at first."""

    collection: str = "carry"

    @nn.compact
    def __call__(self, x):
        v = self.variable(self.collection, "v", jnp.zeros_like, x)
        threshold = self.variable(self.collection, "threshold", jnp.ones_like, x)
        potential = v.value * 0.5 + x
        fired = spike(potential - threshold.value)
        if not self.is_initializing():
            v.value = potential * (1 - fired)
            threshold.value = threshold.value + 0.1 * fired
        return fired


class LateLIF(nn.Module):
    """Starts at rest where there is no state, and makes none in `init`.

    So do the neurons of a library whose state is one leaf, a pytree of any kind.
    """

    @nn.compact
    def __call__(self, x):
        carried = self.is_mutable_collection("state") and not self.is_initializing()
        carry = self.get_variable("state", "carry") if carried else None
        v, last = (jnp.zeros_like(x), jnp.zeros_like(x)) if carry is None else carry
        potential = (v + x - last) / 2
        fired = spike(potential - 1)
        if carried:
            self.put_variable("state", "carry", (potential * (1 - fired), fired))
        if self.is_mutable_collection("rates") and not self.is_initializing():
            self.sow("rates", "rate", fired.mean())
        return fired


class LateVariable(nn.Module):
    """The same with Flax's own variables, of which a part is made by `init`."""

    @nn.compact
    def __call__(self, x):
        if self.is_initializing():
            return spike(x - 1)
        v = self.variable("state", "v", jnp.zeros_like, x)
        potential = (v.value + x) / 2
        fired = spike(potential - 1)
        v.value = potential * (1 - fired)
        return fired


class Net(nn.Module):
    """Two layers of neurons, two dropouts; `train` and a gain pass through the call."""

    hidden: int = 16
    out: int = 4
    p: float = 0.5

    @nn.compact
    def __call__(self, x, gain=4.0, *, train=False):
        x = LIF()(gain * nn.Dense(self.hidden)(x))
        x = sd.Dropout(self.p)(x, deterministic=not train)
        x = LIF()(gain * nn.Dense(self.out)(x))
        return sd.Dropout(self.p, name="last")(x, deterministic=not train)


def loop(
    model,
    variables,
    x_seq,
    *args,
    rngs=None,
    fold=False,
    mutable=("state",),
    jit=False,
    **kwargs,
):
    """The simulation written by hand: one `apply` a step, the state passed on."""

    def step(variables, x, rngs):
        return model.apply(variables, x, *args, rngs=rngs, mutable=list(mutable), **kwargs)

    step = jax.jit(step) if jit else step
    variables, outputs = dict(variables), []
    if fold:
        state = sd.init_state(model, variables, x_seq[0], *args, rngs=rngs, **kwargs)
        variables["state"] = state
    for t, x in enumerate(x_seq):
        keys = rngs
        if fold and rngs:
            keys = {name: jax.random.fold_in(key, t) for name, key in rngs.items()}
        y, updated = step(variables, x, keys)
        variables |= updated
        outputs.append(y)
    return jnp.stack(outputs), {
        name: variables[name] for name in mutable if name in variables
    }
