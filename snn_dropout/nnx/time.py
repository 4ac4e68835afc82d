"""A simulation is a scope: its masks are made at its start, and gone at its end."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout._checks.time import check_time_axis
from snn_dropout.functional._sequences import first_step
from snn_dropout.nnx._calls import PureCall, holding
from snn_dropout.nnx._engine import dry_run, make_held, over_time


def simulate(
    model: nnx.Module,
    x_seq: Any,
    *args: Any,
    key: jax.Array | None = None,
    **kwargs: Any,
) -> Any:
    """Runs a single-step model over all time steps, by ``jax.lax.scan``, masks held.

    ``mask = draw(key)``;   ``y[t] = model(x[t])``

    Parameters and masks are the same at every step; all other Variables (membranes,
    running averages, streams) go from step to step, on from what they are, and are updated
    in place, as by any call of the model. Neurons restart by their own means. Afterwards
    the model holds no mask; the same key gives the same masks, so chunks of one simulation
    take one key. In inference nothing is drawn and ``key`` can be left out.

    For equal names, parameters and key it gives the masks and outputs of
    ``snn_dropout.simulate``, bit for bit. Outside of ``nnx.jit`` or ``jax.jit`` it compiles
    its step at every call: jit the training step.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import snn_dropout.nnx as sdn
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), sdn.Dropout(0.5))
      >>> x_seq = jnp.ones((5, 2, 4))                                 # [T, N, I]
      >>> y_seq = sdn.simulate(model, x_seq, key=jax.random.key(1))
      >>> y_seq.shape
      (5, 2, 3)

    Args:
      model: any NNX model for single steps ``[N, ...]``.
      x_seq: the input ``[T, N, ...]``, or a pytree of such arrays.
      *args: further arguments of the model, the same at every step; what is stateful in
        them, an ``nnx.Rngs`` say, is carried too.
      key: the key of the masks, another one for each simulation. Where the model holds
        masks of ``init_masks`` or ``simulation``, leave it out to go on with them.
      **kwargs: further keyword arguments of the model.

    Returns:
      The outputs of all steps, ``[T, ...]``.

    Raises:
      TypeError: ``model`` is no NNX module, ``x_seq`` no array, ``key`` no key, or it is
        missing and a mask is to be drawn.
      ValueError: ``x_seq`` has no time axis, the model holds a mask though ``key`` is
        given, a layer in mode ``'m'`` is in it, one is called at two shapes, or a Variable
        changes its shape from step to step.
    """
    _nnx_checks.check_model(model, nnx.Module)
    check_time_axis(x_seq)
    if key is not None:
        _nnx_checks.check_key("key", key)
    pure = PureCall(model, args, kwargs)
    dry = dry_run(pure, first_step(x_seq), one_step=True)
    return over_time(pure, x_seq, dry, make_held(model, dry.book, key))


@contextlib.contextmanager
def simulation(
    model: nnx.Module,
    x: Any,
    *args: Any,
    key: jax.Array | None = None,
    **kwargs: Any,
) -> Iterator[None]:
    """Lets a model hold masks inside of a ``with`` block, and takes them away behind it.

    ``init_masks(model, x, key=key)``;   the block;   ``reset_masks(model)``

    For steps that are called by hand, by ``nnx.RNN`` or by a scan of one's own, and for
    models of whole sequences, whose layers are in mode ``'m'``. Neurons go on from what
    they are. Masks go also where the block raises. A view or a copy of the model that is
    made before the block does not see them.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import snn_dropout.nnx as sdn
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), sdn.Dropout(0.5))
      >>> x_seq = jnp.ones((5, 2, 4))
      >>> with sdn.simulation(model, x_seq[0], key=jax.random.key(1)):
      ...   outputs = [model(x) for x in x_seq]
      >>> model.layers[1].mask is None
      True

    Args:
      model: an NNX model.
      x: its input: one step ``[N, ...]``, or a whole sequence where the model takes one.
      *args: further arguments of the model.
      key: the key of the masks, another one for each simulation; not needed in inference.
      **kwargs: further keyword arguments of the model.

    Yields:
      Nothing.

    Raises:
      TypeError, ValueError: as :func:`simulate`.
      RuntimeError: the model was made outside of the transform that this is called in.
    """
    _nnx_checks.check_model(model, nnx.Module)
    if key is not None:
        _nnx_checks.check_key("key", key)
    dry = dry_run(PureCall(model, args, kwargs), x, one_step=False)
    with holding(model, make_held(model, dry.book, key)):
        yield
