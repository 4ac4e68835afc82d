"""The two networks, and the conditions, which differ in one thing."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from train_digits import LIF

import snn_dropout as sd
from study.fashion.images import CLASSES
from study.fashion.names import BOTH, OUTPUTS, RECURRENT
from study.names import CONNECT_FRESH, CONNECT_HELD, HELD, NONE, PER_STEP

DROPOUTS: dict[str, Callable[..., nn.Module]] = {PER_STEP: nn.Dropout, HELD: sd.Dropout}
OF_ALL_STEPS = {PER_STEP: nn.Dropout, HELD: partial(sd.Dropout, step_mode="m")}
RECURRENT_DECAY = 0.9  # of membranes that see one row of an image after the other
# Rows of 28 pixels, and rare spikes, would hardly make neurons fire: four times as large.
RECURRENT_INIT = nn.initializers.variance_scaling(16.0, "fan_in", "truncated_normal")
RECURRENT_PLACES, OUTPUT_PLACES = (RECURRENT, BOTH), (OUTPUTS, BOTH)


class Network(nn.Module):
    """Two hidden layers of LIF neurons, and a linear read-out.

    An image is shown in rows: all 784 pixels as one row for the whole simulation, or 28
    rows of 28 pixels one after the other.

    Attributes:
      condition: one of ``study.names.CONDITIONS``. DropConnect loses connections that
        come from hidden neurons.
      p: the probability of being dropped.
      place: which spikes are dropped: ``OUTPUTS`` of a layer, those that come back to it
        as ``RECURRENT`` ones, or ``BOTH``.
      steps: time steps of a simulation.
      units: neurons of a hidden layer.
      recurrent: whether the neurons of a layer are connected with each other.
    """

    condition: str
    p: float
    place: str
    steps: int
    units: int
    recurrent: bool

    @nn.compact
    def __call__(self, rows: jax.Array, *, train: bool) -> jax.Array:
        """Runs all time steps, from rows ``[R, N, I]`` to scores ``[T, N, 10]``."""
        # A row gives the same current at each of its steps, which is computed once.
        current = self._linear("hidden_1", self.units, rows, train)
        x = jnp.repeat(current, self.steps // len(rows), axis=0)
        x = self._fire(1, x, train)
        x = self._fire(2, self._linear("hidden_2", self.units, x, train), train)
        return self._linear("readout", CLASSES, x, train)

    def _fire(self, number: int, current: jax.Array, train: bool) -> jax.Array:
        name = f"neurons_{number}"
        if self.recurrent:
            dropped = self.condition if self.place in RECURRENT_PLACES else ""
            neurons = RecurrentLIF(dropped, self.p, parent=None)
            x = sd.MultiStep(neurons, name=name)(current, train=train)
        else:
            x = sd.MultiStep(LIF(parent=None), name=name)(current)
        if self.condition in DROPOUTS and self.place in OUTPUT_PLACES:
            dropout = OF_ALL_STEPS[self.condition](self.p, name=f"dropout_{number}")
            x = dropout(x, deterministic=not train)
        return x

    def _linear(self, name: str, features: int, x: jax.Array, train: bool) -> jax.Array:
        kernel_init = nn.linear.default_kernel_init
        if self.recurrent and name != "readout":
            kernel_init = RECURRENT_INIT
        connect = self.condition in (CONNECT_FRESH, CONNECT_HELD) and name != "hidden_1"
        if not connect:
            return nn.Dense(features, kernel_init=kernel_init, name=name)(x)
        layer = sd.DropConnectLinear(
            x.shape[-1],
            features,
            p=self.p,
            invariant=self.condition == CONNECT_HELD,
            activation=None,  # so the expectation is that of a linear layer
            inference="analytic",
            step_mode="m",
            # The initial values of nn.Dense: conditions start alike.
            kernel_init=kernel_init,
            bias_init=nn.initializers.zeros_init(),
            name=name,
        )
        return layer(x, deterministic=not train)


def without_dropout(network: Network) -> Network:
    """Makes the network that all conditions of its kind start from."""
    return network.copy(condition=NONE, p=0.0, place=OUTPUTS)


class RecurrentLIF(nn.Module):
    """LIF neurons that get each other's spikes of the step before.

    Attributes:
      condition: what drops those spikes, one of ``DROPOUTS``, or nothing.
      p: the probability of being dropped.
    """

    condition: str
    p: float

    @nn.compact
    def __call__(self, current: jax.Array, *, train: bool) -> jax.Array:
        """Runs one time step of ``[N, units]``."""
        fired = self.variable("state", "fired", jnp.zeros_like, current)
        x = fired.value
        if self.condition in DROPOUTS:
            dropout = DROPOUTS[self.condition](self.p, name="dropout")
            x = dropout(x, deterministic=not train)
        x = nn.Dense(current.shape[-1], use_bias=False, name="recurrent")(x)
        spikes = LIF(RECURRENT_DECAY, name="lif")(current + x)
        if not self.is_initializing():
            fired.value = spikes
        return spikes
