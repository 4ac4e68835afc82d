"""A linear layer for Flax NNX that loses connections, per example and held if asked to."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import Dtype, Initializer
from jax.sharding import NamedSharding

from snn_dropout._checks import connections as _connection_checks
from snn_dropout._checks import layers as _checks
from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout._checks.masks import check_probability
from snn_dropout._checks.modules import LINEN, check_activation_is_not
from snn_dropout.functional._sharding import batch_sharding
from snn_dropout.functional.bits import packed_width
from snn_dropout.functional.expectation import check_expectation, moments
from snn_dropout.functional.keys import mask_key
from snn_dropout.functional.linear import Masks, draw_connections, linear, masked_linear
from snn_dropout.nnx._activation import activate, infer
from snn_dropout.nnx._copies import renewed_copies
from snn_dropout.nnx._dropout import Streams
from snn_dropout.nnx._held import (
    MASKS,
    SAMPLES,
    HeldMask,
    HoldingLayer,
    KeyOf,
    NeuronCopies,
    Values,
    fresh_key,
)

_third = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class DropConnectLinear(HoldingLayer):
    """Loses connections of a linear layer, a mask per example, the bias included.

    Training, for example ``n`` (no scale ``1 / (1 - p)``)::

      y[n, o] = activation(sum_i M[n, i, o] K[i, o] x[n, i] + Mb[n, o] b[o])
      M, Mb ~ Bernoulli(1 - p)

    Inference, the average of the activation over a Gaussian of the same moments::

      y = E[activation(z)],  z ~ N(mean, variance)
      mean = (1 - p) (x K + b),  variance = p (1 - p) (x^2 K^2 + b^2)

    With ``invariant=False`` the masks are new at every step, from the stream of the layer;
    with ``invariant=True`` they are those of the simulation: ``kernel_mask``, one bit a
    connection, and ``bias_mask``, for equal names and key those of
    ``snn_dropout.DropConnectLinear``, bit for bit. ``p=0`` is ``nnx.Linear``.

    Axes between batch and features are tokens, ``[N, L, I]`` or ``[N, H, W, I]``, which
    share the masks of their example. So ``[N, L, I]``, one step, can not be told from
    ``[T, N, I]``, all steps: in mode ``'s'`` a whole sequence would have a mask for each
    time step, shared by the batch, and in mode ``'m'`` a step with tokens one for each
    token. The first raises where something beside the layer runs over all steps.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.DropConnectLinear(4, 3, p=0.5, invariant=True, rngs=nnx.Rngs(0))
      >>> y_seq = sdn.simulate(layer, jnp.ones((5, 2, 4)), key=jax.random.key(1))
      >>> y_seq.shape                                                 # [T, N, O]
      (5, 2, 3)

    Args:
      in_features: ``I``.
      out_features: ``O``.
      use_bias: whether there is a bias, whose elements are lost like connections.
      p: the probability that a connection is dropped, a static number in [0, 1].
      samples_num: Gaussian samples of one output in sampled inference.
      invariant: whether the masks are held over the simulation.
      activation: None, a callable on arrays, or an NNX module (a spiking neuron, say),
        which is stepped through time.
      step_mode: ``'s'`` for one step ``[N, ..., I]``, ``'m'`` for all
        ``[T, N, ..., I]``.
      deterministic: True for inference, False for training; ``model.eval()`` and
        ``model.train()`` set it.
      kernel_init: of the kernel ``[I, O]``; by default U(-1/sqrt(I), 1/sqrt(I)).
      bias_init: of the bias ``[O]``; None is the same uniform distribution.
      dtype: of the computation; by default that of input and parameters together.
      param_dtype: of the parameters.
      inference: ``'sample'`` averages ``samples_num`` draws, whose standard normals the
        examples of a batch, and their tokens, share; ``'analytic'`` is the exact
        expectation, of an elementwise activation.
      rng_collection: the stream of ``rngs`` for samples, and for masks that are new at each
        step or drawn outside of a simulation.
      rngs: an ``nnx.Rngs`` for the parameters, of which the layer forks its stream.

    Source: Wan et al. 2013, "Regularization of neural networks using DropConnect";
    SpikingJelly's ``layer.DropConnectLinear``.
    """

    kernel_mask: HeldMask | None
    bias_mask: HeldMask | None
    samples: NeuronCopies | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        p: float = 0.5,
        samples_num: int = 1024,
        invariant: bool = False,
        activation: Callable[[jax.Array], jax.Array] | nnx.Module | None = jax.nn.relu,
        step_mode: str = "s",
        deterministic: bool | None = False,
        kernel_init: Initializer = _third,
        bias_init: Initializer | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        inference: str = "sample",
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
    ) -> None:
        _nnx_checks.check_rngs(rngs, (nnx.Rngs,))
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        self.p = p
        self.samples_num = samples_num
        self.invariant = invariant
        self.activation = activation
        self.step_mode = step_mode
        self.deterministic = deterministic
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.inference = inference
        self.rng_collection = rng_collection
        shape = (in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias: nnx.Param[jax.Array] | None = nnx.data(None)
        if use_bias:
            init = bias_init or _uniform(in_features**-0.5)
            self.bias = nnx.Param(init(rngs.params(), shape[1:], param_dtype))
        has_stream = rng_collection in rngs or "default" in rngs
        self.rngs = rngs[rng_collection].fork() if has_stream else nnx.data(None)
        self.kernel_mask = nnx.data(None)
        self.bias_mask = nnx.data(None)
        self.samples = nnx.data(None)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, checked as the argument is."""
        if name == "p":
            check_probability(value)
        if name == "activation":
            check_activation_is_not(LINEN, value)
        if name in ("activation", "inference"):
            pair = {"activation": None, "inference": "sample"} | vars(self) | {name: value}
            stateful = isinstance(pair["activation"], nnx.Module)
            _connection_checks.check_inference(pair["inference"], stateful)
        super().__setattr__(name, value)

    def __call__(
        self,
        x: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: Streams | jax.Array | None = None,
    ) -> jax.Array:
        """Applies the layer.

        Args:
          x: one step ``[N, ..., I]`` where ``step_mode`` is ``'s'``, all steps
            ``[T, N, ..., I]`` where it is ``'m'``.
          deterministic: True for inference, False for training; it comes before the
            attribute.
          rngs: what samples and fresh masks are drawn from, an ``nnx.Rngs``, a stream or a
            key; it comes before the attribute.

        Returns:
          ``[N, ..., O]`` or ``[T, N, ..., O]``.

        Raises:
          RuntimeError: mode ``'s'`` in training without the masks that it should hold.
          TypeError: the input is complex.
          ValueError: the rank or ``in_features`` is wrong, a mask does not fit, a stream is
            missing, or the activation has no exact expectation and ``inference`` asks for
            it.
        """
        whole = self.step_mode == "m"
        if whole:
            self._check_whole()
        deterministic = _nnx_checks.choose_deterministic(
            type(self).__name__, self.deterministic, deterministic
        )
        _checks.check_rank("DropConnectLinear", x, self.step_mode, "N, ..., I", 2, math.inf)
        _connection_checks.check_features(x, self.in_features)
        self._note(x, self.step_mode)
        y_seq = self._forward(
            x if whole else x[None], deterministic and not self._always_drops, rngs
        )
        return y_seq if whole else y_seq[0]

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets what ``nnx.view`` sets.

        Args:
          deterministic: if True, the layer is in inference.
        """
        self._set_view(deterministic)

    def _forward(self, x_seq: jax.Array, deterministic: bool, rngs: Any) -> jax.Array:
        bias = None if self.bias is None else self.bias.get_value()
        x_seq, kernel, bias = promote_dtype(
            (x_seq, self.kernel.get_value(), bias), dtype=self.dtype
        )
        if self.p == 0:
            return activate(self, linear(x_seq, kernel, bias))
        if deterministic:
            mean, variance = moments(x_seq, kernel, bias, self.p)
            return infer(self, mean, variance, kernel.dtype, rngs).astype(kernel.dtype)
        if self.inference == "analytic" and self._recorder is not None:
            check_expectation(self.activation, x_seq @ kernel)

        def masks(examples: int, sharding: NamedSharding | None) -> Masks:
            return self._masks(examples, sharding, rngs)

        z_seq = masked_linear(x_seq, kernel, bias, masks, invariant=self.invariant)
        return activate(self, z_seq)

    def _masks(self, examples: int, sharding: NamedSharding | None, rngs: Any) -> Masks:
        if not self.invariant:
            return self._draw(examples, sharding, self._fresh(rngs, "the masks"))
        shape = (examples, self.in_features, packed_width(self.out_features))
        names = ("kernel_mask", "bias_mask") if self.use_bias else ("kernel_mask",)
        found = self._find(
            MASKS,
            names,
            shape,
            lambda layer, key_of: layer._made(examples, sharding, key_of),
        )
        name = type(self).__name__
        if not found:
            if self.step_mode == "s":
                _nnx_checks.refuse_no_mask(name, "kernel_mask")
            return self._draw(examples, sharding, self._fresh(rngs, "the masks"))
        for one in names:
            if one not in found:
                _nnx_checks.refuse_lone(name, next(iter(found)), one)
        kernel_mask, bias_mask = found["kernel_mask"], found.get("bias_mask")
        _nnx_checks.check_held_mask(name, "kernel_mask", kernel_mask, shape, jnp.uint32)
        if bias_mask is not None:
            rows = (examples, self.out_features)
            _nnx_checks.check_held_mask(name, "bias_mask", bias_mask, rows, jnp.bool_)
        return kernel_mask, bias_mask

    def _draw(self, examples: int, sharding: NamedSharding | None, key_of: KeyOf) -> Masks:
        shape = (examples, self.in_features, self.out_features)
        return draw_connections(key_of, shape, self.p, self.use_bias, sharding)

    def _made(self, examples: int, sharding: NamedSharding | None, key_of: KeyOf) -> Values:
        kernel_mask, bias_mask = self._draw(examples, sharding, key_of)
        values = {"kernel_mask": kernel_mask}
        return values if bias_mask is None else {**values, "bias_mask": bias_mask}

    def _renewed(self, key_of: KeyOf) -> Values:
        values: Values = {}
        if self.kernel_mask is not None:
            held = self.kernel_mask.get_value()
            values |= self._made(held.shape[0], batch_sharding(held), key_of)
        if self.samples is not None:
            held = self.samples.get_value()
            values[SAMPLES] = renewed_copies(self.activation, held, self.samples_num)
        return values

    def _fresh(self, rngs: Any, what: str) -> KeyOf:
        key = fresh_key(self, rngs, what)
        return lambda name: mask_key(key, (), name)


def _uniform(bound: float) -> Initializer:
    def init(key: jax.Array, shape: Any, dtype: Any, *_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
