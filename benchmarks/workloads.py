"""The table of workloads: what is measured, who takes part, what is to be reached."""

import dataclasses
from typing import Any

OURS = "snn_dropout"
SAMPLED, ANALYTIC = f"{OURS}, sampled", f"{OURS}, analytic"
SIMULATE, MULTISTEP = f"{OURS}, simulate", f"{OURS}, MultiStep"
IN_NNX = f"{OURS}.nnx, simulate"
LAYERED = f"{OURS}, layer by layer"
COPY, COPIES = "limit: a copy", "limit: two copies"
UNDROPPED = "limit: without dropout"
BY_HAND = "hand-written lax.scan"
SPIKINGJELLY = "SpikingJelly"
FLAX_SHARED = "flax Dropout, broadcast_dims"
FLAX_STEPS = "flax Dropout, per step"
BRAINSTATE = "brainstate DropoutFixed"
ONE_CORE = ", one core"


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be reached within one run; one of the two bounds is given.

    Attributes:
      at_most: ours may be that many times the rival's; without a rival, that many units.
      at_least: the rival's must be that many times ours.
      aim: a stricter bound of the same kind that is hoped for.
      rival: the label of the implementation that is compared with.
      ours: the label that stands for the package.
      unit: ``"ms"``, ``"MiB"`` or ``"programs"``, those that a second call compiles.
    """

    rival: str | None = None
    _: dataclasses.KW_ONLY
    at_most: float | None = None
    at_least: float | None = None
    aim: float | None = None
    ours: str = OURS
    unit: str = "ms"


# Toy sizes: no setting is larger.
_LARGEST = {"steps": 4, "examples": 8, "units": 64, "side": 2, "channels": 32}
_LARGEST |= {"inputs": 32, "outputs": 64, "hidden": 64, "samples": 64}


@dataclasses.dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
      name: what the command line calls it.
      title: what the table calls it.
      settings: the arguments of every implementation.
      runs: the implementations, by their label in the table; see
        ``implementations.load``.
      targets: what is to be reached.
    """

    name: str
    title: str
    settings: dict[str, Any]
    runs: dict[str, str]
    targets: tuple[Target, ...]

    def small(self) -> dict[str, Any]:
        """Returns the settings for a trial run."""
        return {
            key: min(value, _LARGEST.get(key, value))
            for key, value in self.settings.items()
        }

    def beside_one_core(self) -> "Workload":
        """Returns the workload for several cores: not slower than on one of them."""
        ours = [label for label in self.runs if label.startswith(OURS)]
        alone = {label + ONE_CORE: self.runs[label] for label in ours}
        # Two medians of the same thing differ by a few percent.
        targets = (Target(label + ONE_CORE, at_most=1.05, ours=label) for label in ours)
        return dataclasses.replace(self, runs=self.runs | alone, targets=tuple(targets))


def _dropout(name: str, title: str, p: float, *targets: Target) -> Workload:
    gradient = name.endswith("gradient")
    runs = {
        OURS: "dropout:dropout ours",
        COPIES if gradient else COPY: "dropout:dropout limit",
        SPIKINGJELLY: "torch_spikingjelly:dropout",
        FLAX_SHARED: "dropout:dropout flax",
    }
    if not gradient:
        runs[BRAINSTATE] = "brainstate_fixed:dropout"
    settings = {"steps": 16, "examples": 64, "units": 4096, "p": p, "gradient": gradient}
    title = f"Dropout 'm' {title}, [16, 64, 4096], p={p}"
    return Workload(name, title, settings, runs, targets)


_CONNECTIONS = {"steps": 8, "examples": 64, "inputs": 512, "outputs": 512, "p": 0.5}


def _dropconnect(name: str, aim: float) -> Workload:
    return Workload(
        f"dropconnect-{name}",
        f"DropConnect training gradient, {name}, T=8, N=64, 512x512, p=0.5",
        {**_CONNECTIONS, "invariant": name == "invariant"},
        {
            OURS: "dropconnect:training",
            SPIKINGJELLY: "torch_spikingjelly:dropconnect_training",
        },
        (Target(SPIKINGJELLY, at_least=40, aim=aim), Target(at_most=64, unit="MiB")),
    )


_NETWORK = {"steps": 16, "examples": 64, "inputs": 784, "hidden": 512, "p": 0.5}

WORKLOADS = (
    _dropout(
        "dropout",
        "forward",
        0.5,
        Target(COPY, at_most=1.15),
        Target(SPIKINGJELLY, at_least=4),
    ),
    _dropout(
        "dropout-gradient",
        "forward and gradient",
        0.5,
        Target(COPIES, at_most=1.15),
        Target(SPIKINGJELLY, at_least=2.5),
    ),
    _dropout("dropout-p0.3", "forward", 0.3, Target(COPY, at_most=1.8, aim=1.4)),
    Workload(
        "scan",
        "Dropout in a scan of T=100 single steps, [64, 1024], p=0.5",
        {"steps": 100, "examples": 64, "units": 1024, "p": 0.5},
        {
            SIMULATE: "dropout:scan ours",
            IN_NNX: "dropout:scan nnx",
            UNDROPPED: "dropout:scan limit",
            FLAX_STEPS: "dropout:scan flax",
            SPIKINGJELLY: "torch_spikingjelly:scan",
            BRAINSTATE: "brainstate_fixed:dropout",
        },
        (
            Target(FLAX_STEPS, at_least=8, ours=SIMULATE),
            Target(UNDROPPED, at_most=2, ours=SIMULATE),
            Target(SIMULATE, at_most=1.05, ours=IN_NNX),
        ),
    ),
    Workload(
        "dropout2d",
        "Dropout2d 'm' forward, [8, 32, 16, 16, 128], p=0.2",
        {"steps": 8, "examples": 32, "side": 16, "channels": 128, "p": 0.2},
        {
            OURS: "dropout:dropout_2d ours",
            COPY: "dropout:dropout_2d limit",
            SPIKINGJELLY: "torch_spikingjelly:dropout_2d",
            FLAX_SHARED: "dropout:dropout_2d flax",
        },
        (Target(SPIKINGJELLY, at_least=4),),
    ),
    _dropconnect("fresh", aim=70),
    _dropconnect("invariant", aim=60),
    Workload(
        "dropconnect-inference",
        "DropConnect inference, ReLU, 1024 samples, T=8, N=64, 512x512",
        {**_CONNECTIONS, "samples": 1024},
        {
            SAMPLED: "dropconnect:inference sample",
            ANALYTIC: "dropconnect:inference analytic",
            SPIKINGJELLY: "torch_spikingjelly:dropconnect_inference",
        },
        (
            Target(SPIKINGJELLY, at_least=40, aim=80, ours=SAMPLED),
            Target(SPIKINGJELLY, at_least=400, aim=600, ours=ANALYTIC),
            Target(at_most=64, ours=SAMPLED, unit="MiB"),
            Target(at_most=64, ours=ANALYTIC, unit="MiB"),
        ),
    ),
    Workload(
        "network",
        "SNN 784-512-512-10 with two Dropouts, T=16, N=64, train step",
        _NETWORK,
        {
            SIMULATE: "network:train simulate",
            IN_NNX: "nnx_network:train",
            LAYERED: "network:train layer-by-layer",
            UNDROPPED: "network:train_without_dropout",
            SPIKINGJELLY: "torch_spikingjelly:train_network",
        },
        (
            # Which runs layer by layer too.
            Target(SPIKINGJELLY, at_least=1.5, ours=LAYERED),
            Target(SIMULATE, at_most=1.05, ours=IN_NNX),
        ),
    ),
    Workload(
        "compile",
        "compiling the SNN's training step",
        _NETWORK,
        {
            SIMULATE: "network:compiling simulate",
            MULTISTEP: "network:compiling multistep",
            BY_HAND: "network:compiling hand",
        },
        (
            Target(BY_HAND, at_most=1.3, ours=SIMULATE),
            Target(BY_HAND, at_most=1.3, ours=MULTISTEP),
        ),
    ),
    Workload(
        "second-call",
        "second eager call of simulate, of the SNN",
        _NETWORK,
        {SIMULATE: "network:calling eager", "the same under jit": "network:calling jitted"},
        (Target(at_most=0, ours=SIMULATE, unit="programs"),),
    ),
    Workload(
        "import",
        "importing the package, beyond jax and flax",
        {},
        {OURS: "package:importing"},
        (Target(at_most=50),),
    ),
)
