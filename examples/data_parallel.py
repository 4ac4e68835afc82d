"""Trains the spiking network of ``train_digits.py`` on all devices that there are.

Every batch is split over the devices, and over the processes of a cluster, with
``jax.sharding``; the parameters are on all of them. Nothing in the network or in the
training step knows of it. The same training then runs on one device alone, and the two
curves of the loss are compared: the masks are the same, only sums are taken in another
order. It prints the largest difference.

It computes in double precision. In single precision the curves agree to 1e-7 only until
a rounding error decides whether a neuron fires, which takes about a hundred steps; from
there on they are two trainings, equally good.

From the root of the repository, on the devices of one machine (a machine without
accelerators can pretend to have several, say ``XLA_FLAGS=
--xla_force_host_platform_device_count=2``)::

  python -m pip install -e '.[examples]'
  python examples/data_parallel.py --output output/data_parallel.png

On several machines, or as several processes of one, start it on each with the address of
the first one and a number of its own::

  python examples/data_parallel.py --coordinator 127.0.0.1:7500 --processes 2 --process-id 0
  python examples/data_parallel.py --coordinator 127.0.0.1:7500 --processes 2 --process-id 1
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import jax
    import numpy as np
    import optax
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
    from matplotlib.figure import Figure
    from tqdm import tqdm
    from train_digits import Digits, Network, init_params, load_data, run

    import snn_dropout as sd
except ImportError as error:
    raise SystemExit(
        f"This example could not start: {error}. Install what it needs with\n"
        f"  python -m pip install -e '.[examples]'"
    ) from error

BATCH_SIZE = 96
LEARNING_RATE = 4e-3
TIME_STEPS = 8


class Result(NamedTuple):
    """The loss of every training step, and the share of the test images that is right."""

    losses: np.ndarray
    accuracy: float


def train(digits: Digits, options: argparse.Namespace, devices: Sequence[Any]) -> Result:
    """Trains on the given devices, each batch split evenly over them."""
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    model = Network(sd.Dropout, options.p)
    train_images, test_images = (
        np.asarray(images, np.float64)
        for images in (digits.train_images, digits.test_images)
    )
    train_labels = np.asarray(digits.train_labels)
    train_size = len(train_labels)
    batches = train_size // BATCH_SIZE
    optimizer = optax.adam(LEARNING_RATE)

    def place(array: np.ndarray, *axes: str) -> jax.Array:
        """Puts an array on the devices, each process the part that is its own."""
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    @jax.jit
    def begin() -> Any:
        params = optax.tree.cast(init_params(model, jax.random.key(0)), np.float64)
        return params, optimizer.init(params)

    @jax.jit
    def step(state: Any, images: jax.Array, labels: jax.Array, number: jax.Array) -> Any:
        params, moments = state
        rngs = {"dropout": jax.random.fold_in(jax.random.key(1), number)}

        def loss(params: Any) -> jax.Array:
            scores, _ = run(model, params, images, TIME_STEPS, rngs=rngs, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), value

    @jax.jit
    def accuracy(params: Any) -> jax.Array:
        scores, _ = run(model, params, test_images, TIME_STEPS, train=False)
        return (scores.argmax(axis=-1) == digits.test_labels).mean()

    state = jax.tree.map(lambda leaf: place(np.asarray(leaf)), begin())
    order = np.random.default_rng(0)
    losses = []
    for epoch in tqdm(range(options.epochs), unit="epoch", disable=None):
        shuffled = order.permutation(train_size)[: batches * BATCH_SIZE]
        for index, batch in enumerate(shuffled.reshape(batches, BATCH_SIZE)):
            images, labels = (
                place(array[batch], "data") for array in (train_images, train_labels)
            )
            number = np.uint32(epoch * batches + index)
            state, value = step(state, images, labels, number)
            # Waited for: simulated devices share threads, and steps that pile up would
            # take them from the exchange that others wait for.
            losses.append(float(value))
    params = jax.tree.map(np.asarray, state[0])
    return Result(np.array(losses), float(accuracy(params)))


def draw_picture(path: Path, parallel: Result, alone: Result, count: int) -> None:
    """Writes both curves of the loss, one upon the other, and their difference."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    curves, difference = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    curves.plot(alone.losses, lw=4, color="lightsteelblue", label="one device")
    curves.plot(parallel.losses, lw=1, color="navy", label=f"devices: {count}")
    curves.set(ylabel="training loss (nats)", yscale="log", title="One training, twice")
    curves.legend()
    difference.plot(np.abs(parallel.losses - alone.losses), ".", ms=3, color="tab:red")
    difference.set(xlabel="training step", ylabel="|difference| (nats)")
    difference.set_yscale("symlog", linthresh=1e-16)
    figure.savefig(path, dpi=120)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a spiking network on digits, on all devices that there are.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=20, help="passes over the training images")
    add("--p", type=float, default=0.5, help="probability of being dropped, in [0, 1)")
    add("--coordinator", help="address and port of process 0, of several processes")
    add("--processes", type=int, default=1, help="how many processes take part")
    add("--process-id", type=int, default=0, help="the number of this one")
    add("--output", type=Path, help="PNG to write")
    options = parser.parse_args(argv)

    if options.epochs < 1:
        parser.error(f"--epochs must be 1 or more, but got {options.epochs}; type 20")
    if not 0 <= options.p < 1:  # NaN is refused too
        parser.error(f"--p must be in [0, 1), but got {options.p}; type for example 0.5")
    if options.processes < 1:
        parser.error(f"--processes must be 1 or more, but got {options.processes}; type 1")
    if not 0 <= options.process_id < options.processes:
        parser.error(
            f"--process-id must be 0 to --processes minus 1, but got "
            f"{options.process_id} of {options.processes}; type for example --processes 2 "
            f"--process-id 1"
        )
    if options.processes > 1 and options.coordinator is None:
        parser.error(
            "--coordinator must be given with --processes, but was not; type for example "
            "--coordinator 127.0.0.1:7500"
        )
    if options.output is not None:  # before the training, which would be lost
        if options.output.suffix != ".png" or options.output.is_dir():
            parser.error(
                f"--output must be a file that ends in .png, but got {options.output}; "
                f"type for example --output output/data_parallel.png"
            )
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            parser.error(
                f"--output must be in a folder that exists or can be made, but got "
                f"{options.output}; type for example --output output/data_parallel.png"
            )
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Trains on all devices, then on one; prints and draws how the losses differ."""
    options = parse_options(argv)
    if options.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            options.coordinator, options.processes, options.process_id
        )
    count = jax.device_count()
    if BATCH_SIZE % count:
        raise SystemExit(
            f"A batch of {BATCH_SIZE} images can not be split evenly over {count} devices; "
            f"make fewer of them visible."
        )
    digits = load_data()
    with jax.enable_x64(True):
        parallel = train(digits, options, jax.devices())
        alone = train(digits, options, jax.local_devices()[:1])
    if options.process_id != 0:
        return

    print(
        f"devices: {count} ({jax.devices()[0].platform}), processes: "
        f"{jax.process_count()}, images a device and step: {BATCH_SIZE // count}, "
        f"training steps: {len(alone.losses)}"
    )
    print(f"{'':14}last loss   test accuracy (%)")
    for name, result in (("all devices", parallel), ("one device", alone)):
        print(f"{name:14}{result.losses[-1]:9.6f}   {100 * result.accuracy:.2f}")
    difference = np.abs(parallel.losses - alone.losses).max()
    print(f"largest difference of the losses: {difference:.1e}")
    if options.output is not None:
        draw_picture(options.output, parallel, alone, count)
        print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
