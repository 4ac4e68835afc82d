"""Activations as programs: traced at each call, compiled once for what they compute.

A closure is another function each time that it is made, and the same function may
compute something else once a number that it reads has changed. So neither is what a
compiled program is remembered by, but the trace; tracing takes well below a
millisecond.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snn_dropout._checks.connections import check_same_shape
from snn_dropout.functional._sharding import has_typed_axes

Activation = Callable[[jax.Array], jax.Array]
# An activation as a function of the arrays that it has closed over, and of its input.
Applied = Callable[[Sequence[Any], jax.Array], jax.Array]

# So many compiled programs are kept. One whose activation has a gradient rule of its own
# keeps that rule alive, and what it refers to, until `jax.clear_caches()`; of no other
# activation is anything kept.
KEPT = 64


class Program:
    """What an activation computes; equal to every other that computes the same."""

    def __init__(self, jaxpr: Any, key: Hashable) -> None:
        self.jaxpr = jaxpr
        self.key = key

    def __call__(self, values: Sequence[Any], z: jax.Array) -> jax.Array:
        """Applies the activation to ``z``, given the arrays that it has closed over."""
        y: jax.Array
        (y,) = jax.core.eval_jaxpr(self.jaxpr, values, z)
        return y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class Traced(NamedTuple):
    """An activation, its program, and the arrays that it has closed over."""

    activation: Activation
    program: Program
    values: Sequence[Any]


def trace(activation: Activation, z: Any) -> Traced:
    """Traces an activation of an array, of which only shape and dtype are read.

    Raises:
      ValueError: the activation returns no array of the shape of ``z``.
    """

    def new_function(z: jax.Array) -> jax.Array:  # because JAX remembers it by identity
        return _apply(activation, z)

    closed = jax.make_jaxpr(new_function)(z)
    text = str(closed)
    key: tuple[Hashable, ...] = (text, *_hidden(closed))
    if "custom" in text:
        # The text does not show a gradient rule, so what that computes is shown too.
        key = (*key, _gradient(activation, z))
    return Traced(activation, Program(_without_arrays(closed), key), closed.consts)


def run(
    function: Callable[..., jax.Array], traced: Traced, *arrays: jax.Array, static: Any = ()
) -> jax.Array:
    """Runs ``function(activation, values, *arrays)``, compiled once for one program.

    Args:
      function: takes the activation, further static arguments, the arrays that the
        activation has closed over, and the given ones.
      traced: the activation.
      *arrays: the arguments.
      static: further static arguments.
    """
    if has_typed_axes(*arrays):
        # There a program fits nowhere but where it was traced.
        def applied(_: Any, z: jax.Array) -> jax.Array:
            return _apply(traced.activation, z)

        return function(applied, *static, (), *arrays)
    result: jax.Array = _compiled(function, traced.program, *static)(traced.values, *arrays)
    return result


@functools.lru_cache(KEPT)
def _compiled(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(function, *static))


def _without_arrays(closed: Any) -> Any:
    # In newer versions of JAX a jaxpr holds what was closed over, which may be tracers.
    jaxpr = closed.jaxpr
    return jaxpr.replace(consts=()) if hasattr(jaxpr, "consts") else jaxpr


def _apply(activation: Activation, z: jax.Array) -> jax.Array:
    """Applies an activation, and returns numbers of the dtype that it was given."""
    y = activation(z)
    check_same_shape(z, y)
    return jnp.asarray(y, z.dtype)


def _gradient(activation: Activation, z: Any) -> Hashable:
    def gradient(z: jax.Array, dy: jax.Array) -> Any:
        return jax.vjp(lambda z: _apply(activation, z), z)[1](dy)

    try:
        return str(jax.make_jaxpr(gradient)(z, z))
    except Exception:  # there is none, so nothing can be said: like no other program
        return object()


def _hidden(jaxpr: Any) -> Iterator[int]:
    """The identity of arrays that a program holds, which its text does not show."""
    for equation in jaxpr.eqns:
        for parameter in equation.params.values():
            for part in parameter if isinstance(parameter, tuple) else (parameter,):
                if isinstance(part, (jax.Array, np.ndarray)):
                    yield id(part)
                elif hasattr(part, "eqns"):
                    yield from map(id, getattr(part, "consts", ()))
                    yield from _hidden(part)
