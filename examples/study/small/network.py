"""The network, and the conditions, which differ in one thing."""

from collections.abc import Callable

import flax.linen as nn
import jax
from train_digits import LIF

import snn_dropout as sd
from study.names import CONNECT_FRESH, CONNECT_HELD, HELD, PER_STEP

DROPOUTS: dict[str, Callable[..., nn.Module]] = {PER_STEP: nn.Dropout, HELD: sd.Dropout}


class Network(nn.Module):
    """Hidden layers of LIF neurons, and a linear read-out.

    Attributes:
      condition: one of ``study.names.CONDITIONS``.
      p: the probability of being dropped: spikes of hidden neurons, or connections to
        them.
      layers: hidden layers.
      units: neurons of a hidden layer.
      classes: scores of the read-out.
      rectified: whether the neurons get ``relu`` of their current, as
        ``DropConnectLinear`` has it by default.
      inference: of DropConnect; ``'mean'`` is a linear layer with its weights times
        ``1 - p``.
      samples_num: of DropConnect's sampled inference.
    """

    condition: str
    p: float
    layers: int
    units: int
    classes: int
    rectified: bool = False
    inference: str = "sample"
    samples_num: int = 128

    @property
    def keeps_samples(self) -> bool:
        """Whether neurons keep a state for each sample of inference."""
        connect = self.condition in (CONNECT_FRESH, CONNECT_HELD)
        return connect and self.inference == "sample" and not self.rectified

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Runs one time step, from ``[N, I]`` to scores ``[N, classes]``."""
        for layer in range(self.layers):
            name = f"hidden_{layer + 1}"
            if self.condition in (CONNECT_FRESH, CONNECT_HELD):
                x = self._connect(name, x, train)
            else:
                x = self._fire(name, self._linear(name)(x))
            if self.condition in DROPOUTS:
                dropout = DROPOUTS[self.condition](self.p, name=f"{name}_dropout")
                x = dropout(x, deterministic=not train)
        return nn.Dense(self.classes, name="readout")(x)

    def _linear(self, name: str) -> nn.Dense:
        return nn.Dense(self.units, name=name)

    def _fire(self, name: str, current: jax.Array) -> jax.Array:
        current = nn.relu(current) if self.rectified else current
        return LIF(name=f"{name}_lif")(current)

    def _connect(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        if self.inference == "mean" and not train:
            return self._fire(name, (1 - self.p) * self._linear(name)(x))
        layer = sd.DropConnectLinear(
            x.shape[-1],
            self.units,
            p=self.p,
            invariant=self.condition == CONNECT_HELD,
            activation=nn.relu if self.rectified else LIF(parent=None),
            # The initial values of nn.Dense: conditions start alike.
            kernel_init=nn.linear.default_kernel_init,
            bias_init=nn.initializers.zeros_init(),
            inference="sample" if self.inference == "mean" else self.inference,
            samples_num=self.samples_num,
            name=name,
        )
        x = layer(x, deterministic=not train)
        return LIF(name=f"{name}_lif")(x) if self.rectified else x
