"""The derivatives of a trilinear form, each of which is a program written by hand.

A form that is linear in each of three operands has three derivatives, each a product of
two operands; and the derivative of such a product is another of the three. So functions
for the three are all that forward mode, reverse mode and any order of both need.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# For one level of `jax.vmap`, which operands have its axis in front: 0 or None.
Level = tuple[int | None, ...]


def trilinear(name: str, products: tuple[Product, Product, Product]) -> list[Product]:
    """Makes the derivatives of a trilinear form each other's derivatives.

    ``products[k](a, b, constant) = d form / d operand[k]``, a and b being the two others

    JAX never looks into the functions to differentiate them: each order of
    differentiation calls them again, and each mode.

    Args:
      name: what programs call the products.
      products: by the first operand, the second, and the third; each takes the two
        others in their order and what has no derivative, and works under ``jax.vmap``.

    Returns:
      The three functions, differentiable.
    """
    primitive = Primitive(name)

    @functools.cache
    def vmapped(by: int, levels: tuple[Level, ...]) -> Any:
        function = products[by]
        for axes in reversed(levels):
            function = jax.vmap(function, axes)
        return jax.jit(function)

    def bind(by: int, levels: tuple[Level, ...], *arrays: jax.Array) -> jax.Array:
        jaxpr = vmapped(by, levels).trace(*arrays).jaxpr
        product: jax.Array = primitive.bind(*arrays, by=by, levels=levels, jaxpr=jaxpr)
        return product

    def evaluate(*arrays: jax.Array, by: int, levels: tuple[Level, ...], **_: Any) -> Any:
        return vmapped(by, levels)(*arrays)

    def inline(*arrays: jax.Array, jaxpr: Any, **_: Any) -> Any:
        return jaxpr_as_fun(jaxpr)(*arrays)[0]

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals[0])
    mlir.register_lowering(primitive, mlir.lower_fun(inline, multiple_results=False))

    def by_first(
        tangent: Any, _: Any, second: Any, constant: Any, *, by: int, levels: Any, **__: Any
    ) -> jax.Array:
        return bind(by, levels, tangent, second, constant)

    def by_second(
        tangent: Any, first: Any, _: Any, constant: Any, *, by: int, levels: Any, **__: Any
    ) -> jax.Array:
        return bind(by, levels, first, tangent, constant)

    ad.defjvp(primitive, by_first, by_second, None)

    def transpose(
        cotangent: Any, *arrays: Any, by: int, levels: tuple[Level, ...], **_: Any
    ) -> list[Any]:
        if isinstance(cotangent, ad.Zero):
            return [None, None, None]
        first, second = (operand for operand in range(3) if operand != by)
        *pair, constant = arrays
        place = 0 if ad.is_undefined_primal(pair[0]) else 1
        wanted, given = (first, second) if place == 0 else (second, first)
        # The cotangent stands where the product itself does in the form, and has the
        # axes of all levels, as every product has.
        turned = []
        for axes in levels:
            level = {by: 0, given: axes[1 - place]}
            turned.append((*(level[operand] for operand in sorted(level)), axes[2]))
        operands = {by: cotangent, given: pair[1 - place]}
        ordered = (operands[operand] for operand in sorted(operands))
        gradient = bind(wanted, tuple(turned), *ordered, constant)
        shared = tuple(n for n, axes in enumerate(levels) if axes[place] is None)
        gradients: list[Any] = [None, None, None]
        gradients[place] = gradient.sum(shared) if shared else gradient
        return gradients

    ad.primitive_transposes[primitive] = transpose

    def batch(
        arrays: Any, axes: Any, *, by: int, levels: tuple[Level, ...], **_: Any
    ) -> tuple[jax.Array, int]:
        level = tuple(None if axis is None else 0 for axis in axes)
        in_front = (
            array if axis is None else jnp.moveaxis(array, axis, 0)
            for array, axis in zip(arrays, axes, strict=True)
        )
        return bind(by, (level, *levels), *in_front), 0

    batching.primitive_batchers[primitive] = batch

    return [functools.partial(bind, by, ()) for by in range(3)]
