"""Trains a spiking network on handwritten digits with three kinds of dropout.

The three models differ in one thing, the class of their dropout layers: there is
none, it is Flax's, which draws a new mask at every time step, or it is that of
``snn_dropout``, which holds one mask over the simulation. Seed by seed they start
from the same parameters and see the same batches in the same order.

It prints the test accuracy of each and writes a picture: the learning curves, and
what the two dropouts do to the same spikes. From the root of the repository::

  python -m pip install -e '.[examples]'
  python examples/train_digits.py

``train_digits_nnx.py`` is the same program with the network in Flax NNX.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

try:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm

    import snn_dropout as sd
except ImportError as error:
    raise SystemExit(
        f"This example could not start: {error}. Install what it needs with\n"
        f"  python -m pip install -e '.[examples]'"
    ) from error

PER_STEP, HELD = "new mask every step", "one mask per simulation"
MODELS: dict[str, Callable[..., nn.Module] | None] = {
    "no dropout": None,
    PER_STEP: nn.Dropout,
    HELD: sd.Dropout,
}
HIDDEN_UNITS = 128
BATCH_SIZE = 32
LEARNING_RATE = 2e-3


class Digits(NamedTuple):
    """Images ``[N, 64]`` with pixels in [0, 1], and their labels ``[N]``."""

    train_images: jax.Array
    test_images: jax.Array
    train_labels: jax.Array
    test_labels: jax.Array


def load_data() -> Digits:
    """Loads scikit-learn's digits, split in the same way for every model and seed."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = train_test_split(images, labels, test_size=450, stratify=labels, random_state=0)
    return Digits(*map(jnp.asarray, split))


@jax.custom_jvp
def spike(distance: jax.Array) -> jax.Array:
    """Fires above the threshold; its derivative is a smooth surrogate."""
    return (distance > 0).astype(distance.dtype)


@spike.defjvp
def _spike_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> Any:
    (distance,), (tangent,) = primals, tangents
    return spike(distance), tangent / (1 + jnp.abs(distance)) ** 2


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with threshold 1, reset to 0 by a spike."""

    decay: float = 0.5

    @nn.compact
    def __call__(self, current: jax.Array) -> jax.Array:
        """Runs one time step of ``[N, units]``."""
        v = self.variable("state", "v", jnp.zeros_like, current, float)
        potential = self.decay * v.value + current
        spikes = spike(potential - 1)
        if not self.is_initializing():
            v.value = potential * (1 - spikes)
        return spikes


class Network(nn.Module):
    """Two hidden layers of neurons, a dropout behind each, and a linear read-out."""

    dropout: Callable[..., nn.Module] | None
    p: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Runs one time step, from images ``[N, 64]`` to scores ``[N, 10]``."""
        for layer in ("hidden_1", "hidden_2"):
            # Flax draws parameters by the layer's name, so the names must not depend
            # on whether there is a dropout between them.
            x = nn.Dense(HIDDEN_UNITS, name=f"{layer}_dense")(x)
            x = LIF(name=f"{layer}_lif")(x)
            self.sow("intermediates", f"{layer}_fired", x)
            if self.dropout is not None:
                dropout = self.dropout(self.p, name=f"{layer}_dropout")
                x = dropout(x, deterministic=not train)
            self.sow("intermediates", f"{layer}_passed", x)
        return nn.Dense(10, name="readout")(x)


@singledispatch
def init_params(model: Any, key: jax.Array) -> Any:
    """Draws the first parameters."""
    return model.init(key, jnp.zeros((1, 64)), train=False)["params"]


@singledispatch
def run(
    model: Any, params: Any, images: jax.Array, steps: int, **options: Any
) -> tuple[jax.Array, Any]:
    """Simulates ``steps`` time steps of a constant input; averages the scores."""
    x_seq = jnp.broadcast_to(images, (steps, *images.shape))
    # Without a state in the variables, each simulation starts from the first one.
    y_seq, updated = sd.simulate(model, {"params": params}, x_seq, **options)
    return y_seq.mean(axis=0), updated


def train(
    model: Any, digits: Digits, options: argparse.Namespace, progress: Callable[[], Any]
) -> tuple[Any, np.ndarray]:
    """Trains one model from all seeds at once; ``progress`` is called after each epoch.

    Returns:
      The parameters, their first axis the seeds, and the test accuracy in percent,
      ``[epochs, seeds]``.
    """
    train_size = len(digits.train_labels)
    batches = train_size // BATCH_SIZE
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, options.epochs * batches)
    optimizer = optax.adam(schedule)

    def loss(params: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        images, labels = digits.train_images[batch], digits.train_labels[batch]
        rngs = {"dropout": key}
        scores, _ = run(model, params, images, options.steps, rngs=rngs, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    def train_step(state: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, *inputs), moments)
        return (optax.apply_updates(params, updates), moments), None

    def train_epoch(state: Any, seed: jax.Array, epoch: int) -> tuple[Any, jax.Array]:
        order_key, dropout_key = jax.random.split(jax.random.fold_in(seed, epoch))
        order = jax.random.permutation(order_key, train_size)
        # The last images of the order do not fill a batch and wait for another epoch.
        order = order[: batches * BATCH_SIZE].reshape(batches, BATCH_SIZE)
        keys = jax.random.split(dropout_key, batches)
        state, _ = jax.lax.scan(train_step, state, (order, keys))
        scores, _ = run(model, state[0], digits.test_images, options.steps, train=False)
        return state, 100 * (scores.argmax(axis=-1) == digits.test_labels).mean()

    seeds = jax.vmap(jax.random.key)(jnp.arange(options.seeds))
    params = jax.jit(jax.vmap(lambda seed: init_params(model, seed)))(seeds)
    state = params, jax.vmap(optimizer.init)(params)
    compiled_epoch = jax.jit(jax.vmap(train_epoch, in_axes=(0, 0, None)))
    accuracy = []
    for epoch in range(options.epochs):
        state, percent = compiled_epoch(state, seeds, epoch)
        accuracy.append(np.asarray(percent))
        progress()
    return state[0], np.stack(accuracy)


def record_spikes(
    model: Any, params: Any, image: jax.Array, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns where hidden layer 1 fired and what its dropout passed, ``[T, units]``."""
    rngs = {"dropout": jax.random.key(0)}
    _, updated = run(
        model, params, image[None], steps, rngs=rngs, mutable=["intermediates"], train=True
    )
    names = ("hidden_1_fired", "hidden_1_passed")
    fired, passed = (updated["intermediates"][name][0][:, 0] > 0 for name in names)
    return np.asarray(fired), np.asarray(passed)


def draw_curves(axes: Axes, accuracy: dict[str, np.ndarray]) -> None:
    """Draws test accuracy against epoch, with a band of one standard deviation."""
    for name, percent in accuracy.items():
        epochs = np.arange(1, len(percent) + 1)
        mean = percent.mean(axis=1)
        spread = percent.std(axis=1, ddof=min(1, percent.shape[1] - 1))
        (line,) = axes.plot(epochs, mean, ".-", label=name)
        band = mean - spread, mean + spread
        axes.fill_between(epochs, *band, color=line.get_color(), alpha=0.2, lw=0)
    # The first epochs leave through the bottom: the last ones differ by little.
    worst = min(percent[-1].min() for percent in accuracy.values())
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="Learning curves")
    axes.set_ylim(max(0, 100 - 4 * (100 - worst)), 100)
    axes.locator_params("x", integer=True)
    axes.legend(loc="lower right", title="mean ± standard deviation")


def draw_raster(axes: Axes, name: str, fired: np.ndarray, passed: np.ndarray) -> None:
    """Draws the spikes of the units that fire, and which of them were dropped."""
    active = fired.any(axis=0)
    fired, passed = fired[:, active], passed[:, active]
    steps = len(fired)
    silent = np.flatnonzero(~passed.any(axis=0))
    bars = axes.barh(silent, steps, height=1, left=-0.5, color="mistyrose")
    bars.set_label("all spikes dropped")
    axes.plot(*passed.nonzero(), "o", color="black", label="spike passed on")
    axes.plot(*(fired & ~passed).nonzero(), "x", color="tab:red", label="spike dropped")
    axes.set(title=name, xlabel="time step", xlim=(-0.5, steps - 0.5))
    axes.locator_params(integer=True)


def draw_picture(
    path: Path,
    accuracy: dict[str, np.ndarray],
    rasters: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Writes the learning curves and, beside them, one raster for each dropout."""
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    draw_curves(left.subplots(), accuracy)
    panels = right.subplots(1, len(rasters), sharey=True)
    for axes, (name, spikes) in zip(panels, rasters.items(), strict=True):
        draw_raster(axes, name, *spikes)
    panels[0].set_ylabel("unit of hidden layer 1, of those that fire")
    right.suptitle("The same spikes, dropped in two ways")
    right.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def summary(percent: np.ndarray, sign: str = "") -> str:
    """Words one value per seed as mean and standard deviation."""
    if len(percent) == 1:
        return f"{percent[0]:{sign}.2f} (one seed)"
    return f"{percent.mean():{sign}.2f} ± {percent.std(ddof=1):.2f}"


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a spiking network on digits with three kinds of dropout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=60, help="passes over the training images")
    add("--seeds", type=int, default=5, help="how many times each model is trained")
    add("--p", type=float, default=0.5, help="probability of being dropped, in [0, 1)")
    add("--steps", type=int, default=8, help="time steps of one simulation")
    add("--output", type=Path, default="output/train_digits.png", help="PNG to write")
    options = parser.parse_args(argv)

    def refuse(name: str, rule: str) -> None:
        parser.error(
            f"--{name} must be {rule}, but got {getattr(options, name)}; type for "
            f"example --{name} {parser.get_default(name)}"
        )

    for name in ("epochs", "seeds", "steps"):
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
    return options


def main(
    argv: Sequence[str] | None = None,
    network: Callable[[Any, float], Any] = Network,
    kinds: Mapping[str, Any] = MODELS,
) -> None:
    """Trains the three models, prints a table and writes the picture."""
    options = parse_options(argv)
    digits = load_data()
    print(
        f"training images: {len(digits.train_labels)}, test images: "
        f"{len(digits.test_labels)}, epochs: {options.epochs}, seeds: {options.seeds}, "
        f"time steps: {options.steps}, p: {options.p}",
        flush=True,
    )
    models = {name: network(cls, options.p) for name, cls in kinds.items()}
    params, accuracy = {}, {}
    # `disable=None` leaves the bar out where the output is a log.
    with tqdm(total=len(models) * options.epochs, unit="epoch", disable=None) as bar:
        for name, model in models.items():
            bar.set_description(name)
            params[name], accuracy[name] = train(model, digits, options, bar.update)

    print(f"\n{'model':26}test accuracy (%), mean ± standard deviation over seeds")
    for name, percent in accuracy.items():
        print(f"{name:26}{summary(percent[-1])}")
    difference = accuracy[HELD][-1] - accuracy[PER_STEP][-1]
    print(
        f"\nThe difference '{HELD}' minus '{PER_STEP}', taken seed by seed, is "
        f"{summary(difference, '+')} percentage points."
    )

    first_seed = jax.tree.map(lambda leaf: leaf[0], params[HELD])
    rasters = {
        name: record_spikes(models[name], first_seed, digits.test_images[0], options.steps)
        for name in (PER_STEP, HELD)
    }
    draw_picture(options.output, accuracy, rasters)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
