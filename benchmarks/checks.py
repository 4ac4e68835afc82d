"""What is timed must be right: values, keep rates, masks that are held or are not."""

import math
from typing import Any

import numpy as np

# A right implementation is that far off once in 500 million checks.
SIGMAS = 6.0


class WrongResultError(Exception):
    """An implementation does not compute what its row says, so it is not timed."""


def check_close(what: str, found: Any, expected: Any) -> None:
    """Raises unless two arrays are equal but for rounding."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        raise WrongResultError(f"{what}: shape {found.shape}, expected {expected.shape}")
    if not np.allclose(found, expected, rtol=1e-5, atol=1e-5):
        raise WrongResultError(f"{what}: off by up to {np.abs(found - expected).max():g}")


def check_count(what: str, count: float, trials: int, chance: float) -> None:
    """Raises unless independent trials of that chance give such a count."""
    expected = trials * chance
    bound = SIGMAS * math.sqrt(expected * (1 - chance))
    if not abs(count - expected) <= bound:
        message = f"{what}: {count:g} of {trials}, expected {expected:.0f} +- {bound:.0f}"
        raise WrongResultError(message)


def check_masks(kept: np.ndarray, p: float, held: bool = True) -> None:
    """Raises unless masks ``[T, ...]`` keep as often as they must, and are held or not."""
    if held and (kept != kept[:1]).any():
        raise WrongResultError("the mask is not the same at every time step")
    masks = kept[:1] if held else kept
    check_count("elements kept", masks.sum(), masks.size, 1 - p)
    if not held:
        changed = (kept[0] != kept[-1]).sum()
        chance = 2 * p * (1 - p)
        check_count("elements that change over time", changed, kept[0].size, chance)


def check_dropout(
    x_seq: Any, y_seq: Any, p: float, *, held: bool = True, shared: tuple[int, ...] = ()
) -> None:
    """Raises unless ``y_seq`` is ``x_seq`` after dropout.

    Args:
      x_seq: the input ``[T, N, ...]``, without zeros.
      y_seq: the output.
      p: the probability of being dropped.
      held: whether all steps have one mask, or each its own.
      shared: the axes over which a mask element is shared, but time.
    """
    x_seq, y_seq = np.asarray(x_seq), np.asarray(y_seq)
    kept = y_seq != 0
    check_close("values", y_seq, np.where(kept, x_seq / np.float32(1 - p), 0))
    for axis in shared:
        if (kept != kept.take([0], axis)).any():
            raise WrongResultError(f"the mask is not shared over axis {axis}")
        kept = kept.take([0], axis)
    check_masks(kept, p, held)


def check_connections(y_seq: Any, dx_seq: Any, dkernel: Any, p: float, held: bool) -> None:
    """Raises unless outputs ``[T, N, O]`` and gradients count connections that are left.

    That is what they do for weights, inputs and cotangents of 1, and a bias of 0.
    """
    y_seq, dx_seq, dkernel = (np.asarray(a, float) for a in (y_seq, dx_seq, dkernel))
    if (y_seq == y_seq[:1]).all() != held:
        raise WrongResultError("masks are held where they must not be, or not held")
    steps, examples, _ = y_seq.shape
    # A connection of a held mask is counted at every step.
    repeats = steps if held else 1
    trials = steps * examples * dkernel.size // repeats
    for name, counts in (("outputs", y_seq), ("dx", dx_seq), ("dkernel", dkernel)):
        check_count(f"connections kept, by {name}", counts.sum() / repeats, trials, 1 - p)


def check_inference(
    y: Any, x: Any, kernel: Any, bias: Any, p: float, samples: int | None
) -> None:
    """Raises unless ``y`` is the expected ReLU, or the average of that many draws."""
    y, x, kernel, bias = (np.asarray(a, float) for a in (y, x, kernel, bias))
    mean = (1 - p) * (x @ kernel + bias)
    variance = p * (1 - p) * (x**2 @ kernel**2 + bias**2)
    error = 1e-4 if samples is None else SIGMAS * np.sqrt(variance / samples)
    if not (np.abs(y - expected_relu(mean, variance)) <= error).all():
        raise WrongResultError("the average activation is not the expected one")


def expected_relu(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Returns ``E[max(z, 0)]`` for a normal ``z``, element by element."""
    deviation = np.sqrt(variance)
    ratio = mean / deviation
    density = np.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    below = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))(ratio)
    return mean * below + deviation * density


def check_training(loss: float, masks: list[Any], p: float, moved: list[bool]) -> None:
    """Raises unless a step has a loss, two masks if ``p``, and all parameters moved."""
    if p and len(masks) != 2:
        raise WrongResultError(f"{len(masks)} masks in place of 2")
    for mask in masks:
        check_masks(np.asarray(mask)[None] != 0, p)
    if not math.isfinite(loss) or not all(moved):
        raise WrongResultError(f"loss {loss}, parameters that moved: {moved}")
