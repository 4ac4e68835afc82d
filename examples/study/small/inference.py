"""The tables of inference after DropConnect."""

from collections.abc import Sequence

from study.names import (
    ACCURACY,
    CALIBRATION,
    CONDITIONS,
    INFERENCE,
    LIF,
    LIKELIHOOD,
    RELU,
    SCALED_WEIGHTS,
    TIME,
)
from study.results import Row
from study.statistics import Estimate, by_unit, estimate
from study.tables import Table, marked


def inference(rows: Sequence[Row]) -> Table:
    """Makes the table of the ways of inference after DropConnect."""
    measures = {ACCURACY: 2, LIKELIHOOD: 4, CALIBRATION: 2, TIME: 0}
    values = {measure: by_unit(rows, measure) for measure in measures}
    return Table(
        INFERENCE,
        ("trained with", "neurons", "inference", *measures),
        [
            (
                f"{CONDITIONS[unit.condition]}, p = {unit.p}",
                *_neuron_and_way(unit.variant),
                *(estimate(values[m][unit]).text(digits) for m, digits in measures.items()),
            )
            for unit in values[ACCURACY]
            if unit.table == INFERENCE
        ],
    )


def inference_differences(rows: Sequence[Row]) -> Table:
    """Makes the table of their differences to scaled weights, seed by seed."""
    values = {
        measure: {
            (unit.condition, *_neuron_and_way(unit.variant)): of_seeds
            for unit, of_seeds in by_unit(rows, measure).items()
            if unit.table == INFERENCE
        }
        for measure in (ACCURACY, LIKELIHOOD)
    }

    def difference(measure: str, condition: str, neuron: str, way: str) -> Estimate:
        found = values[measure]
        return estimate(
            found[condition, neuron, way] - found[condition, neuron, SCALED_WEIGHTS]
        )

    return Table(
        "inference-differences",
        (
            "trained with",
            "neurons",
            f"difference to {SCALED_WEIGHTS}",
            "accuracy (percentage points)",
            LIKELIHOOD,
        ),
        [
            (
                CONDITIONS[key[0]],
                *key[1:],
                marked(difference(ACCURACY, *key), 2),
                marked(difference(LIKELIHOOD, *key), 4),
            )
            for key in values[ACCURACY]
            if key[2] != SCALED_WEIGHTS
        ],
    )


def _neuron_and_way(variant: str) -> list[str]:
    neuron, way = variant.split(": ")
    return [{LIF: "LIF", RELU: "relu, LIF"}[neuron], way]
