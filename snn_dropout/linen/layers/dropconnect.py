"""A linear layer that loses connections, per example and held if asked to."""

import math
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
from snn_dropout._checks import parameters as _parameter_checks
from snn_dropout._checks.attributes import check_attributes
from snn_dropout._checks.modules import NNX, check_activation_is_not
from snn_dropout.functional._sharding import draw_sharded
from snn_dropout.functional.bits import draw_bits, packed_width
from snn_dropout.functional.expectation import check_expectation, moments
from snn_dropout.functional.linear import linear, masked_linear
from snn_dropout.functional.masks import draw_mask
from snn_dropout.linen._held import check_single_step, fresh_key, held, note_sequence
from snn_dropout.linen._parameters import LOST
from snn_dropout.linen._scopes import check_whole
from snn_dropout.linen.layers._activation import activate, infer, make_samples

Activation = Callable[[jax.Array], jax.Array] | nn.Module


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

    Axes between batch and features are tokens, ``[N, L, I]`` or ``[N, H, W, I]``, which
    share the masks of their example. So ``[N, L, I]``, one step, can not be told from
    ``[T, N, I]``, all steps: in mode ``'s'`` a whole sequence would have a mask for each
    time step, shared by the batch, and in mode ``'m'`` a step with tokens one for each
    token. The first raises where something beside the layer runs over all steps.

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
      step_mode: ``'s'`` for one step ``[N, ..., I]``, ``'m'`` for all
        ``[T, N, ..., I]``.
      deterministic: True for inference, False for training; field or argument.
      kernel_init: of the kernel ``[I, O]``; by default U(-1/sqrt(I), 1/sqrt(I)).
      bias_init: of the bias ``[O]``; None is the same uniform distribution.
      dtype: of the computation; by default that of input and parameters together.
      param_dtype: of the parameters.
      inference: ``'sample'`` averages ``samples_num`` draws, whose standard normals
        the examples of a batch, and their tokens, share; ``'analytic'`` is the exact
        expectation, of an elementwise activation.
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
        check_attributes(self)
        check_activation_is_not(NNX, self.activation)
        stateful = isinstance(self.activation, nn.Module)
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
          x: one step ``[N, ..., I]`` where ``step_mode`` is ``'s'``, all steps
            ``[T, N, ..., I]`` where it is ``'m'``.
          deterministic: True for inference, False for training; given here or as the
            field, not both.

        Returns:
          ``[N, ..., O]`` or ``[T, N, ..., O]``.

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
        """Runs one step ``[N, ..., I]``, in any ``step_mode``; see ``__call__``."""
        self._check_input(x, "s")
        return self._forward(x[None], deterministic, whole=False)[0]

    def multi_step_forward(
        self, x_seq: jax.Array, deterministic: bool | None = None
    ) -> jax.Array:
        """Runs all steps ``[T, N, ..., I]``, in any ``step_mode``; see ``__call__``."""
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
            z_seq = linear(x_seq, kernel, bias)
            if self.inference == "analytic" and self.p > 0:
                check_expectation(self.activation, z_seq)
            y_seq = activate(self, z_seq, whole)
            if self.is_initializing() and deterministic:
                make_samples(self, z_seq)
            return y_seq
        self._check_not_lost()
        if deterministic:
            mean, variance = moments(x_seq, kernel, bias, self.p)
            return infer(self, mean, variance, kernel.dtype, whole).astype(kernel.dtype)
        return activate(self, self._drop_connections(x_seq, kernel, bias, whole), whole)

    def _merge_deterministic(self, deterministic: bool | None) -> bool:
        # A method of its own, so that Monte-Carlo dropout can intercept it.
        return _checks.merge_deterministic(
            type(self).__name__, self.deterministic, deterministic
        )

    def _drop_connections(
        self, x_seq: jax.Array, kernel: jax.Array, bias: jax.Array | None, whole: bool
    ) -> jax.Array:
        if not whole:
            self._check_single_step(x_seq.shape[1:])
        masks = partial(self._masks, whole=whole)
        return masked_linear(x_seq, kernel, bias, masks, invariant=self.invariant)

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

    def _check_single_step(self, shape: tuple[int, ...]) -> None:
        # A step with tokens has the rank of a whole sequence without them.
        stored = self.invariant and self.has_variable(self.state_collection, "kernel_mask")
        if len(shape) > 2 and not stored:
            check_single_step(self, shape)

    def _check_not_lost(self) -> None:
        assert self.scope is not None
        paths = [(*self.path, name) for name in ("kernel", "bias")]
        lost = self.scope.flags.get(LOST, ())
        _parameter_checks.check_not_lost(self._where(), paths, lost)

    def _where(self) -> str:
        return "/".join(self.path) or type(self).__name__

    def _check_input(self, x: jax.Array, step_mode: str) -> None:
        _checks.check_rank("DropConnectLinear", x, step_mode, "N, ..., I", 2, math.inf)
        _connection_checks.check_features(x, self.in_features)


def _uniform(bound: float) -> Initializer:
    def init(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
