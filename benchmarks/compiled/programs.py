"""The programs that are compiled: the workloads of the table, forward and gradient.

Each has a program of the same kind without dropout beside it, or, for lost connections,
SpikingJelly's way written in plain JAX: masked weights ``[N, I, O]``. Here JAX is imported.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import snn_dropout as sd

F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
      title: what the table calls it.
      make: returns the function; its arguments are the batch, what all chips share, and
        raw keys.
      batch: the shapes of the arguments that are split over chips, along ``axis``.
      shared: the shapes of the others.
      axis: the axis of the batch.
      bound: the largest temporary memory that is allowed, in MiB; None where it is not
        held to one.
      limit: the name of the program that it is compared with.
      moves: how often what that one reads and writes it may read and write at most.
      masked: N I O, where no array of so many elements may exist.
      matrix_units: whether there has to be a matrix product in it.
    """

    title: str
    make: Callable[[], Callable[..., Any]]
    batch: tuple[tuple[int, ...], ...]
    shared: tuple[tuple[int, ...], ...] = ()
    axis: int = 1
    bound: float | None = None
    limit: str | None = None
    masked: int | None = None
    matrix_units: bool = False
    moves: float | None = None

    def arguments(self, mesh: Any) -> list[Any]:
        """Returns the arguments, of which only shapes and places are there."""

        def place(shape: tuple[int, ...], dtype: Any, *names: str | None) -> Any:
            sharding = NamedSharding(mesh, PartitionSpec(*names))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        split = [None] * self.axis + ["data"]
        return [
            *(place(shape, F32, *split) for shape in self.batch),
            *(place(shape, F32) for shape in self.shared),
            place((2,), jnp.uint32),
        ]


class Leaky(nn.Module):
    """A leaky integrate-and-fire neuron, and dropout where ``p`` is not 0."""

    p: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs one step."""
        v = self.variable("state", "v", jnp.zeros_like, x, F32)
        potential = 0.5 * (v.value + x)
        spikes = jax.nn.sigmoid(4 * (potential - 1))
        if not self.is_initializing():
            v.value = potential * (1 - spikes)
        return sd.Dropout(self.p, deterministic=False)(spikes)


def _rngs(key: jax.Array) -> dict[str, jax.Array]:
    return {"dropout": jax.random.wrap_key_data(key)}


def _copy() -> Callable[..., Any]:
    return lambda x, key: x * 2


def _copies() -> Callable[..., Any]:
    return lambda x, dy, key: (x * 2, dy * 2)


def _dropout(layer: nn.Module) -> Callable[..., Any]:
    return lambda x, key: layer.apply({}, x, rngs=_rngs(key))


def _dropout_gradient(layer: nn.Module) -> Callable[..., Any]:
    def run(x: jax.Array, dy: jax.Array, key: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda x: layer.apply({}, x, rngs=_rngs(key)), x)
        return y, pullback(dy)

    return run


def _simulation(p: float) -> Callable[..., Any]:
    return lambda x, key: sd.simulate(Leaky(p), {}, x, rngs=_rngs(key))[0]


def _simulation_gradient(p: float) -> Callable[..., Any]:
    run = _simulation(p)
    return lambda x, key: jax.grad(lambda x: (run(x, key) ** 2).sum())(x)


def _connections(layer: sd.DropConnectLinear) -> Callable[..., Any]:
    def run(x: jax.Array, kernel: jax.Array, bias: jax.Array, key: jax.Array) -> Any:
        params = {"kernel": kernel, "bias": bias}
        return layer.apply({"params": params}, x, rngs=_rngs(key))

    return run


def _masked_weights(p: float, held: bool) -> Callable[..., Any]:
    def run(x: jax.Array, kernel: jax.Array, bias: jax.Array, key: jax.Array) -> Any:
        steps, examples, _ = x.shape
        kernel_key, bias_key = jax.random.split(jax.random.wrap_key_data(key))
        rows = (1 if held else steps, examples)
        masks = jax.random.bernoulli(kernel_key, 1 - p, (*rows, *kernel.shape))
        weights = jnp.where(masks, kernel, 0)
        if held:
            y = jnp.einsum("tni,nio->tno", x, weights[0])
        else:
            y = jnp.einsum("tni,tnio->tno", x, weights)
        y += jnp.where(jax.random.bernoulli(bias_key, 1 - p, (*rows, *bias.shape)), bias, 0)
        return nn.relu(y)

    return run


def _gradient(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    run = make()

    def gradient(x: Any, kernel: Any, bias: Any, key: Any) -> Any:
        def loss(*arrays: Any) -> jax.Array:
            return (run(*arrays, key) ** 2).sum()

        return jax.grad(loss, (0, 1, 2))(x, kernel, bias)

    return gradient


def _lost(
    title: str, size: tuple[int, int, int], bound: float, p: float = 0.5
) -> dict[str, Program]:
    steps, examples, width = size
    held = "held" in title
    layer = sd.DropConnectLinear(
        width, width, p=p, invariant=held, step_mode="m", deterministic=False
    )
    arrays = ((steps, examples, width),), ((width, width), (width,))
    ours = partial(_connections, layer)
    theirs = partial(_masked_weights, p, held)
    if "gradient" in title:
        ours, theirs = partial(_gradient, ours), partial(_gradient, theirs)
    rival = f"{title}, masked weights"
    masked = (1 if held else steps) * examples * width**2
    mine = Program(title, ours, *arrays, 1, bound, rival, masked, matrix_units=held)
    return {title: mine, rival: Program(rival, theirs, *arrays)}


def _infer(inference: str) -> Callable[..., Any]:
    layer = sd.DropConnectLinear(
        512, 512, inference=inference, step_mode="m", deterministic=True
    )
    return _connections(layer)


IMAGE, MAPS, STEPS = ((16, 64, 4096),), ((8, 32, 16, 16, 128),), ((100, 64, 1024),)
LINEAR = ((8, 64, 512),), ((512, 512), (512,))
SMALL, LARGE = (8, 64, 512), (16, 128, 4096)
MASK = 0.27  # MiB: one step of `IMAGE` in bits, or in bool


def programs() -> dict[str, Program]:
    """Returns all programs by their names."""
    channels = sd.Dropout2d(0.2, "m", deterministic=False)
    plain, plain_gradient = "100 steps without dropout", "100 steps without, gradient"
    table = [
        Program("a copy", _copy, IMAGE),
        Program("two copies", _copies, IMAGE * 2),
        Program("a copy of maps", _copy, MAPS),
        Program(
            "Dropout2d", partial(_dropout, channels), MAPS, (), 1, MASK, "a copy of maps"
        ),
        Program(plain, partial(_simulation, 0), STEPS, bound=0.6),
        Program(
            "100 steps",
            partial(_simulation, 0.5),
            STEPS,
            bound=0.6,
            limit=plain,
            moves=1.1,
        ),
        Program(plain_gradient, partial(_simulation_gradient, 0), STEPS, bound=160),
        Program(
            "100 steps, gradient",
            partial(_simulation_gradient, 0.5),
            STEPS,
            bound=160,
            limit=plain_gradient,
            moves=1.1,
        ),
        Program("sampled inference", partial(_infer, "sample"), *LINEAR, bound=12),
        Program("exact inference", partial(_infer, "analytic"), *LINEAR, bound=10),
    ]
    for p in (0.5, 0.3):
        layer = sd.Dropout(p, "m", deterministic=False)
        forward, both = partial(_dropout, layer), partial(_dropout_gradient, layer)
        table += [
            Program(f"Dropout p={p}", forward, IMAGE, (), 1, MASK, "a copy"),
            Program(f"Dropout p={p}, gradient", both, IMAGE * 2, (), 1, MASK, "two copies"),
        ]
    by_name = {program.title: program for program in table}
    by_name |= _lost("DropConnect fresh", SMALL, 24)
    by_name |= _lost("DropConnect fresh, gradient", SMALL, 24)
    by_name |= _lost("DropConnect fresh, gradient, p=0.3", SMALL, 56, 0.3)
    by_name |= _lost("DropConnect fresh, gradient, 1024 x 1024", (8, 128, 1024), 192)
    by_name |= _lost("DropConnect held", SMALL, 8)
    by_name |= _lost("DropConnect held, gradient", SMALL, 8)
    by_name |= _lost("DropConnect held, gradient, p=0.3", SMALL, 8, 0.3)
    by_name |= _lost("DropConnect held, gradient, 4096 x 4096", LARGE, 384)
    return by_name
