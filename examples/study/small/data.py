"""The data sets: packages ship them, and each is split once for all conditions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from study.names import DIGITS, DIGITS_200, VOWELS

VALIDATION_SHARE = 0.2


class Examples(NamedTuple):
    """Inputs of some examples, and what is known of them.

    Attributes:
      inputs: probabilities of a spike at every time step, ``[N, I]``, or series
        ``[N, T, I]`` with zeros behind their end.
      labels: ``[N]``.
      lengths: the time steps that are real, ``[N]``.
    """

    inputs: jax.Array
    labels: jax.Array
    lengths: jax.Array


class Data(NamedTuple):
    """The examples to train with, and those to test with."""

    train: Examples
    test: Examples


def load(name: str, steps: int) -> Data:
    """Loads a data set for simulations of so many time steps; series are cut there."""
    if name == VOWELS:
        return _load_vowels(steps)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    train, test = _split(np.arange(len(labels)), labels, 0.5)
    if name == DIGITS_200:
        _, train = _split(train, labels, 200)
    parts = (_examples(images[i], labels[i], np.full(len(i), steps)) for i in (train, test))
    return Data(*parts)


def fit_and_validation(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Splits training examples: indices to fit parameters with, and to choose ``p``."""
    labels = np.asarray(examples.labels)
    return _split(np.arange(len(labels)), labels, VALIDATION_SHARE)


def take(examples: Examples, indices: np.ndarray | jax.Array) -> Examples:
    """Takes some of the examples."""
    return Examples(*(field[indices] for field in examples))


def present(examples: Examples, key: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """Makes the input ``[T, N, I]``, and the weight ``[T, N]`` of the scores of a step.

    Probabilities become spikes, drawn from the key. The weights average over the steps
    that are real.
    """
    if examples.inputs.ndim == 2:
        shape = (steps, *examples.inputs.shape)
        x_seq = jax.random.bernoulli(key, examples.inputs[None], shape).astype(jnp.float32)
    else:
        x_seq = jnp.moveaxis(examples.inputs, 1, 0)
    lengths = examples.lengths[None]
    return x_seq, (jnp.arange(steps)[:, None] < lengths) / lengths


def _load_vowels(steps: int) -> Data:
    try:
        from sktime.datasets import load_japanese_vowels
    except ImportError as error:
        raise SystemExit(
            f"The vowels could not be loaded: {error}. Install what they need with\n"
            "  python -m pip install -e '.[study]'\n"
            f"or leave them out with --data {DIGITS} {DIGITS_200}"
        ) from error
    parts = []
    for split in ("train", "test"):
        frame, speakers = load_japanese_vowels(split=split)
        series = [np.stack(row, axis=-1)[:steps] for row in frame.to_numpy()]
        parts.append((series, speakers.astype(int) - 1))
    heard = np.concatenate(parts[0][0])  # the scale is that of the training series alone
    mean, deviation = heard.mean(axis=0), heard.std(axis=0)
    padded = []
    for series, labels in parts:
        inputs = np.zeros((len(series), steps, len(mean)), np.float32)
        for row, one in zip(inputs, series, strict=True):
            row[: len(one)] = (one - mean) / deviation
        padded.append(_examples(inputs, labels, np.array([len(one) for one in series])))
    return Data(*padded)


def _examples(inputs: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> Examples:
    return Examples(*map(jnp.asarray, (inputs, labels, lengths)))


def _split(
    indices: np.ndarray, labels: np.ndarray, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Splits with the same share of each class; ``size`` is that of the second part."""
    first, second = train_test_split(
        indices, test_size=size, stratify=labels[indices], random_state=0
    )
    return first, second
