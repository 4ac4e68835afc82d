"""Trains the network of ``train_digits.py`` in Flax NNX: the same numbers, the same masks.

All but the network is that of its neighbour. Names and first parameters are those of
linen, so one seed gives the same masks, bit for bit, and the same rows of the table for
*no dropout* and for *one mask per simulation*, but for what a compiler rounds in another
way. (What is drawn from a stream at every step is drawn from other keys.) From the root
of the repository::

  python -m pip install -e '.[examples]'
  python examples/train_digits_nnx.py --output output/train_digits_nnx.png
"""

from collections.abc import Callable, Mapping
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    import train_digits
    from flax import nnx
    from train_digits import HELD, HIDDEN_UNITS, PER_STEP, spike

    import snn_dropout.nnx as sdn
except ImportError as error:
    raise SystemExit(
        f"This example could not start: {error}. Install what it needs with\n"
        f"  python -m pip install -e '.[examples]'"
    ) from error

KINDS: dict[str, Callable[..., nnx.Module] | None] = {
    "no dropout": None,
    PER_STEP: nnx.Dropout,
    HELD: sdn.Dropout,
}


class LIF(nnx.Module):
    """Leaky integrate-and-fire neurons with threshold 1, reset to 0 by a spike."""

    def __init__(self, decay: float = 0.5) -> None:
        self.decay = decay
        self.v = nnx.Variable(jnp.zeros(()))

    def __call__(self, current: jax.Array) -> jax.Array:
        """Runs one time step of ``[N, units]``."""
        potential = self.decay * self.v.get_value() + current
        spikes = spike(potential - 1)
        self.v.set_value(potential * (1 - spikes))
        return spikes


class Network(nnx.Module):
    """Two hidden layers of neurons, a dropout behind each, and a linear read-out."""

    def __init__(self, dropout: Callable[..., nnx.Module] | None, p: float) -> None:
        rngs = nnx.Rngs(0)
        widths = {"hidden_1": 64, "hidden_2": HIDDEN_UNITS}
        for layer, inputs in widths.items():
            setattr(self, f"{layer}_dense", nnx.Linear(inputs, HIDDEN_UNITS, rngs=rngs))
            setattr(self, f"{layer}_lif", LIF())
            if dropout is not None:
                setattr(self, f"{layer}_dropout", dropout(p, rngs=rngs))
        self.readout = nnx.Linear(HIDDEN_UNITS, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Runs one time step, from images ``[N, 64]`` to scores ``[N, 10]``, and spikes."""
        spikes = {}
        for layer in ("hidden_1", "hidden_2"):
            x = getattr(self, f"{layer}_lif")(getattr(self, f"{layer}_dense")(x))
            spikes[f"{layer}_fired"] = x
            dropout = getattr(self, f"{layer}_dropout", None)
            x = x if dropout is None else dropout(x)
            spikes[f"{layer}_passed"] = x
        return self.readout(x), spikes


@train_digits.init_params.register
def init_params(model: Network, key: jax.Array) -> Any:
    """Draws the first parameters: those of linen, of the same names."""
    return train_digits.init_params(train_digits.Network(None, 0.0), key)


@train_digits.run.register
def run(
    model: Network,
    params: Any,
    images: jax.Array,
    steps: int,
    *,
    train: bool,
    rngs: Mapping[str, jax.Array] | None = None,
    mutable: Any = (),
) -> tuple[jax.Array, Any]:
    """Simulates ``steps`` time steps of a constant input; averages the scores."""
    graphdef, state = nnx.split(model)
    net = nnx.merge(graphdef, state, copy=True)  # its neurons are at rest
    own = nnx.state(net, nnx.Param)
    nnx.replace_by_pure_dict(own, params)
    nnx.update(net, own)
    key = None
    if train and rngs is not None:
        net.train()
        key = rngs["dropout"]
        nnx.reseed(net, default=key)  # for dropout that is new at each step
    else:
        net.eval()
    x_seq = jnp.broadcast_to(images, (steps, *images.shape))
    y_seq, spikes = sdn.simulate(net, x_seq, key=key)
    seen = {name: (spikes_seq,) for name, spikes_seq in spikes.items()}
    return y_seq.mean(axis=0), {"intermediates": seen if mutable else {}}


if __name__ == "__main__":
    train_digits.main(network=Network, kinds=KINDS)
