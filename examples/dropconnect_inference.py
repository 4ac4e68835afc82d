"""Compares ways of inference for one and the same network trained with DropConnect.

Training drops each connection with probability p, anew for every example; inference
does without that chance. Three ways, on the same parameters:

* mean scaling, the usual shortcut: ``activation((1 - p) (x K + b))``;
* sampled inference: the activation averaged over S Gaussian draws of its input;
* analytic inference: the exact expectation of the activation, as of S to infinity.

The network does not spike: it takes pixels as rates, and its hidden units are ReLUs,
whose expectation has a closed form. The program prints for each way the test accuracy,
how good the probabilities are and how long a call takes, and writes a picture of it.
Which way is best depends on p: compare ``--p 0.8`` with the default.
From the root of the repository::

  python -m pip install -e '.[examples]'
  python examples/dropconnect_inference.py
"""

import argparse
import time
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

WAYS = {  # `inference` and `samples_num` of the network
    "mean scaling": ("mean", 1),
    **{f"sampled, S = {count}": ("sample", count) for count in (1, 4, 16, 64, 256, 1024)},
    "analytic": ("analytic", 1),
}
TEST_SIZE = 450
LIKELIHOOD = "negative log-likelihood (nats)"
TIME = f"time for {TEST_SIZE} images (ms)"
METRICS = {  # and how each is printed
    "test accuracy (%)": ".2f",
    LIKELIHOOD: ".4f",
    "expected calibration error (%)": ".2f",
    TIME: ".2f",
}
HIDDEN_UNITS = 128
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
CALIBRATION_BINS = 15
TIMED_CALLS = 51

Scores = dict[str, np.ndarray]  # by metric, one value per seed, or one time


def load_data() -> list[jax.Array]:
    """Loads images ``[N, 64]`` for training and for test, then the labels of both."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = train_test_split(
        images, labels, test_size=TEST_SIZE, stratify=labels, random_state=0
    )
    return [jnp.asarray(part) for part in split]


class Network(nn.Module):
    """Two hidden layers that lose connections in training, and a linear read-out."""

    p: float
    inference: str = "analytic"
    samples_num: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images ``[N, 64]`` to scores ``[N, 10]``."""
        for name in ("hidden_1", "hidden_2"):
            if self.inference == "mean":
                # The parameters are named and laid out as those of nn.Dense.
                x = nn.relu((1 - self.p) * nn.Dense(HIDDEN_UNITS, name=name)(x))
                continue
            x = sd.DropConnectLinear(
                x.shape[-1],
                HIDDEN_UNITS,
                p=self.p,
                activation=nn.relu,
                inference=self.inference,
                samples_num=self.samples_num,
                name=name,
            )(x, deterministic=not train)
        return nn.Dense(10, name="readout")(x)


def log_probabilities(
    network: Network, params: Any, images: jax.Array, key: jax.Array
) -> jax.Array:
    """Runs inference: the logarithms of the class probabilities, ``[N, 10]``."""
    rngs = {"dropout": key}
    return nn.log_softmax(network.apply({"params": params}, images, train=False, rngs=rngs))


def train(
    images: jax.Array, labels: jax.Array, options: argparse.Namespace, bar: tqdm
) -> list[Any]:
    """Trains one network from all seeds at once; returns the parameters of each seed."""
    network = Network(options.p)
    batches = len(labels) // BATCH_SIZE
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, options.epochs * batches)
    optimizer = optax.adam(schedule)

    def loss(params: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        variables, rngs = {"params": params}, {"dropout": key}
        scores = network.apply(variables, images[batch], train=True, rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels[batch])
        return losses.mean()

    def train_step(state: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, *inputs), moments)
        return (optax.apply_updates(params, updates), moments), None

    def train_epoch(state: Any, seed: jax.Array, epoch: int) -> Any:
        order_key, mask_key = jax.random.split(jax.random.fold_in(seed, epoch))
        # The last images of the order do not fill a batch and wait for another epoch.
        order = jax.random.permutation(order_key, len(labels))[: batches * BATCH_SIZE]
        inputs = order.reshape(batches, BATCH_SIZE), jax.random.split(mask_key, batches)
        return jax.lax.scan(train_step, state, inputs)[0]

    def first_state(seed: jax.Array) -> Any:
        params = network.init(seed, images[:1], train=True)["params"]
        return params, optimizer.init(params)

    seeds = jax.vmap(jax.random.key)(jnp.arange(options.seeds))
    state = jax.jit(jax.vmap(first_state))(seeds)
    compiled_epoch = jax.jit(jax.vmap(train_epoch, in_axes=(0, 0, None)))
    for epoch in range(options.epochs):
        state = jax.block_until_ready(compiled_epoch(state, seeds, epoch))
        bar.update()
    return [jax.tree.map(lambda leaf, i=i: leaf[i], state[0]) for i in range(options.seeds)]


def score(log_probs: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Computes the first three metrics from logarithms of probabilities, ``[N, 10]``.

    For the expected calibration error, the images are sorted into equal-width bins of
    their largest probability; in each bin its mean is compared with the accuracy, and
    the distances are averaged over the images.
    """
    confidence = np.exp(log_probs.max(axis=1))
    correct = log_probs.argmax(axis=1) == labels
    likelihood = log_probs[np.arange(len(labels)), labels].mean()
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    excess = np.bincount(np.digitize(confidence, inner_edges), confidence - correct)
    return 100 * correct.mean(), -likelihood, 100 * np.abs(excess).sum() / len(labels)


def compare(
    params_of_seeds: list[Any], images: jax.Array, labels: jax.Array, p: float
) -> dict[str, Scores]:
    """Scores and times every way of inference on the test images."""
    # Arguments, because what depends on constants alone is computed while compiling.
    inputs = images, jax.random.key(0)
    calls: dict[str, Any] = {}
    results: dict[str, Scores] = {}
    for name, way in WAYS.items():
        call = calls[name] = jax.jit(partial(log_probabilities, Network(p, *way)))
        logs = [np.asarray(call(params, *inputs)) for params in params_of_seeds]
        by_metric = np.array([score(log, np.asarray(labels)) for log in logs]).T
        results[name] = dict(zip(METRICS, by_metric, strict=False))  # no time yet

    # In turns, so that a busy moment of the machine does not fall on one of them.
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TIMED_CALLS):
        for name, call in calls.items():
            start = time.perf_counter()
            call(params_of_seeds[0], *inputs).block_until_ready()
            milliseconds[name].append(1000 * (time.perf_counter() - start))
    for name, times in milliseconds.items():
        results[name][TIME] = np.median(times, keepdims=True)
    return results


def mean_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean and the standard deviation of a sample, 0 of a single value."""
    return values.mean(), values.std(ddof=min(1, len(values) - 1))


def summary(values: np.ndarray, form: str, sign: str = "") -> str:
    """Words one value per seed as mean and standard deviation."""
    mean, spread = mean_and_spread(values)
    return f"{mean:{sign}{form}}" + (f" ± {spread:{form}}" if len(values) > 1 else "")


def draw_metric(axes: Axes, results: dict[str, Scores], metric: str) -> None:
    """Draws a metric of sampled inference against S, and of the other ways as a level."""
    sampled = {name: count for name, (kind, count) in WAYS.items() if kind == "sample"}
    samples = list(sampled.values())
    for way, style in (("sampled", "o-"), ("mean scaling", "--"), ("analytic", "-")):
        names = sampled if way == "sampled" else [way] * len(samples)
        points = [mean_and_spread(results[name][metric]) for name in names]
        mean, spread = np.array(points).T
        (line,) = axes.plot(samples, mean, style, label=way)
        band, color = (mean - spread, mean + spread), line.get_color()
        axes.fill_between(samples, *band, color=color, alpha=0.2, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(samples, map(str, samples))
    axes.set_ylabel(metric.replace(" (", "\n("))
    axes.grid(alpha=0.3)


def draw_picture(path: Path, results: dict[str, Scores], title: str) -> None:
    """Writes all metrics but accuracy against the number of samples."""
    # One below the other: side by side they are too small for a narrow screen.
    figure = Figure(figsize=(7, 8.5), layout="constrained")
    panels = figure.subplots(len(METRICS) - 1, 1, sharex=True)
    for axes, metric in zip(panels, list(METRICS)[1:], strict=True):
        draw_metric(axes, results, metric)
    panels[-1].set(xlabel="Gaussian samples S per unit", yscale="log")
    panels[-1].yaxis.set_major_formatter("{x:g}")
    figure.suptitle(title)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        title="mean ± standard deviation over seeds",
    )
    figure.savefig(path, dpi=120)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description="Compares ways of inference for a network trained with DropConnect.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=100, help="passes over the training images")
    add("--seeds", type=int, default=3, help="how many times the network is trained")
    add("--p", type=float, default=0.5, help="probability of being dropped, in [0, 1)")
    add("--output", type=Path, default="output/dropconnect_inference.png", help="PNG file")
    options = parser.parse_args(argv)

    def refuse(name: str, rule: str) -> None:
        value, default = getattr(options, name), parser.get_default(name)
        parser.error(
            f"--{name} must be {rule}, but got {value}; type for example --{name} {default}"
        )

    for name in ("epochs", "seeds"):
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


def main(argv: Sequence[str] | None = None) -> None:
    """Trains the network, prints a table and writes the picture."""
    options = parse_options(argv)
    train_images, test_images, train_labels, test_labels = load_data()
    setting = f"p: {options.p}, epochs: {options.epochs}, seeds: {options.seeds}"
    counts = f"training images: {len(train_labels)}, test images: {len(test_labels)}"
    print(f"{counts}, {setting}, device: {jax.devices()[0].device_kind}", flush=True)
    # `disable=None` leaves the bar out where the output is a log.
    with tqdm(total=options.epochs, unit="epoch", disable=None) as bar:
        params_of_seeds = train(train_images, train_labels, options, bar)
    results = compare(params_of_seeds, test_images, test_labels, options.p)

    print("\n" + f"{'inference':20}" + "  ".join(METRICS))
    for name, scores in results.items():
        cells = (
            f"{summary(scores[key], form):{len(key)}}" for key, form in METRICS.items()
        )
        print(f"{name:20}{'  '.join(cells)}".rstrip())
    difference = results["analytic"][LIKELIHOOD] - results["mean scaling"][LIKELIHOOD]
    print(
        f"\nMean ± standard deviation over seeds. The calibration error has "
        f"{CALIBRATION_BINS} equal-width bins.\nThe time is the median of {TIMED_CALLS} "
        f"calls of a compiled function.\n\nThe difference 'analytic' minus 'mean "
        f"scaling' in {LIKELIHOOD},\ntaken seed by seed, is "
        f"{summary(difference, '.4f', '+')}; below 0, 'analytic' is better."
    )
    draw_picture(options.output, results, f"Inference after DropConnect ({setting})")
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
