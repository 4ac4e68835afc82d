"""The work: from a job of the plan to its values."""

from typing import Any

import jax
import numpy as np
from dropconnect_inference import score

from study.fashion import images
from study.fashion.names import (
    BEST_UPDATE,
    ENSEMBLE,
    FEED_FORWARD,
    OUTPUTS,
    STOPPED,
    TRAINING_LOSS,
    UNCERTAINTY,
)
from study.fashion.network import DROPOUTS, Network, without_dropout
from study.fashion.outliers import area_of_many, area_of_masks, area_of_one
from study.fashion.plan import Job, Settings, block_of
from study.fashion.training import draw_batches, first_params, log_probabilities, train
from study.names import ACCURACY, CALIBRATION, LIKELIHOOD, SELECTION, TEST
from study.results import Results

Values = dict[str, float]

_log_probabilities = jax.jit(log_probabilities, static_argnums=0)


def measure(job: Job, settings: Settings, data: images.Data, results: Results) -> Values:
    """Does a job; returns its values by measure."""
    if job.unit.table == ENSEMBLE:
        return _ensemble(job, settings, data.test, results)
    network, block = _network(job, settings), block_of(job.unit, settings)
    fit, validation = images.split(data.train, block.size, settings.validation, job.seed)
    trained = train(
        network,
        fit,
        validation,
        first_params(network, job.seed),
        draw_batches(block.size, job.seed, settings.rounds, block.updates),
        _key(job, 1),
    )
    few = fit.take(np.arange(min(block.size, settings.validation)))
    fitted = _scores(_infer(network, trained.last, few.pixels), few.labels)
    of_round = block.updates / settings.rounds
    values = {
        TRAINING_LOSS: fitted[LIKELIHOOD],
        BEST_UPDATE: (1 + int(trained.losses.argmin())) * of_round,
    }
    judged = validation if job.unit.table == SELECTION else data.test
    log_probs = _infer(network, trained.last, judged.pixels)
    values |= _scores(log_probs, judged.labels)
    stopped = _scores(_infer(network, trained.best, judged.pixels), judged.labels)
    values |= {f"{name} {STOPPED}": value for name, value in stopped.items()}
    if job.unit.table == TEST and UNCERTAINTY in block.questions:
        clothes = data.test.pixels[: settings.looked_at]
        strange = images.outliers()[: settings.looked_at]
        of_strange = _infer(network, trained.last, strange)
        values |= area_of_one(log_probs[: settings.looked_at], of_strange)
        if network.condition in DROPOUTS:
            shown = clothes, strange, _key(job, 2)
            values |= area_of_masks(network, trained.last, *shown, settings.masks)
        else:  # a member of the ensemble
            found = {"clothes": log_probs, "outliers": of_strange}
            results.save_params(job.unit, found, job.seed)
    return values


def _ensemble(
    job: Job, settings: Settings, test: images.Images, results: Results
) -> Values:
    unit = job.unit._replace(table=TEST)
    seeds = range(job.seed, job.seed + settings.members)
    found = [results.load_params(unit, seed) for seed in seeds]
    clothes = np.stack([member["clothes"] for member in found])
    outliers = np.stack([member["outliers"] for member in found])
    together = np.log(np.exp(clothes).mean(0))
    values = _scores(together, test.labels)
    return values | area_of_many(clothes[:, : settings.looked_at], outliers)


def _network(job: Job, settings: Settings) -> Network:
    recurrent = job.unit.variant != FEED_FORWARD
    return Network(
        job.unit.condition,
        job.unit.p or 0.0,
        job.unit.variant if recurrent else OUTPUTS,
        job.unit.steps,
        settings.recurrent_units if recurrent else settings.units,
        recurrent,
    )


def _key(job: Job, use: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(job.seed), use)


def _infer(network: Network, params: Any, pixels: np.ndarray) -> np.ndarray:
    if network.condition in DROPOUTS:
        # Dropout does nothing in inference: its networks share the program of plain ones.
        network = without_dropout(network)
    return np.asarray(_log_probabilities(network, params, pixels), np.float64)


def _scores(log_probs: np.ndarray, labels: np.ndarray) -> Values:
    found = score(log_probs, labels)
    return dict(zip((ACCURACY, LIKELIHOOD, CALIBRATION), map(float, found), strict=True))
