"""Shows how sure a spiking network is of digits that it was never trained on.

A network is trained on clean, upright digits with held dropout. Then ``monte_carlo``
simulates it many times, each time under other masks, on test digits that are corrupted
or turned further and further. Predictive entropy is all uncertainty of the prediction,
mutual information the part of it that the masks make: how much the sub-networks
contradict each other. Both rise as pixels are replaced by noise. They rise as digits are
turned, too, and then fall again: a digit that lies on its side looks to this network
like another digit, of which it is sure and wrong.

It prints a table and writes a picture. From the root of the repository::

  python -m pip install -e '.[examples]'
  python examples/uncertainty.py
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from matplotlib.figure import Figure
    from scipy.ndimage import rotate
    from tqdm import tqdm
    from train_digits import Network, load_data, train

    import snn_dropout as sd
except ImportError as error:
    raise SystemExit(
        f"This example could not start: {error}. Install what it needs with\n"
        f"  python -m pip install -e '.[examples]'"
    ) from error

SHOWN = 4  # one of the test digits, to be seen after every change


class Row(NamedTuple):
    """What is measured after one change, means over the test digits."""

    amount: float
    accuracy: float  # percent
    predictive_entropy: float  # nats
    mutual_information: float  # nats


class Change(NamedTuple):
    """A way to change images ``[N, 64]``, by amounts."""

    name: str
    unit: str
    amounts: np.ndarray
    apply: Callable[[np.ndarray, float], np.ndarray]


def corrupted(images: np.ndarray, percent: float) -> np.ndarray:
    """Replaces that share of the pixels by uniform noise."""
    random = np.random.default_rng(0)
    chosen, noise = random.random(images.shape), random.random(images.shape)
    return np.where(100 * chosen < percent, noise, images)


def turned(images: np.ndarray, angle: float) -> np.ndarray:
    """Turns images by an angle in degrees; corners are filled with 0."""
    square = images.reshape(-1, 8, 8)
    return rotate(square, angle, axes=(2, 1), reshape=False, order=1).reshape(-1, 64)


CHANGES = (
    Change("pixels replaced by noise", "%", np.arange(0, 101, 20), corrupted),
    Change("turned", "°", np.arange(0, 91, 15), turned),
)


def measure(options: argparse.Namespace) -> list[list[Row]]:
    """Trains the network and measures it after each amount of each change."""
    digits = load_data()
    model = Network(sd.Dropout, options.p)
    # `disable=None` leaves the bar out where the output is a log.
    with tqdm(total=options.epochs, unit="epoch", disable=None) as bar:
        params, _ = train(model, digits, options, bar.update)
    params = jax.tree.map(lambda leaf: leaf[0], params)

    @jax.jit
    def judge(images: jax.Array) -> sd.linen.uncertainty.Uncertainty:
        return sd.monte_carlo(
            model,
            {"params": params},
            jnp.broadcast_to(images, (options.steps, *images.shape)),
            rngs={"dropout": jax.random.key(1)},
            samples=options.samples,
            train=False,
        )

    def row(change: Change, amount: float) -> Row:
        images = change.apply(np.asarray(digits.test_images), amount)
        found = judge(jnp.asarray(images, jnp.float32))
        right = found.mean.argmax(-1) == digits.test_labels
        entropy, information = found.predictive_entropy, found.mutual_information
        numbers = 100 * right.mean(), entropy.mean(), information.mean()
        return Row(amount, *map(float, numbers))

    return [[row(change, amount) for amount in change.amounts] for change in CHANGES]


def draw_picture(path: Path, table: Sequence[Sequence[Row]]) -> None:
    """Writes one digit after each amount of a change above the curves of that change."""
    image = np.asarray(load_data().test_images[SHOWN : SHOWN + 1])
    # One below the other: side by side they are too small for a narrow screen.
    figure = Figure(figsize=(7, 8), layout="constrained")
    halves = figure.subfigures(2, 1)
    for half, change, rows in zip(halves, CHANGES, table, strict=True):
        above, below = half.subfigures(2, 1, height_ratios=(1, 4))
        for axes, amount in zip(above.subplots(1, len(rows)), change.amounts, strict=True):
            changed = change.apply(image, amount).reshape(8, 8)
            axes.imshow(changed, cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], title=f"{amount} {change.unit}")
        amounts, percent, entropy, information = zip(*rows, strict=True)
        axes = below.subplots()
        lines = axes.plot(amounts, entropy, "o-", label="predictive entropy")
        lines += axes.plot(amounts, information, "s-", label="mutual information")
        alike = axes.axhline(np.log(10), color="gray", ls=":", label="ten classes alike")
        axes.set(xlabel=f"{change.name} ({change.unit})", ylabel="mean over digits (nats)")
        axes.set_ylim(0, 2.5)
        right = axes.twinx()
        lines += right.plot(amounts, percent, "^--", color="tab:green", label="accuracy")
        right.set(ylabel="accuracy (%), dashed", ylim=(0, 100))
    figure.legend(handles=[*lines, alike], loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description="Shows the uncertainty of a spiking network on changed digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    number = partial(add, type=int)
    number("--epochs", default=60, help="passes over the training images")
    number("--samples", default=64, help="simulations of each digit")
    number("--steps", default=8, help="time steps of one simulation")
    add("--p", type=float, default=0.5, help="probability of being dropped, in [0, 1)")
    add("--output", type=Path, default="output/uncertainty.png", help="PNG to write")
    options = parser.parse_args(argv)

    def refuse(name: str, rule: str) -> None:
        parser.error(
            f"--{name} must be {rule}, but got {getattr(options, name)}; type for "
            f"example --{name} {parser.get_default(name)}"
        )

    for name in ("epochs", "samples", "steps"):
        if getattr(options, name) < 1:
            refuse(name, "1 or more")
    if not 0 <= options.p < 1:  # NaN is refused too
        refuse("p", "in [0, 1)")
    if options.output.suffix != ".png" or options.output.is_dir():
        refuse("output", "a file that ends in .png")
    try:  # before the training, which would be lost
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        refuse("output", "in a folder that exists or can be made")
    options.seeds = 1
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, measures, prints the table and writes the picture."""
    options = parse_options(argv)
    table = measure(options)
    for change, rows in zip(CHANGES, table, strict=True):
        print(f"\n{change.name:24}  accuracy  predictive entropy  mutual information")
        for row in rows:
            print(
                f"{row.amount:22.0f} {change.unit}  {row.accuracy:6.1f} %"
                f"  {row.predictive_entropy:13.3f} nats"
                f"  {row.mutual_information:13.3f} nats"
            )
    draw_picture(options.output, table)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
