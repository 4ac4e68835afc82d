"""How well entropies tell digits from the clothes that networks were trained on."""

from functools import partial
from typing import Any

import jax
import numpy as np
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

import snn_dropout as sd
from study.fashion.names import DISAGREEMENT, MASKED_OUTLIERS, OUTLIERS
from study.fashion.network import Network
from study.fashion.training import in_batches, shown


def area_of_one(clothes: np.ndarray, outliers: np.ndarray) -> dict[str, float]:
    """Measures the area under the ROC curve from logarithms of probabilities."""
    return {OUTLIERS: _area(_entropy(clothes), _entropy(outliers))}


def area_of_many(clothes: np.ndarray, outliers: np.ndarray) -> dict[str, float]:
    """Does so for an ensemble, from ``[members, N, 10]``."""

    def of(log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total = entropy(np.exp(log_probs).mean(0), axis=-1)
        return total, total - _entropy(log_probs).mean(0)

    return _areas(of(clothes), of(outliers), OUTLIERS)


def area_of_masks(
    network: Network,
    params: Any,
    clothes: np.ndarray,
    outliers: np.ndarray,
    key: jax.Array,
    masks: int,
) -> dict[str, float]:
    """Does so for the masks of Monte Carlo, from images."""
    found = [_sample(network, masks, params, x, key) for x in (clothes, outliers)]
    return _areas(*found, MASKED_OUTLIERS)


@partial(jax.jit, static_argnums=(0, 1))
def _sample(
    network: Network, masks: int, params: Any, pixels: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns predictive entropies and mutual informations, ``[N]``."""

    def some(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        pixels, key = inputs
        # In training mode, for Flax's dropout drops nowhere else.
        found = sd.monte_carlo(
            network,
            {"params": params},
            shown(pixels, network.recurrent),
            rngs={"dropout": key},
            samples=masks,
            step_mode="m",
            at_once=1,
            train=True,
        )
        return found.predictive_entropy, found.mutual_information

    batches = in_batches(pixels)
    found = jax.lax.map(some, (batches, jax.random.split(key, len(batches))))
    return jax.tree.map(lambda of_batches: of_batches.ravel(), found)


def _areas(clothes: Any, outliers: Any, name: str) -> dict[str, float]:
    total, disagreement = map(_area, clothes, outliers)
    return {name: total, DISAGREEMENT: disagreement}


def _area(clothes: Any, outliers: Any) -> float:
    is_outlier = np.repeat([0, 1], [len(clothes), len(outliers)])
    return float(roc_auc_score(is_outlier, np.concatenate([clothes, outliers])))


def _entropy(log_probs: np.ndarray) -> np.ndarray:
    return entropy(np.exp(log_probs), axis=-1)
