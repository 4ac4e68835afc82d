"""Argument checks of simulations of NNX models, and their errors.

Every message names the argument, the rule, what was given and what
to type instead. Nothing here knows Flax.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from snn_dropout._checks.layers import check_deterministic
from snn_dropout._checks.modules import LINEN, kind_of_module
from snn_dropout._checks.state import is_rate_of
from snn_dropout._checks.time import _dtype, _may_become, _shapes


def check_model(model: Any, kind: type) -> None:
    """Raises unless ``model`` is an instance of ``kind``, the NNX module, to be called."""
    if isinstance(model, kind) and callable(model):
        return
    if kind_of_module(model) == LINEN:
        given = "a module of linen"
        remedy = "use `snn_dropout.simulate` and the layers of `snn_dropout`"
    elif isinstance(model, type):
        given = f"the class {model.__name__}"
        remedy = f"write for example `{model.__name__}(rngs=nnx.Rngs(0))`"
    else:
        given = f"{type(model).__name__}"
        remedy = "wrap it in an `nnx.Module` with a `__call__`"
        if callable(model) and not isinstance(model, kind):
            remedy += ", or a function in `nnx.Sequential(function)`"
    raise TypeError(
        f"`model` must be an NNX module with a `__call__`, but got {given}; {remedy}."
    )


def check_key(name: str, key: Any) -> None:
    """Raises unless ``key`` is one key of ``jax.random``."""
    is_array = isinstance(key, (jax.Array, np.ndarray))
    typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if typed and key.ndim == 0:
        return
    if is_array and key.dtype == jnp.uint32 and key.ndim == 1:
        return
    given = f"{key.dtype}{list(key.shape)}" if is_array else type(key).__name__
    remedy = "write for example `key=jax.random.key(0)`, another one for each simulation"
    if type(key).__name__ in ("Rngs", "RngStream"):
        stream = "rngs.dropout()" if type(key).__name__ == "Rngs" else "stream()"
        remedy = f"take one key from it, `key={stream}`, outside of `jax.jit` and scans"
    elif typed:
        remedy = "one simulation takes one of them, `key=keys[0]`, or map over them"
    elif (is_array and key.ndim == 0) or isinstance(key, int):
        remedy = "write `key=jax.random.key(seed)`"
    raise TypeError(f"`{name}` must be one key of `jax.random`, but got {given}; {remedy}.")


def refuse_no_key(where: str) -> NoReturn:
    """Raises where a mask is to be drawn and no key was given."""
    raise TypeError(
        f"`key` must be given where masks are drawn, and {where} is in training, but there "
        f"was none; write for example `key=jax.random.key(0)`, another one for each "
        f"simulation, or call `model.eval()` for inference."
    )


def refuse_held(where: str) -> NoReturn:
    """Raises where a simulation would replace masks that a model holds."""
    raise ValueError(
        f"A simulation with a `key` draws all of its masks, but the model holds one "
        f"already, at {where}: of a `simulation` that is still open, or of `init_masks`. "
        f"To go on with that mask leave `key` out; to drop it call `reset_masks(model)` "
        f"first."
    )


def refuse_no_mask(layer: str, names: str) -> NoReturn:
    """Raises where a layer in mode 's' is to drop something and holds no mask."""
    raise RuntimeError(
        f"{layer} in mode 's' must have its mask before the first step, for a mask is "
        f"drawn once for a simulation, but `{names}` is None. Run the model over all steps "
        f"with `simulate(model, x_seq, key=key)`; step it by hand inside of `with "
        f"simulation(model, x, key=key):`, with the input of one step; or start a stream "
        f"that has no end with `init_masks(model, x, key=key)`. They draw masks for the "
        f"layers that one call of the model with these arguments reaches; views and copies "
        f"that were made before do not see them. For inference call `model.eval()`, for a "
        f"whole sequence [T, N, ...] use `step_mode='m'`. In a model of linen use "
        f"the layers of `snn_dropout`."
    )


def refuse_no_copies(layer: str) -> NoReturn:
    """Raises where sampled inference steps neurons and has no copies of them."""
    raise RuntimeError(
        f"{layer} in mode 's' averages over copies of its neurons in sampled inference, "
        f"which go on from step to step, but it has none. Run the model with "
        f"`simulate(model, x_seq)`, or its steps inside of `with simulation(model, x):`."
    )


def check_held_mask(layer: str, name: str, held: Any, shape: Any, dtype: Any) -> None:
    """Raises unless the mask that a layer holds has exactly the shape of this input's."""
    if tuple(held.shape) != tuple(shape) or held.dtype != dtype:
        raise ValueError(
            f"The `{name}` that {layer} holds must fit the input: it has shape "
            f"{tuple(held.shape)} and dtype {held.dtype}, but this input needs shape "
            f"{tuple(shape)} and dtype {jnp.dtype(dtype)}. A mask belongs to one "
            f"simulation: for another batch start the next one, or call `init_masks(model, "
            f"x, key=key)` anew; for inputs of two shapes in one step make two layers."
        )


def check_held_rate(layer: str, held: Any, shape: Any) -> None:
    """Raises unless the probability has a row for each example of its mask."""
    if not is_rate_of(held, shape):
        rows = shape[:1] + (1,) * (len(shape) - 1)
        raise ValueError(
            f"The `mask_p` that {layer} holds must fit its mask: it has shape "
            f"{tuple(held.shape)} and dtype {held.dtype}, but the mask needs shape "
            f"{rows}, or longer axes up to {shape}, and dtype float32. Both belong to one "
            f"simulation: save, restore and drop them together, or call "
            f"`reset_masks(model)`."
        )


def refuse_lone(layer: str, found: str, missing: str) -> NoReturn:
    """Raises where a part of what a layer holds is gone."""
    raise ValueError(
        f"{layer} must hold `{missing}` beside `{found}`, for both belong to one "
        f"simulation, but there is none; drop both, `reset_masks(model)`, or neither."
    )


def refuse_sequence(layer: str) -> NoReturn:
    """Raises: a layer that takes all steps is handed one step of a simulation."""
    raise ValueError(
        f"{layer} is in mode 'm', all steps [T, N, ...], but inside of a simulation it is "
        f"handed one step [N, ...] and would take the batch for time. Use `step_mode='s'` "
        f"in what `simulate`, `monte_carlo` or an activation runs; call a model of whole "
        f"sequences by itself, inside of `with simulation(model, x_seq, key=key):`, or by "
        f"`monte_carlo(..., step_mode='m')`."
    )


def refuse_mapped(where: str) -> NoReturn:
    """Raises where one layer stands for many, stacked."""
    raise ValueError(
        f"A layer must hold its own mask, but the one at {where} stands for many: "
        f"`nnx.vmap` or `nnx.scan` inside of the model goes through its stream. Put the "
        f"simulation inside of the transform, `nnx.vmap(lambda model, x_seq, key: "
        f"simulate(model, x_seq, key=key))`, or write the layers as an `nnx.List`."
    )


def refuse_no_stream(layer: str, purpose: str) -> NoReturn:
    """Raises where a layer needs a key at each call and has no stream."""
    raise ValueError(
        f"Drawing {purpose} of {layer} needs a stream, but it was made without `rngs` and "
        f"called without; write `{layer}(..., rngs=rngs)` with `rngs = nnx.Rngs(0)`, or "
        f"run it inside of a simulation, which draws what is held by its key."
    )


def check_rngs(rngs: Any, kinds: tuple[type, ...]) -> None:
    """Raises unless ``rngs`` is None or of Flax's kinds."""
    if rngs is not None and not isinstance(rngs, kinds):
        raise TypeError(
            f"`rngs` must be an `nnx.Rngs`, a stream of it or None, but got "
            f"{type(rngs).__name__}; write for example `rngs=nnx.Rngs(0)`."
        )


def choose_deterministic(layer: str, attribute: Any, argument: Any) -> bool:
    """Returns the flag of a call: its argument, else the attribute, or raises."""
    check_deterministic(attribute)
    check_deterministic(argument)
    flag = attribute if argument is None else argument
    if flag is None:
        raise ValueError(
            f"`deterministic` must be given to {layer}, True (inference) or False "
            f"(training), but was not; call `model.train()` or `model.eval()`, or write "
            f"for example `{layer}(...)(x, deterministic=not train)`."
        )
    return bool(flag)


def check_has_layers(number: int) -> None:
    """Raises if a model has no layer whose mask could be made."""
    if not number:
        raise ValueError(
            "`model` must have a layer of `snn_dropout.nnx`, for `init_masks` makes their "
            "masks, but has none; put for example `snn_dropout.nnx.Dropout(0.5)` in it "
            "(`nnx.Dropout` holds no mask, and the layers of linen are no NNX modules)."
        )


def refuse_trace(error: Exception) -> NoReturn:
    """Raises where masks would have to be put into a model of another trace."""
    raise RuntimeError(
        "`init_masks`, `reset_masks` and `simulation` change the model in place, but it "
        "was made outside of this `jax.lax.scan`, `jax.jit` or `jax.vmap`, and the masks "
        "would leak. Call them before the transform, so that its steps only read the "
        "masks; or let `simulate` run all steps; or hand the model over, "
        "`nnx.jit(step)(model, x)`."
    ) from error


def check_carried(where: str, before: Any, after: Any) -> None:
    """Raises unless a Variable keeps its structure, shape and dtype in a step."""
    if _shapes(before) != _shapes(after):
        raise ValueError(
            f"The Variable {where} must keep its shape from step to step, but has "
            f"{_shapes(before)} before a step of this input and {_shapes(after)} after it: "
            f"it may be of another batch. Restart the neurons before the simulation, with "
            f"their own reset, or `model.neurons.v.set_value(jnp.zeros((batch, units)))`. "
            f"(A sequence has time first: where it has not, `jnp.swapaxes(x_seq, 0, 1)`.)"
        )
    was, becomes = _dtype(before), _dtype(after)
    if was != becomes and not _may_become(before, becomes):
        wide = jnp.promote_types(was, becomes)
        raise ValueError(
            f"The Variable {where} must keep its dtype from step to step, but is {was} "
            f"before a step and {becomes} after it. Let the neuron make it of the dtype "
            f"that it computes in, `jnp.zeros(shape, jnp.{wide})` for example; or cast the "
            f"input, `x_seq.astype(jnp.{wide})`."
        )


def refuse_other_batch(where: str, batch: int) -> NoReturn:
    """Raises where one example meets neurons of a larger batch."""
    raise ValueError(
        f"The Variable {where} is of a batch of {batch}, but the input has one example, "
        f"which would meet all of them. Restart the neurons before the simulation, with "
        f"their own reset, or `model.neurons.v.set_value(jnp.zeros((1, units)))`."
    )


def refuse_one_name(where: str, path: Sequence[Any], other: Sequence[Any]) -> NoReturn:
    """Raises where two layers would draw one mask, for their paths read alike."""
    raise ValueError(
        f"Each layer must have a name of its own, but two are {where}: {list(path)} and "
        f"{list(other)}. An item of a list is written with its number behind the name, as "
        f"linen does; rename one of the two."
    )


def refuse_unsettled() -> NoReturn:
    """Raises where each step changes what attributes and Variables there are."""
    raise ValueError(
        "A step must leave the attributes and Variables of the model as they are after the "
        "first one, which may make some, but a later step made or changed others (`sow` "
        "does, and counters in Python). Return from the model what is to be seen, which is "
        "stacked over time, and keep counters in an `nnx.Variable`."
    )


def check_batch_of_rows(where: str, held: Sequence[int], rows: int) -> None:
    """Raises unless something that is held is of as many examples as there are rows."""
    if rows in held:
        return
    if not held:
        raise ValueError(
            f"`reset_rows` must be given masks with a batch axis, but that of {where} is a "
            f"single number; call the model on `x[None]` where `x` is one example."
        )
    if held == [1]:
        raise ValueError(
            f"The mask of {where} is one row for all examples (`broadcast_dims`) and can "
            f"not be restarted row by row, but `done` has {rows} elements; restart the "
            f"layers that have masks of their own one by one, `reset_rows(done, "
            f"model.layer, key=key)`."
        )
    raise ValueError(
        f"`done` must have one element for each example, but has {rows} where what {where} "
        f"holds is of {' or '.join(map(str, dict.fromkeys(held)))} examples; write for "
        f"example `done = t >= length`, bool [N]."
    )


def check_holds(paths: Sequence[Any]) -> None:
    """Raises unless there are masks of which rows can be restarted."""
    if not paths:
        raise ValueError(
            "`model` must hold masks for `reset_rows` to restart some of them, but holds "
            "none; call `init_masks(model, x, key=key)` before the first step."
        )


def check_holds_none(paths: Sequence[str]) -> None:
    """Raises if there are masks where each sample has to draw its own."""
    if paths:
        raise ValueError(
            f"`model` must hold no mask, for each sample draws its own, but there is one "
            f"at {', '.join(paths)}; call `reset_masks(model)` first."
        )


def refuse_late_copies() -> NoReturn:
    """Raises where neurons that are to be copied make their state in the first call."""
    raise ValueError(
        "`inference='sample'` runs copies of the neurons, so all of their Variables must "
        "be there before the first step, but their first call makes some; make them in "
        "`__init__`, for example `self.v = nnx.Variable(jnp.zeros(()))`, or use neurons "
        "without state and `inference='analytic'`."
    )
