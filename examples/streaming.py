"""Trains a spiking network on streams that never stop, chunk by chunk.

Each of the slots of a batch carries one stream after the other: a handwritten digit,
one row of pixels a time step, from top to bottom and again from the top, 8 to 24 rows.
Streams start and end at any step, so the batch never starts together. Three things
carry it:

* the state, membranes and masks, is passed from chunk to chunk, and gradients end
  where a chunk starts (truncated back-propagation through time);
* ``reset_rows`` restarts the slots whose stream has ended, one by one: first
  membranes, a new mask; the others run on;
* a mask is held as long as its stream, however many chunks that takes.

It prints the accuracy on test streams as training goes on, checks two claims, that a
run in chunks equals the run in one piece, and a stream beside others the same stream
alone, and writes a picture of a few slots. From the root of the repository::

  python -m pip install -e '.[examples]'
  python examples/streaming.py
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

try:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from pictures.streams import draw
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    import snn_dropout as sd
except ImportError as error:
    raise SystemExit(
        f"This example could not start: {error}. Install what it needs with\n"
        f"  python -m pip install -e '.[examples]'"
    ) from error

ROWS = 8  # of an image, one a time step
PASSES = 3  # the longest stream shows its image that often
HIDDEN_UNITS = 256
SLOTS, UNITS = 3, 24  # so many of them are drawn


class Chunk(NamedTuple):
    """Some time steps of all slots, each array ``[T, N, ...]``."""

    rows: np.ndarray  # of pixels
    labels: np.ndarray
    starts: np.ndarray  # whether a stream starts at this step
    seen: np.ndarray  # whether the whole image was shown


@jax.custom_jvp
def spike(distance: jax.Array) -> jax.Array:
    """Fires above the threshold; its derivative is a smooth surrogate."""
    return (distance > 0).astype(distance.dtype)


@spike.defjvp
def _spike_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> Any:
    (distance,), (tangent,) = primals, tangents
    return spike(distance), tangent / (1 + 5 * jnp.abs(distance)) ** 2


class LIF(nn.Module):
    """Leaky neurons; with a threshold they fire, without one they only remember."""

    decays: tuple[float, float]
    threshold: float | None = 1.0

    @nn.compact
    def __call__(self, current: jax.Array) -> jax.Array:
        """Runs one time step of ``[N, units]``."""
        v = self.variable("state", "v", jnp.zeros_like, current, float)
        # Slow and fast neurons: the slow ones still know the first row at the last.
        decay = jnp.linspace(*self.decays, current.shape[-1])[None]
        potential = decay * v.value + current
        fired = spike(potential - self.threshold) if self.threshold else potential
        if not self.is_initializing():
            v.value = potential * (1 - fired) if self.threshold else potential
        return fired


class Network(nn.Module):
    """Two hidden layers with a dropout behind each, and a read-out that remembers."""

    p: float

    @nn.compact
    def __call__(self, rows: jax.Array, *, train: bool) -> jax.Array:
        """Runs one time step, from pixels ``[N, 8]`` to scores ``[N, 10]``."""
        x = rows
        for _ in range(2):
            x = LIF((0.5, 0.98))(nn.Dense(HIDDEN_UNITS)(x))
            x = sd.Dropout(self.p)(x, deterministic=not train)
        return LIF((0.9, 0.9), threshold=None)(nn.Dense(10)(x))


def flow(
    images: np.ndarray, labels: np.ndarray, slots: int, steps: int, seed: int
) -> Iterator[Chunk]:
    """Yields chunks of streams without an end, ``steps`` time steps each."""
    random = np.random.default_rng(seed)
    length, position, image = (np.zeros(slots, int) for _ in range(3))
    while True:
        filled = []
        for _ in range(steps):
            starts = position >= length
            image = np.where(starts, random.integers(len(labels), size=slots), image)
            new_length = random.integers(ROWS, PASSES * ROWS + 1, size=slots)
            length = np.where(starts, new_length, length)
            position = np.where(starts, 0, position)
            row = images[image, position % ROWS]
            filled.append((row, labels[image], starts, position >= ROWS - 1))
            position = position + 1
        yield Chunk(*map(np.stack, zip(*filled, strict=True)))


def run(
    model: Network,
    params: Any,
    state: Any,
    chunk: Chunk,
    key: jax.Array,
    first_time_step: int | jax.Array = 0,
    *,
    train: bool,
) -> tuple[Any, jax.Array]:
    """Runs a chunk and restarts each slot where its stream starts.

    The key is the same for all chunks: each step folds its number in, and numbers go on
    from chunk to chunk, as ``simulate`` does with its argument of the same name.

    Returns:
      The state behind the chunk and the scores ``[T, N, 10]``.
    """

    def step(state: Any, inputs: tuple[Any, Chunk]) -> tuple[Any, jax.Array]:
        number, now = inputs
        rngs = {"dropout": jax.random.fold_in(key, number)}
        fresh = sd.init_state(model, {"params": params}, now.rows, rngs=rngs, train=train)
        # In words, for there may be as many slots as units.
        state = sd.reset_rows(now.starts, state, fresh, axis=0)
        variables = {"params": params, "state": state}
        scores, updated = model.apply(
            variables, now.rows, train=train, rngs=rngs, mutable=["state"]
        )
        return updated["state"], scores

    numbers = first_time_step + jnp.arange(len(chunk.rows))
    return jax.lax.scan(step, state, (numbers, chunk))


def first_state(model: Network, params: Any, rows: jax.Array, *, train: bool) -> Any:
    """Makes a state of the right shape; the first step restarts every slot anyway."""
    rngs = {"dropout": jax.random.key(0)}
    return sd.init_state(model, {"params": params}, rows, rngs=rngs, train=train)


def train(
    model: Network, data: list[np.ndarray], options: argparse.Namespace
) -> Iterator[tuple[int, Any]]:
    """Trains chunk by chunk; yields the number of chunks and the parameters at times."""
    train_images, _, train_labels, _ = data
    chunks = flow(train_images, train_labels, options.slots, options.steps, seed=1)
    schedule = optax.cosine_decay_schedule(2e-3, options.chunks)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    key = jax.random.key(1)

    def loss(params: Any, state: Any, chunk: Chunk, first: jax.Array) -> tuple[Any, Any]:
        state, scores = run(model, params, state, chunk, key, first, train=True)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, chunk.labels)
        return (each * chunk.seen).sum() / chunk.seen.sum().clip(1), state

    @jax.jit
    def train_step(carry: tuple[Any, Any, Any], chunk: Chunk, first: jax.Array) -> Any:
        params, moments, state = carry
        # The state that comes in is no function of the parameters here: gradients end.
        grads, state = jax.grad(loss, has_aux=True)(params, state, chunk, first)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), moments, state

    rows = jnp.zeros((options.slots, ROWS))
    params = model.init(jax.random.key(0), rows, train=False)["params"]
    carry = params, optimizer.init(params), first_state(model, params, rows, train=True)
    for number in range(1, options.chunks + 1):
        carry = train_step(carry, next(chunks), (number - 1) * options.steps)
        if number == options.chunks or number % -(-options.chunks // 5) == 0:
            yield number, carry[0]


def accuracy(model: Network, params: Any, data: list[np.ndarray]) -> float:
    """Returns the percentage of test streams that are right at their last step."""
    _, images, _, labels = data
    chunk = next(flow(images, labels, slots=64, steps=20 * ROWS, seed=2))
    state = first_state(model, params, chunk.rows[0], train=False)
    _, scores = jax.jit(partial(run, model, train=False))(
        params, state, chunk, jax.random.key(0)
    )
    last = np.roll(chunk.starts, -1, axis=0)  # the step before another stream starts
    last[-1] = False
    right = np.asarray(scores).argmax(-1) == chunk.labels
    return 100 * float(right[last].mean())


def in_chunks(
    model: Network, params: Any, chunk: Chunk, steps: int
) -> tuple[list[Any], jax.Array]:
    """Runs a chunk in shorter ones; returns the state behind each, and all scores."""
    jitted = jax.jit(partial(run, model, train=True))
    state = first_state(model, params, chunk.rows[0], train=True)
    states, parts = [], []
    for first in range(0, len(chunk.rows), steps):
        part = Chunk(*(array[first : first + steps] for array in chunk))
        state, scores = jitted(params, state, part, jax.random.key(4), first)
        states.append(state)
        parts.append(scores)
    return states, jnp.concatenate(parts)


def check_alone(model: Network, params: Any, chunk: Chunk) -> tuple[int, float]:
    """Compares each stream of slot 0 with the same stream, under its mask, alone.

    Returns:
      How many streams were compared, and the largest difference of scores.
    """
    key = jax.random.key(5)
    state = first_state(model, params, chunk.rows[0], train=True)
    _, scores = jax.jit(partial(run, model, train=True))(params, state, chunk, key)
    starts = [*np.flatnonzero(chunk.starts[:, 0]), len(chunk.rows)]

    @jax.jit
    def alone(first: jax.Array) -> jax.Array:
        # As many steps as the longest stream has: what follows a shorter one is left out.
        rows = jnp.roll(chunk.rows, -first, axis=0)[: PASSES * ROWS]
        rngs = {"dropout": jax.random.fold_in(key, first)}
        made = sd.init_state(model, {"params": params}, rows[0], rngs=rngs, train=True)
        own = jax.tree.map(lambda leaf: leaf[:1], made)
        variables = {"params": params, "state": own}
        return sd.simulate(model, variables, rows[:, :1], train=True)[0]

    difference = 0.0
    for first, end in itertools.pairwise(starts):
        apart = alone(first)[: end - first] - scores[first:end, :1]
        difference = max(difference, float(jnp.abs(apart).max()))
    return len(starts) - 1, difference


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the example; see ``--help``."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = partial(parser.add_argument, type=int)
    add("--chunks", default=1000, help="training steps")
    add("--steps", default=8, help="time steps of a chunk")
    add("--slots", default=64, help="streams side by side")
    add("--p", type=float, default=0.1, help="probability of being dropped, in [0, 1)")
    add("--output", type=Path, default="output/streaming.png", help="PNG to write")
    options = parser.parse_args(arguments)

    def refuse(name: str, rule: str) -> None:
        parser.error(
            f"--{name} must be {rule}, but got {getattr(options, name)}; type for "
            f"example --{name} {parser.get_default(name)}"
        )

    for name in "chunks", "steps", "slots":
        if getattr(options, name) < 1:
            refuse(name, "1 or more")
    if not 0 <= options.p < 1:  # with p=1 nothing is left to learn from
        refuse("p", "in [0, 1)")
    if options.output.suffix != ".png" or options.output.is_dir():
        refuse("output", "a file that ends in .png")
    try:  # before the training, which would be lost
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        refuse("output", "in a folder that exists or can be made")

    images, labels = load_digits(return_X_y=True)
    images = (images / 8).reshape(-1, ROWS, 8).astype(np.float32)
    data = train_test_split(images, labels, test_size=450, stratify=labels, random_state=0)
    model = Network(options.p)
    print("chunks  test streams that are right at their last step")
    for number, params in train(model, data, options):
        print(f"{number:6}  {accuracy(model, params, data):.1f} %", flush=True)

    some = next(flow(data[1], data[3], slots=16, steps=8 * ROWS, seed=3))
    _, whole = in_chunks(model, params, some, steps=len(some.rows))
    _, pieces = in_chunks(model, params, some, steps=options.steps)
    difference = jnp.abs(pieces - whole).max()
    print(f"\nin chunks and in one piece: scores differ by at most {difference:.1e}")
    streams, difference = check_alone(model, params, some)
    print(f"{streams} streams beside others and alone: by at most {difference:.1e}")

    states, scores = in_chunks(model, params, some, steps=1)
    masks = np.stack([state["Dropout_0"]["mask"][:, :UNITS] for state in states])
    answers = np.where(some.seen, 1 + (np.asarray(scores).argmax(-1) == some.labels), 0)
    parts = (array[:, :SLOTS] for array in (some.rows, answers, masks, some.starts))
    draw(options.output, *parts, steps=options.steps)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
