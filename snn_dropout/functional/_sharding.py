"""What an array's type tells of its place on devices: for masks and loops that follow it.

A loop over an axis that is split over devices would gather it: every device would walk
all examples. A loop over each share of the axis, all shares side by side, needs nothing
from another device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from snn_dropout._checks.masks import is_array
from snn_dropout.functional._rates import Rate


def sharding_of(x: jax.Array) -> NamedSharding | None:
    """Returns how ``x`` is split, or None where it knows of no mesh.

    During a trace only explicit axes of the mesh are known; to the others the compiler
    extends what it finds.
    """
    traced = isinstance(x, jax.core.Tracer)
    sharding = jax.typeof(x).sharding if traced else getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    return sharding


def batch_sharding(x: jax.Array) -> NamedSharding | None:
    """Returns how the first axis of ``x`` is split, all others being whole."""
    sharding = sharding_of(x)
    if sharding is None:
        return None
    return sharding.update(spec=PartitionSpec(*sharding.spec[:1]))


def draw_sharded(
    draw: Callable[..., jax.Array],
    key: jax.Array,
    shape: Sequence[int],
    p: Rate,
    sharding: NamedSharding | None,
) -> jax.Array:
    """Draws a mask that lies on the devices as ``sharding`` says.

    Args:
      draw: ``draw_mask`` or ``draw_bits``.
      key: a key of ``jax.random``; it is consumed.
      shape: the shape of the mask.
      p: the probability of being dropped.
      sharding: from :func:`sharding_of`, for the shape of the mask.
    """
    if sharding is None or isinstance(sharding.mesh, jax.sharding.AbstractMesh):
        return draw(key, shape, p, out_sharding=sharding)
    # Outside of jit a sharding is a request to the compiler, not a type.
    static = ("shape",) if is_array(p) else ("shape", "p")
    jitted = jax.jit(draw, static_argnames=static, out_shardings=sharding)
    mask: jax.Array = jitted(key, shape=tuple(shape), p=p)
    return mask


def shares(x: jax.Array) -> int | None:
    """Returns into how many equal shares to split the first axis of ``x``, if at all.

    As many as there are devices that may hold parts of it: those along the automatic
    axes of the mesh, which the compiler assigns, and along the explicit ones that ``x``
    names. Over manual axes it is split already.
    """
    sharding, examples = jax.typeof(x).sharding, x.shape[0]
    named = sharding.spec[0] if len(sharding.spec) else None
    named = named if isinstance(named, tuple) else (named,)
    mesh = sharding.mesh
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    devices = math.prod(
        size for name, size, kind in axes if kind == AxisType.Auto or name in named
    )
    if named == (None,) and (devices == 1 or not isinstance(examples, int)):
        return None
    # Along an explicit axis JAX has no loop, were it an axis of one device.
    return math.gcd(examples, devices)


def split(x: jax.Array, number: int) -> jax.Array:
    """Splits the first axis into ``number`` shares, a new first axis."""
    own, *others = x.shape
    return _reshaped(
        x, (number, own // number, *others), lambda own, *rest: (own, None, *rest)
    )


def join(x: jax.Array) -> jax.Array:
    """Undoes :func:`split`."""
    number, own, *others = x.shape
    return _reshaped(x, (number * own, *others), lambda own, _, *rest: (own, *rest))


def _reshaped(
    x: jax.Array, shape: tuple[int, ...], axes: Callable[..., tuple[Any, ...]]
) -> jax.Array:
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return x.reshape(shape)
    # In words, because JAX would hand an axis of one device on to the longer one.
    spec = PartitionSpec(*axes(*sharding.spec))
    return jax.lax.reshape(x, shape, out_sharding=sharding.update(spec=spec))


def has_typed_axes(*arrays: jax.Array) -> bool:
    """Whether types say how arrays lie on devices, as along explicit and manual axes."""
    kinds = {k for x in arrays for k in jax.typeof(x).sharding.mesh.axis_types}
    return bool(kinds - {AxisType.Auto})


def vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Marks arrays that are the same on all devices of a manual axis as different.

    Inside of ``jax.shard_map`` JAX does so where it mixes both kinds, and adds up the
    gradients of the devices for it; a gradient of one's own needs it in words.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    everywhere = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(everywhere - own), to="varying") if everywhere - own else x
        for x, own in zip(arrays, varying, strict=True)
    ]
