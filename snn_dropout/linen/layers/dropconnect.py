"""A linear layer that loses connections, per example and held if asked to."""

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer
from jax.sharding import NamedSharding

from snn_dropout._checks import connections as _connection_checks
from snn_dropout._checks import layers as _checks
from snn_dropout._checks import masks as _mask_checks
from snn_dropout.functional._averages import standard_deviation
from snn_dropout.functional._masked import wide_dtype
from snn_dropout.functional._sequences import first_step
from snn_dropout.functional._sharding import batch_sharding, draw_sharded, vary_alike
from snn_dropout.functional.bits import draw_bits, packed_width
from snn_dropout.functional.connections import masked_matmul
from snn_dropout.functional.expectation import (
    check_expectation,
    expected_activation,
    moments,
    sampled_activation,
)
from snn_dropout.functional.masks import draw_mask
from snn_dropout.linen._held import fresh_key, held, note_sequence, path_of
from snn_dropout.linen._scopes import check_whole
from snn_dropout.linen._simulation import (
    first_samples,
    lift,
    over_time,
    sampled_over_time,
)
from snn_dropout.linen.state import State

Activation = Callable[[jax.Array], jax.Array] | nn.Module

# The leaf that holds the neurons' state in sampled inference, `[N, S, ...]`.
SAMPLES = "samples"


class DropConnectLinear(nn.Module):
    """Loses connections of a linear layer, a mask per example, the bias included.

    Training, for example ``n`` (no scale ``1 / (1 - p)``)::

      y[n, o] = activation(sum_i M[n, i, o] K[i, o] x[n, i] + Mb[n, o] b[o])
      M, Mb ~ Bernoulli(1 - p)

    Inference, the average of the activation over a Gaussian of the same moments::

      y = E[activation(z)],  z ~ N(mean, variance)
      mean = (1 - p) (x K + b),  variance = p (1 - p) (x^2 K^2 + b^2)

    With ``invariant=False`` the masks are new at every step and nothing is stored;
    with ``invariant=True`` they are drawn once per simulation and held in the state:
    ``kernel_mask``, one bit a connection, and ``bias_mask``. Masked weights are never
    stored nor materialised for the batch. ``p=0`` is ``nn.Dense``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> layer = sd.DropConnectLinear(4, 3, p=0.5, invariant=True, step_mode='m')
      >>> x_seq = jnp.ones((5, 2, 4))                                  # [T, N, I]
      >>> variables = layer.init(jax.random.key(0), x_seq, deterministic=False)
      >>> y_seq, updated = layer.apply(
      ...   variables, x_seq, deterministic=False, mutable=['state'],
      ...   rngs={'dropout': jax.random.key(1)})
      >>> y_seq.shape, jax.tree.map(jnp.shape, updated['state'])
      ((5, 2, 3), {'bias_mask': (2, 3), 'kernel_mask': (2, 4, 1)})

    Attributes:
      in_features: ``I``.
      out_features: ``O``.
      use_bias: whether there is a bias, whose elements are lost like connections.
      p: the probability that a connection is dropped, a static number in [0, 1].
      samples_num: Gaussian samples of one output in sampled inference.
      invariant: whether the masks are held over the simulation.
      activation: None, a callable on arrays, or a linen module (a spiking neuron, say),
        which is stepped through time and keeps its state in ``"state"``.
      step_mode: ``'s'`` for one step ``[N, I]``, ``'m'`` for all ``[T, N, I]``.
      deterministic: True for inference, False for training; field or argument.
      kernel_init: of the kernel ``[I, O]``; by default U(-1/sqrt(I), 1/sqrt(I)).
      bias_init: of the bias ``[O]``; None is the same uniform distribution.
      dtype: of the computation; by default that of input and parameters together.
      param_dtype: of the parameters.
      inference: ``'sample'`` averages ``samples_num`` draws, whose standard normals
        the examples of a batch share; ``'analytic'`` is the exact expectation, of an
        elementwise activation.
      rng_collection: the RNG stream of masks and samples.
      state_collection: the collection of the masks.

    Source: Wan et al. 2013, "Regularization of neural networks using DropConnect";
    SpikingJelly's ``layer.DropConnectLinear``.
    """

    in_features: int
    out_features: int
    use_bias: bool = True
    p: float = 0.5
    samples_num: int = 1024
    invariant: bool = False
    # No attribute of the class, which `nnx.bridge.ToNNX` would take for a method.
    activation: Activation | None = field(default_factory=lambda: nn.relu)
    step_mode: str = "s"
    deterministic: bool | None = None
    kernel_init: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    bias_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    inference: str = "sample"
    rng_collection: str = "dropout"
    state_collection: str = "state"

    def __post_init__(self) -> None:
        """Checks the fields."""
        _mask_checks.check_probability(self.p)
        _checks.check_step_mode(self.step_mode)
        _checks.check_deterministic(self.deterministic)
        for name in ("in_features", "out_features", "samples_num"):
            _connection_checks.check_count(name, getattr(self, name))
        stateful = isinstance(self.activation, nn.Module)
        _connection_checks.check_activation(self.activation)
        _connection_checks.check_inference(self.inference, stateful)
        super().__post_init__()

    def setup(self) -> None:
        """Makes the parameters, named and laid out as those of ``nn.Dense``."""
        shape = (self.in_features, self.out_features)
        self.kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if self.use_bias:
            init = self.bias_init or _uniform(self.in_features**-0.5)
            self.bias = self.param("bias", init, shape[1:], self.param_dtype)

    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """Applies the layer.

        Args:
          x: one step ``[N, I]`` where ``step_mode`` is ``'s'``, all steps
            ``[T, N, I]`` where it is ``'m'``.
          deterministic: True for inference, False for training; given here or as the
            field, not both.

        Returns:
          ``[N, O]`` or ``[T, N, O]``.

        Raises:
          TypeError: the input is complex.
          ValueError: the rank or ``in_features`` is wrong, a stored mask does not fit,
            the activation has no exact expectation and ``inference`` asks for it, or
            ``deterministic`` is given twice or not at all.
          RuntimeError: the layer is called alone, or a held mask can not be stored,
            see ``snn_dropout.linen.state``.
          flax.errors.InvalidRngError: the stream ``rng_collection`` is missing.
        """
        if self.step_mode == "m":
            return self.multi_step_forward(x, deterministic)
        return self.single_step_forward(x, deterministic)

    def single_step_forward(
        self, x: jax.Array, deterministic: bool | None = None
    ) -> jax.Array:
        """Runs one step ``[N, I]``, whatever ``step_mode`` is; see ``__call__``."""
        self._check_input(x, "s")
        return self._forward(x[None], deterministic, whole=False)[0]

    def multi_step_forward(
        self, x_seq: jax.Array, deterministic: bool | None = None
    ) -> jax.Array:
        """Runs all steps ``[T, N, I]``, whatever ``step_mode`` is; see ``__call__``."""
        _checks.check_bound(type(self).__name__, self.scope)
        check_whole(self)
        self._check_input(x_seq, "m")
        note_sequence(self, x_seq)
        return self._forward(x_seq, deterministic, whole=True)

    def drop(self, batch_size: int) -> tuple[jax.Array, jax.Array | None]:
        """Draws the masks of a batch, or finds those that are held.

        Args:
          batch_size: ``N``.

        Returns:
          The packed ``kernel_mask`` and the ``bias_mask`` (None without a bias).
        """
        _connection_checks.check_count("batch_size", batch_size)
        return self._masks(batch_size, whole=False)

    def _forward(
        self, x_seq: jax.Array, deterministic: bool | None, *, whole: bool
    ) -> jax.Array:
        _checks.check_bound(type(self).__name__, self.scope)
        deterministic = self._merge_deterministic(deterministic)
        bias = self.bias if self.use_bias else None
        x_seq, kernel, bias = promote_dtype(x_seq, self.kernel, bias, dtype=self.dtype)
        if self.p == 0 or self.is_initializing():
            z_seq = _linear(x_seq, kernel, bias)
            if self.inference == "analytic" and self.p > 0:
                check_expectation(self.activation, z_seq)
            y_seq = self._activate(z_seq, whole)
            if self.is_initializing() and deterministic and self._samples_neurons():
                self._keep_samples(self._samples(z_seq))
            return y_seq
        if deterministic:
            mean, variance = moments(x_seq, kernel, bias, self.p)
            return self._infer(mean, variance, kernel.dtype, whole).astype(kernel.dtype)
        return self._activate(self._drop_connections(x_seq, kernel, bias, whole), whole)

    def _merge_deterministic(self, deterministic: bool | None) -> bool:
        # A method of its own, so that Monte-Carlo dropout can intercept it.
        return _checks.merge_deterministic(
            type(self).__name__, self.deterministic, deterministic
        )

    def _drop_connections(
        self, x_seq: jax.Array, kernel: jax.Array, bias: jax.Array | None, whole: bool
    ) -> jax.Array:
        steps, examples, _ = x_seq.shape
        # All steps of an example lie together, so that a batch that is split over
        # devices stays where it is.
        x = x_seq.swapaxes(0, 1)
        if self.invariant:
            # All steps of an example are one matrix product with its mask.
            kernel_mask, bias_mask = self._masks(examples, batch_sharding(x), whole=whole)
            y = masked_matmul(x, kernel, kernel_mask)
        else:
            x = x.reshape(-1, self.in_features)
            masks = self._masks(steps * examples, batch_sharding(x), whole=whole)
            kernel_mask, bias_mask = masks
            y = masked_matmul(x[:, None], kernel, kernel_mask)[:, 0]
            y = y.reshape(examples, steps, self.out_features)
        if bias is not None and bias_mask is not None:
            bias_mask = bias_mask.reshape(examples, -1, self.out_features)
            # In this order devices add up gradients of the bias, not of its copies.
            bias, bias_mask = vary_alike(bias, bias_mask)
            # The gradient is a sum over all rows, in the dtype of what is added here.
            wide = wide_dtype(bias.dtype)
            kept = jnp.where(bias_mask, bias.astype(wide), jnp.zeros((), wide))
            y = (y.astype(wide) + kept).astype(bias.dtype)
        return y.swapaxes(0, 1)

    def _masks(
        self, examples: int, sharding: NamedSharding | None = None, *, whole: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        kernel_shape = (examples, self.in_features, self.out_features)
        packed = (*kernel_shape[:2], packed_width(self.out_features))
        bias_shape = (examples, self.out_features)

        def mask(name: str, shape: tuple[int, ...], dtype: Any, draw: Any) -> jax.Array:
            if self.invariant:
                return held(self, name, shape, dtype, draw, whole_simulation=whole)
            drawn: jax.Array = draw(fresh_key(self, f"the masks of {self._where()}"))
            return drawn

        kernel_mask = mask(
            "kernel_mask",
            packed,
            jnp.uint32,
            lambda key: draw_sharded(draw_bits, key, kernel_shape, self.p, sharding),
        )
        if not self.use_bias:
            return kernel_mask, None
        return kernel_mask, mask(
            "bias_mask",
            bias_shape,
            jnp.bool_,
            lambda key: draw_sharded(draw_mask, key, bias_shape, self.p, sharding),
        )

    def _activate(self, z_seq: jax.Array, whole: bool) -> jax.Array:
        if self.activation is None:
            return z_seq
        if not isinstance(self.activation, nn.Module):
            result: jax.Array = self.activation(z_seq)
            return result
        if self.is_initializing() or not whole:
            y = self.activation(first_step(z_seq))
            return jnp.broadcast_to(y, (len(z_seq), *y.shape))
        step = lift(partial(over_time, (self.state_collection,), False, 0), _call)
        y_seq: jax.Array = step(self.activation, z_seq)
        return y_seq

    def _infer(
        self, mean: jax.Array, variance: jax.Array, dtype: Any, whole: bool
    ) -> jax.Array:
        if self.inference == "analytic":
            return expected_activation(self.activation, mean, variance)
        key = fresh_key(
            self, f"the samples of {self._where()} (`inference='analytic'` takes no key)"
        )
        if not self._samples_neurons():
            return sampled_activation(
                key, self.activation, mean, variance, self.samples_num
            )
        return self._sample_neurons(key, mean, variance, dtype, whole)

    def _sample_neurons(
        self, key: jax.Array, mean: jax.Array, variance: jax.Array, dtype: Any, whole: bool
    ) -> jax.Array:
        """Steps one copy of the neurons a sample; their state is the leaf `samples`."""
        step = lift(partial(sampled_over_time, (self.state_collection,)), _call)
        mean = mean.astype(dtype)
        state: State
        y_seq: jax.Array
        state, y_seq = step(
            self.activation,
            self._samples(mean),
            key,
            mean,
            standard_deviation(variance).astype(dtype),
            self.samples_num,
        )
        if not whole or self.is_mutable_collection(self.state_collection):
            self._keep_samples(state)
        return y_seq

    def _samples_neurons(self) -> bool:
        return self.p > 0 and isinstance(self.activation, nn.Module)

    def _samples(self, z_seq: jax.Array) -> State:
        found: State | None = self.get_variable(self.state_collection, SAMPLES)
        settings = (self.state_collection,), found, path_of(self, SAMPLES)
        first = lift(partial(first_samples, *settings), _call)
        state: State = first(self.activation, first_step(z_seq), self.samples_num)
        return state

    def _keep_samples(self, state: State) -> None:
        if state:
            self.put_variable(self.state_collection, SAMPLES, state)

    def _where(self) -> str:
        return "/".join(self.path) or type(self).__name__

    def _check_input(self, x: jax.Array, step_mode: str) -> None:
        _checks.check_rank("DropConnectLinear", x, step_mode, "N, I", 2, 2)
        _connection_checks.check_features(x, self.in_features)


def _uniform(bound: float) -> Initializer:
    def init(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    y = x @ kernel
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _call(module: Any, z: jax.Array) -> Any:
    return module(z)
