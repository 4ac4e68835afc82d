"""The plan, fixed before the run: sizes, conditions, and what counts as an effect.

Every network is trained once from each seed, for all of its updates; the parameters of
the least validation loss on the way are kept too, so that one training has two ends. A
seed draws the first parameters, the images to train and to validate with, the batches
and the masks, the same for all conditions.

``p`` is chosen by the mean of a validation score over the selection seeds, whose networks
never see a test image: for each condition, each end of training, and for accuracy and
log-likelihood apart. Networks of the other seeds are trained for every ``p`` of the grid,
for the curves of test loss against ``p``; of them the comparisons take the chosen ``p``.

An effect is a difference of two conditions, paired by seed, whose 95 % interval (Student's
t over the test seeds) leaves out zero; smaller ones are called undecided. Expected before
the run: held dropout lowers the test loss against a new mask every step after all updates
with 5,000 and 1,000 images, less with 20,000 and when stopped early; the difference grows
with the time steps, at the same ``p``. In the recurrent network no direction is expected.

The numbers of updates, the batch and the rates were set by validation images of other
seeds, of networks without dropout: so that they overfit 5,000 images.

To fit three hours on two cores, updates see 32 images, not 128. Larger ``T`` and 20,000
images have fewer ``p``, and T = 16 and 32 fewer seeds. Nothing is chosen, and conditions
are compared at the same ``p``, for T = 4, 16 and 32, the recurrent network and DropConnect.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from study.fashion.names import (
    BOTH,
    CONNECTIONS,
    ENSEMBLE,
    FEED_FORWARD,
    OUTPUTS,
    OVERFITTING,
    RECURRENCE,
    RECURRENT,
    TIME,
    UNCERTAINTY,
)
from study.names import CONNECT_FRESH, CONNECT_HELD, HELD, NONE, PER_STEP, SELECTION, TEST
from study.results import Unit

DROPOUT, CONNECT = (NONE, PER_STEP, HELD), (CONNECT_FRESH, CONNECT_HELD)
IMAGE_ROWS = 28  # the steps of the recurrent network
STUDIED_STEPS, STUDIED_SIZE = 8, 5000


class Job(NamedTuple):
    """One training: the rows of one unit and one seed."""

    unit: Unit
    seed: int


class Block(NamedTuple):
    """A part of the plan: all its conditions, probabilities and seeds.

    Attributes:
      questions: those that it serves.
      size: images to train with.
      updates: of a training.
      steps: time steps of a simulation.
      p: the probabilities.
      places: the network, or what is dropped in the recurrent one.
      conditions: what networks are trained with.
      selection_seeds: trainings for the choice of ``p``.
      seeds: trainings that are tested.
    """

    questions: tuple[str, ...]
    size: int = STUDIED_SIZE
    updates: int = 4000
    steps: int = STUDIED_STEPS
    p: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7)
    places: tuple[str, ...] = (FEED_FORWARD,)
    conditions: tuple[str, ...] = DROPOUT
    selection_seeds: int = 2
    seeds: int = 5


FEW_P = (0.2, 0.5, 0.7)
PLACES = (OUTPUTS, RECURRENT, BOTH)
BLOCKS = (
    Block((OVERFITTING, TIME, UNCERTAINTY)),
    Block((TIME,), steps=16, p=FEW_P, selection_seeds=0, seeds=3),
    Block((TIME,), steps=4, p=FEW_P, selection_seeds=0),
    Block((OVERFITTING,), size=1000, updates=2000),
    Block((RECURRENCE,), steps=IMAGE_ROWS, p=(0.2,), places=PLACES, selection_seeds=0),
    Block((OVERFITTING,), size=20_000, p=(0.1, 0.3)),
    Block((CONNECTIONS,), p=(0.5,), conditions=CONNECT, selection_seeds=0),
    Block((TIME,), steps=32, p=(0.5,), selection_seeds=0, seeds=3),
)


class Settings(NamedTuple):
    """The sizes of a run.

    Attributes:
      blocks: the parts of the plan, in their order.
      images: ``"published"`` or ``"made"``.
      rounds: how often a training is validated.
      validation: images for it.
      units: neurons of a hidden layer.
      recurrent_units: those of the recurrent network.
      masks: of Monte Carlo.
      looked_at: test images to be told from as many outliers.
      members: networks of an ensemble.
      first_seed: of those that are tested; a run again takes others, and others to
        choose by.
    """

    blocks: tuple[Block, ...] = BLOCKS
    images: str = "published"
    rounds: int = 20
    validation: int = 2000
    units: int = 512
    recurrent_units: int = 256
    masks: int = 10
    looked_at: int = 1700
    members: int = 5
    first_seed: int = 0


def quick(settings: Settings) -> Settings:
    """Makes a toy of the settings, with one block for each question."""
    of_question = {block.questions: block for block in reversed(settings.blocks)}
    blocks = tuple(
        block._replace(
            size=block.size // 20,
            updates=4,
            steps=IMAGE_ROWS if block.steps == IMAGE_ROWS else block.steps // 4,
            p=block.p[-2:],
            places=block.places[-1:],
            selection_seeds=min(block.selection_seeds, 1),
            seeds=2,
        )
        for block in settings.blocks
        if block in of_question.values()
    )
    small = {"rounds": 2, "validation": 50, "units": 8, "recurrent_units": 8}
    return settings._replace(blocks=blocks, masks=2, looked_at=20, members=2, **small)


def plan(
    settings: Settings, questions: Iterable[str], conditions: Iterable[str]
) -> list[Job]:
    """Lists the trainings, the most important first."""
    jobs: list[Job] = []
    for block in settings.blocks:
        if set(block.questions) & set(questions):
            jobs += _of_block(block, settings, conditions)
    return jobs


def in_parts(jobs: Sequence[Job]) -> list[list[list[Job]]]:
    """Splits the jobs into parts to be done in turn: an ensemble needs what is before.

    The chains of a part are the seeds of one network, for which one program is compiled.
    """
    parts: list[list[list[Job]]] = []
    for _, of_table in groupby(jobs, lambda job: job.unit.table == ENSEMBLE):
        parts.append([list(chain) for _, chain in groupby(of_table, lambda job: job.unit)])
    return parts


def described(settings: Settings, versions: Mapping[str, str]) -> dict[str, Any]:
    """Makes what results must agree in: each part of the plan by itself."""
    fields = settings._asdict()
    blocks = fields.pop("blocks")
    parts = {f"part {n}": block._asdict() for n, block in enumerate(blocks, start=1)}
    return {**fields, **parts, "versions": versions}


def cost(job: Job, settings: Settings) -> float:
    """Estimates what a job costs, in updates of the studied network."""
    unit = job.unit
    if unit.table == ENSEMBLE:
        return 1
    block = block_of(unit, settings)
    of_condition = {CONNECT_FRESH: 4, CONNECT_HELD: 1.6}.get(unit.condition, 1)
    of_steps = 2 if unit.variant in PLACES else block.steps / STUDIED_STEPS
    return (block.updates + 400) * of_condition * of_steps


def block_of(unit: Unit, settings: Settings) -> Block:
    """Finds the part of the plan that a unit belongs to."""
    return next(
        block
        for block in settings.blocks
        if (data_name(block.size), block.steps) == (unit.data, unit.steps)
        and unit.variant in block.places
        and unit.condition in block.conditions
    )


def data_name(size: int) -> str:
    """Names a training set."""
    return f"fashion-{size}"


FIRST_SELECTION_SEED = 1_000_000


def _of_block(block: Block, settings: Settings, conditions: Iterable[str]) -> Iterator[Job]:
    first = {
        SELECTION: FIRST_SELECTION_SEED + settings.first_seed,
        TEST: settings.first_seed,
    }
    count = {SELECTION: block.selection_seeds, TEST: block.seeds}
    data = data_name(block.size)
    for table in (SELECTION, TEST):
        for place in block.places:
            for condition in block.conditions:
                if condition not in conditions:
                    continue
                if condition == NONE and place != block.places[0]:
                    continue  # where nothing is dropped, no place is another
                for p in (0.0,) if condition == NONE else block.p:
                    unit = Unit(table, data, block.steps, condition, p, place)
                    for seed in range(count[table]):
                        yield Job(unit, first[table] + seed)
    if UNCERTAINTY in block.questions and NONE in conditions:
        unit = Unit(ENSEMBLE, data, block.steps, NONE, 0.0, block.places[0])
        yield Job(unit, settings.first_seed)
