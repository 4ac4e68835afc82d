"""The work: from a unit of the plan to its values, one for each seed."""

from functools import cache
from typing import Any

import numpy as np

from study.names import INFERENCE, LIF, MECHANISM, NONE, RELU, SELECTION, TEST, UNCERTAINTY
from study.results import Results, Unit
from study.small import data as data_sets
from study.small import measures
from study.small.measures import Subject, Values
from study.small.network import Network
from study.small.plan import Settings, inference_ways
from study.small.training import draw_batches, first_params, keys_of, over_seeds, train
from study.statistics import choose_p

FIRST_SELECTION_SEED = 1000
FIRST_TEST_KEY = 2000  # of input spikes and samples in inference
SPREAD_EXAMPLES = 200

load = cache(data_sets.load)


def with_p(unit: Unit, settings: Settings, results: Results) -> Unit:
    """Fills in the chosen ``p`` where a unit has none."""
    if unit.p is not None:
        return unit
    if unit.condition == NONE:
        return unit._replace(p=0.0)
    steps = settings.studied_steps if unit.table == MECHANISM else unit.steps
    return unit._replace(p=choose_p(results.rows, unit.data, steps, unit.condition))


def seeds_of(unit: Unit, settings: Settings) -> np.ndarray:
    """Returns the seeds of a unit: those that choose ``p`` are not those of the tests."""
    if unit.table == SELECTION:
        return FIRST_SELECTION_SEED + np.arange(settings.selection_seeds)
    return np.arange(settings.seeds)


def measure(unit: Unit, settings: Settings, results: Results) -> Values:
    """Does a unit; returns its values by measure."""
    if unit.table == SELECTION:
        return _select(unit, settings)
    if unit.table == TEST:
        results.save_params(unit, _train_for_test(unit, settings))
        return measures.judge(_subject(unit, settings, results))
    trained = unit._replace(
        table=TEST,
        steps=settings.studied_steps,
        variant=RELU if unit.variant.startswith(RELU) else LIF,
    )
    subject = _subject(trained, settings, results)
    if unit.table == MECHANISM:
        network = subject.network.copy(condition=unit.variant)  # and so are the masks
        few = data_sets.take(subject.examples, np.arange(SPREAD_EXAMPLES))
        few = few._replace(lengths=np.full(SPREAD_EXAMPLES, unit.steps))
        subject = subject._replace(network=network, examples=few, steps=unit.steps)
        return measures.spread(subject, settings.masks)
    if unit.table == UNCERTAINTY:
        return measures.separate(subject, settings.masks)
    assert unit.table == INFERENCE
    fields = dict(inference_ways(settings, trained.variant)[unit.variant.split(": ")[1]])
    masks = fields.pop("masks", None)
    subject = subject._replace(network=subject.network.copy(**fields))
    return measures.judge(subject, masks) | measures.time_call(subject, masks)


def _select(unit: Unit, settings: Settings) -> Values:
    examples = load(unit.data, unit.steps).train
    fit, validation = data_sets.fit_and_validation(examples)
    network = _network(unit, settings)
    params = _train(unit, settings, network, fit)
    held_out = data_sets.take(examples, validation)
    keys = keys_of(FIRST_TEST_KEY + seeds_of(unit, settings))
    return measures.judge(Subject(network, unit.steps, held_out, params, keys))


def _train_for_test(unit: Unit, settings: Settings) -> Any:
    everything = np.arange(len(load(unit.data, unit.steps).train.labels))
    return _train(unit, settings, _network(unit, settings), everything)


def _train(unit: Unit, settings: Settings, network: Network, indices: np.ndarray) -> Any:
    seeds = seeds_of(unit, settings)
    batches = draw_batches(indices, seeds, settings.updates)
    examples = load(unit.data, unit.steps).train
    sizes = examples.inputs.shape[-1], network.layers, network.units, network.classes
    params = first_params(*sizes, tuple(seeds.tolist()))
    keys = keys_of(seeds)
    return over_seeds(train, network, unit.steps, examples, params, batches, keys)


def _subject(unit: Unit, settings: Settings, results: Results) -> Subject:
    return Subject(
        _network(unit, settings),
        unit.steps,
        load(unit.data, unit.steps).test,
        results.load_params(unit),
        keys_of(FIRST_TEST_KEY + seeds_of(unit, settings)),
    )


def _network(unit: Unit, settings: Settings) -> Network:
    assert unit.p is not None
    return Network(
        unit.condition,
        unit.p,
        settings.layers,
        settings.units,
        classes=int(load(unit.data, unit.steps).test.labels.max()) + 1,
        rectified=unit.variant == RELU,
        samples_num=settings.samples,
    )
