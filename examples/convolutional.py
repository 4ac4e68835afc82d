"""Trains a small spiking residual network on images, with all that goes into one.

Images ``[T, N, H, W, C]`` pass through convolutions, batch normalisation, spiking
neurons, ``Dropout2d`` (whole channels lost) and ``DropPath`` (whole branches lost), the
layers in mode ``'m'``: all time steps at once. The masks are drawn once per batch and
held over its time steps; ``batch_stats`` are carried from batch to batch by the training
loop, the state of neurons and masks is not: every batch is a new simulation.

It trains with and without dropout from the same start, and prints the test accuracy of
each and the shapes of the masks. From the root of the repository::

  python -m pip install -e '.[examples]'
  python examples/convolutional.py
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

try:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from tqdm import tqdm
    from train_digits import LIF, Digits, load_data

    import snn_dropout as sd
except ImportError as error:
    raise SystemExit(
        f"This example could not start: {error}. Install what it needs with\n"
        f"  python -m pip install -e '.[examples]'"
    ) from error

BATCH_SIZE = 64
LEARNING_RATE = 3e-3


class SpikingConv(nn.Module):
    """A convolution, normalised over time and batch, and the neurons behind it."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x_seq: jax.Array, *, train: bool) -> jax.Array:
        """Runs all steps, ``[T, N, H, W, C]``."""
        strides = (self.stride, self.stride)
        x_seq = nn.Conv(self.channels, (3, 3), strides, use_bias=False)(x_seq)
        x_seq = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x_seq)
        return sd.MultiStep(LIF())(2 * x_seq)


class Block(nn.Module):
    """Two convolutions beside a short cut; the branch may be lost for all time steps."""

    channels: int
    p: float
    p_path: float

    @nn.compact
    def __call__(self, x_seq: jax.Array, *, train: bool) -> jax.Array:
        """Runs all steps, ``[T, N, H, W, C]``."""
        branch = SpikingConv(self.channels)(x_seq, train=train)
        branch = sd.Dropout2d(self.p, step_mode="m")(branch, deterministic=not train)
        branch = SpikingConv(self.channels)(branch, train=train)
        branch = sd.DropPath(self.p_path, step_mode="m")(branch, deterministic=not train)
        return x_seq + branch


class ResNet(nn.Module):
    """A stem, two blocks with half the resolution between them, and a read-out."""

    p: float
    p_path: float

    @nn.compact
    def __call__(self, x_seq: jax.Array, *, train: bool) -> jax.Array:
        """Runs all steps, from ``[T, N, 8, 8, 1]`` to scores ``[N, 10]``."""
        x_seq = SpikingConv(16)(x_seq, train=train)
        x_seq = Block(16, self.p, self.p_path)(x_seq, train=train)
        x_seq = SpikingConv(32, stride=2)(x_seq, train=train)
        x_seq = Block(32, self.p, self.p_path)(x_seq, train=train)
        return nn.Dense(10)(x_seq.mean((0, 2, 3)))  # over time and space


def as_sequence(images: jax.Array, steps: int) -> jax.Array:
    """Repeats images ``[N, 64]`` over time, ``[T, N, 8, 8, 1]``."""
    return jnp.broadcast_to(images.reshape(-1, 8, 8, 1), (steps, len(images), 8, 8, 1))


def train(
    model: ResNet, digits: Digits, options: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """Trains a model; returns its variables and the test accuracy in percent."""
    batches = len(digits.train_labels) // BATCH_SIZE
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, options.epochs * batches)
    optimizer = optax.adam(schedule)

    def loss(params: Any, batch_stats: Any, batch: jax.Array, key: jax.Array) -> Any:
        scores, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            as_sequence(digits.train_images[batch], options.steps),
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],  # the state of neurons and masks ends with the batch
        )
        labels = digits.train_labels[batch]
        each = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return each.mean(), updated["batch_stats"]

    @jax.jit
    def step(carry: Any, batch: jax.Array, key: jax.Array) -> Any:
        params, batch_stats, moments = carry
        grads, batch_stats = jax.grad(loss, has_aux=True)(params, batch_stats, batch, key)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), batch_stats, moments

    some = as_sequence(digits.train_images[:1], options.steps)
    variables = model.init(jax.random.key(0), some, train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]
    carry = params, batch_stats, optimizer.init(params)
    random = np.random.default_rng(0)
    # `disable=None` leaves the bar out where the output is a log.
    for epoch in tqdm(range(options.epochs), unit="epoch", disable=None):
        order = random.permutation(len(digits.train_labels))[: batches * BATCH_SIZE]
        for number, batch in enumerate(order.reshape(batches, BATCH_SIZE)):
            key = jax.random.fold_in(jax.random.key(1), epoch * batches + number)
            carry = step(carry, batch, key)
    variables = {"params": carry[0], "batch_stats": carry[1]}
    test = as_sequence(digits.test_images, options.steps)
    scores = jax.jit(partial(model.apply, train=False))(variables, test)
    return variables, 100 * float((scores.argmax(-1) == digits.test_labels).mean())


def masks_of(model: ResNet, variables: Any, x_seq: jax.Array) -> dict[str, Any]:
    """Returns the masks of one batch by the path of their layer."""
    _, updated = model.apply(
        variables,
        x_seq,
        train=True,
        rngs={"dropout": jax.random.key(2)},
        mutable=["state", "batch_stats"],
    )
    leaves = jax.tree_util.tree_leaves_with_path(updated["state"])
    return {
        "/".join(entry.key for entry in path): np.asarray(leaf)
        for path, leaf in leaves
        if path[-1].key == "mask"
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Trains both networks and prints what came out."""
    parser = argparse.ArgumentParser(
        description="Trains a small spiking residual network on digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=10, help="passes over the training images")
    add("--steps", type=int, default=4, help="time steps of one simulation")
    add("--p", type=float, default=0.1, help="probability that a channel is dropped")
    add("--p-path", type=float, default=0.1, help="probability that a branch is dropped")
    options = parser.parse_args(argv)

    def refuse(name: str, rule: str) -> None:
        option = name.replace("_", "-")
        parser.error(
            f"--{option} must be {rule}, but got {getattr(options, name)}; type for "
            f"example --{option} {parser.get_default(name)}"
        )

    for name in "epochs", "steps":
        if getattr(options, name) < 1:
            refuse(name, "1 or more")
    for name in "p", "p_path":
        if not 0 <= getattr(options, name) < 1:
            refuse(name, "in [0, 1)")

    digits = load_data()
    print("dropout                          test accuracy (%)")
    plain = f"none{'':27}"
    held = f"channels p={options.p:g}, branches p={options.p_path:g}"
    for name, p, p_path in (plain, 0.0, 0.0), (held, options.p, options.p_path):
        model = ResNet(p, p_path)
        variables, accuracy = train(model, digits, options)
        print(f"{name:33}{accuracy:.1f}", flush=True)
    x_seq = as_sequence(digits.train_images[:BATCH_SIZE], options.steps)
    print(f"\nmasks of one batch {list(x_seq.shape)}, held over its {options.steps} steps:")
    for path, mask in masks_of(model, variables, x_seq).items():
        print(f"  {path:26}{list(mask.shape)}, {100 * mask.mean():.1f} % kept")


if __name__ == "__main__":
    main()
