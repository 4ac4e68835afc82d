"""The sizes of a run, and the list of its work."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from study.names import (
    CONNECT_FRESH,
    CONNECT_HELD,
    DIGITS,
    HELD,
    INFERENCE,
    LIF,
    MECHANISM,
    NONE,
    PER_STEP,
    RELU,
    SCALED_WEIGHTS,
    SELECTION,
    TEST,
    UNCERTAINTY,
    VOWELS,
)
from study.results import Unit

DROPOUT, CONNECT = (PER_STEP, HELD), (CONNECT_FRESH, CONNECT_HELD)


class Settings(NamedTuple):
    """The sizes of a run.

    Attributes:
      seeds: trainings of the networks that are tested.
      selection_seeds: trainings for the choice of ``p``, from other seeds.
      updates: of a training, each with 32 examples.
      layers: hidden layers.
      units: neurons of a hidden layer.
      steps: time steps of the digits' simulations.
      vowel_steps: those of the vowels, of which the longest has 29.
      studied_steps: those of the digits' networks that are looked at more closely.
      spread_steps: time steps for the spread over masks.
      p: the probabilities to choose from.
      masks: for the spread over masks, and of Monte Carlo.
      samples: of DropConnect's inference.
      compared_samples: of DropConnect's inference, where ways of it are compared.
    """

    seeds: int = 10
    selection_seeds: int = 4
    updates: int = 400
    layers: int = 2
    units: int = 64
    steps: tuple[int, ...] = (4, 16, 64)
    vowel_steps: int = 29
    studied_steps: int = 16
    spread_steps: tuple[int, ...] = (1, 4, 16, 64)
    p: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    masks: int = 32
    samples: int = 128
    compared_samples: tuple[int, ...] = (16, 128, 1024)


QUICK = Settings(
    seeds=2,
    selection_seeds=2,
    updates=4,
    layers=1,
    units=8,
    steps=(2,),
    studied_steps=2,
    spread_steps=(1, 2),
    p=(0.5,),
    masks=4,
    samples=4,
    compared_samples=(2,),
)


def plan(settings: Settings, data: Sequence[str], conditions: Sequence[str]) -> list[Unit]:
    """Lists the work in an order in which it can be done.

    The ``p`` of a unit is None where it is the chosen one.
    """
    units = []
    for name in data:
        for steps in (settings.vowel_steps,) if name == VOWELS else settings.steps:
            for condition in conditions:
                if condition != NONE:
                    units += [
                        Unit(SELECTION, name, steps, condition, p, LIF) for p in settings.p
                    ]
                units.append(Unit(TEST, name, steps, condition, None, LIF))
    if DIGITS in data:
        units += list(_closer_look(settings, conditions))
    return units


def in_turn(units: Sequence[Unit]) -> Iterator[list[list[Unit]]]:
    """Splits planned work into parts to be done in turn, and those into chains.

    The units of a chain need each other, in their order; chains of a part do not. Long
    ones come first.
    """

    def chains(part: Iterable[Unit], network: Callable[[Unit], Any]) -> list[list[Unit]]:
        found: dict[Any, list[Unit]] = {}
        for unit in part:
            found.setdefault(network(unit), []).append(unit)
        return list(reversed(found.values()))

    def looks_closer(unit: Unit) -> bool:
        return unit.table not in (SELECTION, TEST) or unit.variant != LIF

    for data in dict.fromkeys(unit.data for unit in units):
        of_data = [u for u in units if u.data == data and not looks_closer(u)]
        yield chains(of_data, lambda unit: (unit.steps, unit.condition))
    yield chains(filter(looks_closer, units), lambda unit: unit.condition)


def _closer_look(settings: Settings, conditions: Sequence[str]) -> Iterator[Unit]:
    def of(table: str, condition: str, variant: str) -> Unit:
        return Unit(table, DIGITS, settings.studied_steps, condition, None, variant)

    for condition in conditions:
        if condition in DROPOUT:
            for masks in DROPOUT:
                for steps in settings.spread_steps:
                    yield of(MECHANISM, condition, masks)._replace(steps=steps)
        yield of(UNCERTAINTY, condition, LIF)
        if condition in CONNECT:
            yield of(TEST, condition, RELU)
            for neuron in (LIF, RELU):
                for way in inference_ways(settings, neuron):
                    yield of(INFERENCE, condition, f"{neuron}: {way}")


def inference_ways(settings: Settings, neuron: str) -> dict[str, dict[str, Any]]:
    """Names ways of inference after DropConnect, and says what they are.

    They are fields of the network, or ``masks`` for a mean over masks as in training.
    """
    ways: dict[str, dict[str, Any]] = {SCALED_WEIGHTS: {"inference": "mean"}}
    for count in settings.compared_samples:
        ways[f"{count} samples"] = {"inference": "sample", "samples_num": count}
    if neuron == RELU:  # there is no formula for a neuron's membrane
        ways["analytic"] = {"inference": "analytic"}
    return {**ways, f"{settings.masks} masks": {"masks": settings.masks}}
