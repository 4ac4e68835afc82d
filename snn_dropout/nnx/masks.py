"""Masks that a model holds on purpose: made, dropped, and restarted for single examples.

``simulation`` and ``simulate`` make masks and take them away again, so that no mask
outlives its simulation. These functions are for streams, which have no end.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from snn_dropout._checks import nnx as _nnx_checks
from snn_dropout._checks.rows import check_rows
from snn_dropout.functional.keys import mask_key
from snn_dropout.nnx._calls import Held, PureCall
from snn_dropout.nnx._engine import drop, dry_run, make_held, put
from snn_dropout.nnx._held import MASKS, SAMPLES, Values, held_by, layers_of, names_of


def init_masks(
    model: nnx.Module, x: Any, *args: Any, key: jax.Array, **kwargs: Any
) -> None:
    """Draws every mask of a model, in place: for streams, which have no end.

    ``mask = draw(mask_key(key, path of the layer, name))``

    The model is called once without computing anything (``jax.eval_shape``), on a copy,
    to learn the shapes: no membrane, running average or stream moves. Layers that drop
    nothing, in inference for example, get no mask. Called again it draws anew, into the
    Variables that are there; layers that it does not reach lose theirs. Nothing takes
    these masks away but :func:`reset_masks`: where a simulation has an end use
    ``simulation``, which can not forget to.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import snn_dropout.nnx as sdn
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), sdn.Dropout(0.5))
      >>> sdn.init_masks(model, jnp.ones((2, 4)), key=jax.random.key(1))
      >>> model.layers[1].mask.shape
      (2, 3)

    Args:
      model: an NNX model, of single steps or of whole sequences.
      x: its input, ``[N, ...]`` or ``[T, N, ...]``; its shape is used, and its sharding.
      *args: further arguments of the model.
      key: the key of the simulation.
      **kwargs: further keyword arguments of the model.

    Raises:
      TypeError: ``model`` is no NNX module, or ``key`` no key.
      ValueError: the model has no layer of this package, or one at two shapes.
      RuntimeError: the model was made outside of the transform that this is called in.
    """
    _nnx_checks.check_model(model, nnx.Module)
    _nnx_checks.check_key("key", key)
    _nnx_checks.check_has_layers(len(layers_of(model)))
    book = dry_run(PureCall(model, args, kwargs), x, one_step=False).book
    made = make_held(model, book, key, again=True)
    # What this call does not reach would go on under the masks of another simulation.
    for path, layer in layers_of(model).items():
        if not {(path, MASKS), (path, SAMPLES)} & made.keys():
            drop(layer)
    put(model, made)


def reset_masks(model: nnx.Module) -> None:
    """Takes every mask away from a model, in place; neurons stay as they are.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.Dropout(0.5)
      >>> sdn.init_masks(layer, jnp.ones((2, 3)), key=jax.random.key(0))
      >>> sdn.reset_masks(layer)
      >>> layer.mask is None
      True

    Args:
      model: an NNX model.

    Raises:
      TypeError: ``model`` is no NNX module.
      RuntimeError: the model was made outside of the transform that this is called in.
    """
    _nnx_checks.check_model(model, nnx.Module)
    for layer in layers_of(model).values():
        drop(layer)


def reset_rows(done: jax.Array, model: nnx.Module, *, key: jax.Array) -> None:
    """Restarts the masks of single examples, in place, where ``done[n]``.

    ``mask[n] = fresh[n] if done[n] else mask[n]``, for every mask

    ``fresh`` is what ``init_masks`` would draw by this key. Neurons are other people's:
    restart their rows beside it, ``v.set_value(jnp.where(done[:, None], 0, v[...]))``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import snn_dropout.nnx as sdn
      >>> layer = sdn.Dropout(0.5)
      >>> sdn.init_masks(layer, jnp.ones((2, 8)), key=jax.random.key(0))
      >>> before = layer.mask[...]
      >>> sdn.reset_rows(jnp.array([True, False]), layer, key=jax.random.key(1))
      >>> (layer.mask[...] == before).all(1).tolist()
      [False, True]

    Args:
      done: bool ``[N]``, the examples to restart.
      model: an NNX model that holds masks.
      key: a new key.

    Raises:
      TypeError: ``model`` is no NNX module, or ``key`` no key.
      ValueError: ``done`` is no bool array ``[N]``, or the model holds no mask.
      RuntimeError: the model was made outside of the transform that this is called in.
    """
    _nnx_checks.check_model(model, nnx.Module)
    _nnx_checks.check_key("key", key)
    check_rows(done)
    held: Held = {}
    for path, layer in layers_of(model).items():
        old = {name: variable.get_value() for name, variable in held_by(layer)}
        if not old:
            continue
        names = names_of(model, path)
        new = layer._renewed(partial(mask_key, key, names))
        where = "/".join(names) or type(layer).__name__
        if (possible := _possible_rows(old)) or SAMPLES not in old:
            _nnx_checks.check_batch_of_rows(where, possible, done.shape[0])
        for name in old.keys() & new.keys():
            kind = SAMPLES if name == SAMPLES else MASKS
            choose = partial(_choose_copies if name == SAMPLES else _choose, done)
            chosen = jax.tree.map(choose, old[name], new[name])
            held.setdefault((path, kind), {})[name] = chosen
    _nnx_checks.check_holds(list(held))
    put(model, held)


def _possible_rows(held: Values) -> list[int]:
    """Returns how many examples what a layer holds may be of: masks, before copies."""
    masks = [value for name, value in held.items() if name != SAMPLES]
    if masks:
        return [len(mask) for mask in masks if mask.ndim][:1]
    return [len(copies) for copies in held[SAMPLES] if copies.ndim > 1]


def _choose(done: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    if not old.ndim:
        return old
    return jnp.where(done.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def _choose_copies(done: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    # Numbers and keys, `[S]`, and what each unit has, `[O, S]`, are of no example; no shape
    # tells as many units from examples.
    if old.ndim < 2 or len(old) != len(done):
        return old
    return _choose(done, old, new)
