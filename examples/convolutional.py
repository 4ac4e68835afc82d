"""Trains a small spiking residual network on images, with all that goes into one.

Images ``[T, N, H, W, C]`` pass through convolutions, batch normalisation, spiking
neurons, ``Dropout2d`` (whole channels lost) and ``DropPath`` (whole branches lost), the
layers in mode ``'m'``: all time steps at once. The masks are drawn once per batch and
held over its time steps; ``batch_stats`` are carried from batch to batch by the training
loop, the state of neurons and masks is not: every batch is a new simulation.

It trains with and without dropout from the same start, prints the test accuracy of each
and the shapes of the masks, and writes a picture: the learning curves, and the channels of
one image behind ``Dropout2d`` and behind a dropout that draws new masks at every step.
From the root of the repository::

  python -m pip install -e '.[examples]'
  python examples/convolutional.py
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

try:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from tqdm import tqdm
    from train_digits import HELD, LIF, PER_STEP, Digits, load_data

    import snn_dropout as sd
except ImportError as error:
    raise SystemExit(
        f"This example could not start: {error}. Install what it needs with\n"
        f"  python -m pip install -e '.[examples]'"
    ) from error

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
# What a pixel of a map can be, and how it is drawn.
PIXELS = {
    "no spike": "white",
    "spike passed on": "black",
    "channel dropped": "mistyrose",
    "spike dropped": "tab:red",
    "between the maps": "silver",
}


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
) -> tuple[dict[str, Any], list[float]]:
    """Trains a model; returns its variables and the test accuracy (%) of each epoch."""
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

    @jax.jit
    def accuracy(params: Any, batch_stats: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        test = as_sequence(digits.test_images, options.steps)
        scores = model.apply(variables, test, train=False)
        return 100 * (scores.argmax(-1) == digits.test_labels).mean()

    some = as_sequence(digits.train_images[:1], options.steps)
    variables = model.init(jax.random.key(0), some, train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]
    carry = params, batch_stats, optimizer.init(params)
    random, percent = np.random.default_rng(0), []
    # `disable=None` leaves the bar out where the output is a log.
    for epoch in tqdm(range(options.epochs), unit="epoch", disable=None):
        order = random.permutation(len(digits.train_labels))[: batches * BATCH_SIZE]
        for number, batch in enumerate(order.reshape(batches, BATCH_SIZE)):
            key = jax.random.fold_in(jax.random.key(1), epoch * batches + number)
            carry = step(carry, batch, key)
        percent.append(float(accuracy(*carry[:2])))
    return {"params": carry[0], "batch_stats": carry[1]}, percent


def masks_of(model: ResNet, variables: Any, x_seq: jax.Array) -> dict[str, Any]:
    """Returns the masks of one batch by the path of their layer."""
    apply = partial(model.apply, train=True, mutable=["state", "batch_stats"])
    _, updated = jax.jit(apply)(variables, x_seq, rngs={"dropout": jax.random.key(2)})
    leaves = jax.tree_util.tree_leaves_with_path(updated["state"])
    return {
        "/".join(entry.key for entry in path): np.asarray(leaf)
        for path, leaf in leaves
        if path[-1].key == "mask"
    }


def channels_of(
    model: ResNet, variables: Any, x_seq: jax.Array
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the spikes in front of the first ``Dropout2d``, and what dropouts keep.

    Returns:
      The spikes ``[T, H, W, C]`` of the image that loses most channels to a held mask, and
      for each kind of dropout which channels of it are kept, ``[T, C]``.
    """
    apply = partial(
        model.apply,
        train=False,
        capture_intermediates=lambda layer, _: isinstance(layer, SpikingConv),
        mutable=["intermediates", "state"],
    )
    _, updated = jax.jit(apply)(variables, x_seq)
    spikes = updated["intermediates"]["Block_0"]["SpikingConv_0"]["__call__"][0]
    layers = {
        PER_STEP: nn.Dropout(model.p, broadcast_dims=(2, 3)),
        HELD: sd.Dropout2d(model.p, step_mode="m"),
    }
    rngs = {"dropout": jax.random.key(2)}
    kept = {  # [T, N, C]
        name: layer.apply({}, jnp.ones_like(spikes), deterministic=False, rngs=rngs)
        .astype(bool)
        .all((2, 3))
        for name, layer in layers.items()
    }
    image = kept[HELD][0].sum(-1).argmin()
    return np.asarray(spikes[:, image]), {
        name: np.asarray(channels[:, image]) for name, channels in kept.items()
    }


def draw_channels(axes: Axes, spikes: np.ndarray, kept: np.ndarray) -> None:
    """Draws the maps ``[T, H, W, C]`` of all channels and steps, and what was dropped."""
    steps, height, width, channels = spikes.shape
    pixels = (spikes > 0) + 2 * ~kept[:, None, None]  # as `PIXELS` has them
    framed = np.pad(pixels, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=4)
    rows = framed.transpose(0, 1, 3, 2).reshape(steps * (height + 1), -1)
    axes.imshow(rows[:-1, :-1], ListedColormap([*PIXELS.values()]), vmin=0, vmax=4)
    axes.set_xticks((width + 1) * np.arange(channels) + width / 2, range(channels))
    axes.set_yticks((height + 1) * np.arange(steps) + height / 2, range(steps))
    axes.set(xlabel="channel", ylabel="time step")
    axes.tick_params(length=0)


def draw_picture(
    path: Path,
    accuracy: dict[str, list[float]],
    spikes: np.ndarray,
    kept: dict[str, np.ndarray],
) -> None:
    """Writes the learning curves above the channels of one image under both dropouts."""
    # Wide enough for all channels, and as tall as all steps need.
    figure = Figure(figsize=(8, 4 + 1.1 * len(spikes)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3, 1 + 1.1 * len(spikes)))
    axes = above.subplots()
    for name, percent in accuracy.items():
        axes.plot(np.arange(1, len(percent) + 1), percent, "o-", label=name)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="Learning curves")
    axes.locator_params("x", integer=True)
    axes.legend(loc="lower right", title="dropout")
    for axes, (name, channels) in zip(
        below.subplots(len(kept), 1), kept.items(), strict=True
    ):
        draw_channels(axes, spikes, channels)
        axes.set_title(f"Channels of one image: {name}")
    handles = [Patch(fc=PIXELS[name], ec="gray", label=name) for name in [*PIXELS][:4]]
    below.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains both networks, prints what came out and writes the picture."""
    parser = argparse.ArgumentParser(
        description="Trains a small spiking residual network on digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=10, help="passes over the training images")
    add("--steps", type=int, default=4, help="time steps of one simulation")
    add("--p", type=float, default=0.1, help="probability that a channel is dropped")
    add("--p-path", type=float, default=0.1, help="probability that a branch is dropped")
    add("--output", type=Path, default="output/convolutional.png", help="PNG to write")
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
    if options.output.suffix != ".png" or options.output.is_dir():
        refuse("output", "a file that ends in .png")
    try:  # before the training, which would be lost
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        refuse("output", "in a folder that exists or can be made")

    digits = load_data()
    print("dropout                          test accuracy (%)")
    accuracy = {}
    held = f"channels p={options.p:g}, branches p={options.p_path:g}"
    for name, p, p_path in ("none", 0.0, 0.0), (held, options.p, options.p_path):
        model = ResNet(p, p_path)
        variables, accuracy[name] = train(model, digits, options)
        print(f"{name:33}{accuracy[name][-1]:.1f}", flush=True)
    x_seq = as_sequence(digits.train_images[:BATCH_SIZE], options.steps)
    print(f"\nmasks of one batch {list(x_seq.shape)}, held over its {options.steps} steps:")
    for path, mask in masks_of(model, variables, x_seq).items():
        print(f"  {path:26}{list(mask.shape)}, {100 * mask.mean():.1f} % kept")
    spikes, kept = channels_of(model, variables, x_seq)
    draw_picture(options.output, accuracy, spikes, kept)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
