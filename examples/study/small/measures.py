"""What is measured on trained networks: one number for each seed."""

import time
from collections.abc import Callable
from functools import cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dropconnect_inference import score
from sklearn.metrics import roc_auc_score
from uncertainty import corrupted, turned

import snn_dropout as sd
from snn_dropout.linen.uncertainty import Uncertainty
from study.names import (
    ACCURACY,
    CALIBRATION,
    LIKELIHOOD,
    NONE,
    SPREAD,
    STEP_SPREAD,
    TIME,
)
from study.small.data import Examples, present
from study.small.network import DROPOUTS, Network
from study.small.training import scores

CHANGES = {  # of the images, and what makes them
    "30 % of the pixels noise": partial(corrupted, percent=30),
    "turned by 45°": partial(turned, angle=45),
}
TIMED_CALLS = 10  # at most; the best of them counts, for other work goes on beside

Values = dict[str, np.ndarray]  # by measure, ``[seeds]``


class Subject(NamedTuple):
    """Trained networks, and what they are shown.

    Attributes:
      network: the network of all seeds.
      steps: time steps of a simulation.
      examples: what it is shown.
      params: ``[seeds, ...]``.
      keys: of input spikes, samples and masks, ``[seeds]``.
    """

    network: Network
    steps: int
    examples: Examples
    params: Any
    keys: jax.Array

    def run(self, function: Callable[..., Any]) -> Any:
        """Calls the function for one seed after the other; stacks what it returns."""
        found = []
        for seed in range(len(self.keys)):
            params, key = jax.tree.map(itemgetter(seed), (self.params, self.keys))
            arguments = function, self.network, self.steps, self.examples, params, key
            found.append(jax.block_until_ready(_compiled(*arguments)))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def judge(subject: Subject, masks: int | None = None) -> Values:
    """Judges inference, or the mean of the scores under so many masks as in training."""
    if masks is None and subject.network.condition in DROPOUTS:
        # Dropout does nothing in inference: its networks share the program of plain ones.
        plain = subject.network.copy(condition=NONE, p=0.0)
        subject = subject._replace(network=plain)
    logits = subject.run(_way(masks))
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    labels = np.asarray(subject.examples.labels)
    judged = np.array([score(of_seed, labels) for of_seed in log_probs])
    return dict(zip((ACCURACY, LIKELIHOOD, CALIBRATION), judged.T, strict=True))


def time_call(subject: Subject, masks: int | None = None) -> Values:
    """Times what ``judge`` does for the first seed, in milliseconds."""
    params, keys = jax.tree.map(lambda leaf: leaf[:1], (subject.params, subject.keys))
    first, way = subject._replace(params=params, keys=keys), _way(masks)
    first.run(way)
    seconds: list[float] = []
    while len(seconds) < TIMED_CALLS and sum(seconds) < 1:
        start = time.perf_counter()
        first.run(way)
        seconds.append(time.perf_counter() - start)
    return {TIME: np.array([1000 * min(seconds)])}


def spread(subject: Subject, masks: int) -> Values:
    """Measures how far scores differ from mask to mask, for the same input spikes.

    It is the standard deviation over masks, its square averaged over examples and
    classes: of the scores that are averaged over time, and of those of single steps.
    """

    def of_seed(
        network: Network, steps: int, examples: Examples, params: Any, key: jax.Array
    ) -> Values:
        input_key, dropout_key = jax.random.split(key)
        x_seq, _ = present(examples, input_key, steps)

        def simulate(key: jax.Array) -> jax.Array:
            rngs = {"dropout": key}
            return sd.simulate(network, {"params": params}, x_seq, rngs=rngs, train=True)[0]

        y_seqs = jax.lax.map(simulate, jax.random.split(dropout_key, masks), batch_size=8)

        def deviation(values: jax.Array) -> jax.Array:
            return jnp.sqrt(values.var(axis=0, ddof=1).mean())

        return {SPREAD: deviation(y_seqs.mean(axis=1)), STEP_SPREAD: deviation(y_seqs)}

    return jax.tree.map(np.asarray, subject.run(of_seed))


def separate(subject: Subject, samples: int) -> Values:
    """Measures how well predictive entropy tells changed images from clean ones.

    It is the area under the ROC curve, for each change. Without dropout there is
    nothing to sample, and the entropy is that of one simulation.
    """
    monte_carlo = _monte_carlo(1 if subject.network.condition == NONE else samples)

    def entropies(images: np.ndarray) -> np.ndarray:
        shown = subject.examples._replace(inputs=jnp.asarray(images, jnp.float32))
        found = subject._replace(examples=shown).run(monte_carlo)
        return np.asarray(found.predictive_entropy)

    images = np.asarray(subject.examples.inputs)
    clean = entropies(images)
    is_changed = np.repeat([0, 1], clean.shape[1])

    def area(changed: np.ndarray) -> np.ndarray:
        pairs = zip(clean, changed, strict=True)
        return np.array([roc_auc_score(is_changed, np.concatenate(pair)) for pair in pairs])

    return {name: area(entropies(change(images))) for name, change in CHANGES.items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@cache  # one object for each number: it is compiled once
def _way(masks: int | None) -> Callable[..., jax.Array]:
    if masks is None:
        return partial(scores, train=False)
    monte_carlo = _monte_carlo(masks)
    return lambda *arguments: monte_carlo(*arguments).mean


def _monte_carlo(samples: int) -> Callable[..., Uncertainty]:
    def of_seed(
        network: Network, steps: int, examples: Examples, params: Any, key: jax.Array
    ) -> Uncertainty:
        input_key, dropout_key = jax.random.split(key)
        x_seq, _ = present(examples, input_key, steps)
        variables, rngs = {"params": params}, {"dropout": dropout_key}
        # In training mode, for Flax's dropout drops nowhere else.
        return sd.monte_carlo(
            network, variables, x_seq, rngs=rngs, samples=samples, train=True
        )

    return of_seed
