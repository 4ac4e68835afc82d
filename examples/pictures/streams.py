"""The picture of ``streaming.py``: what a few slots see, answer and drop over time."""

from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

ANSWERS = {"digit not seen whole": "gainsboro", "wrong": "tab:red", "right": "tab:blue"}


def draw(
    path: Path,
    rows: np.ndarray,
    answers: np.ndarray,
    masks: np.ndarray,
    starts: np.ndarray,
    steps: int,
) -> None:
    """Writes a timeline of every slot.

    Args:
      path: of the PNG.
      rows: of pixels, ``[T, N, pixels]``.
      answers: ``[T, N]``, each the number of one of ``ANSWERS``.
      masks: of some units, ``[T, N, units]``.
      starts: ``[T, N]``, whether a stream starts at this step.
      steps: of a chunk.
    """
    duration, slots = starts.shape
    figure = Figure(figsize=(8, 2.4 * slots + 1), layout="constrained")
    for slot, part in enumerate(np.atleast_1d(figure.subfigures(slots, 1))):
        part.suptitle(f"slot {slot}")
        panels = part.subplots(3, 1, sharex=True, height_ratios=(4, 1, 6))
        pixels, answer, mask = panels
        pixels.imshow(rows[:, slot].T, cmap="gray_r", aspect="auto")
        colors = ListedColormap([*ANSWERS.values()])
        answer.imshow(answers[None, :, slot], colors, vmin=0, vmax=2, aspect="auto")
        mask.imshow(masks[:, slot].T, cmap="gray", vmin=0, vmax=1, aspect="auto")
        for axes, name in zip(panels, ("pixels", "answer", "mask"), strict=True):
            axes.set(yticks=[], xticks=range(0, duration, steps))
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
            for start in np.flatnonzero(starts[:, slot]):
                axes.axvline(start - 0.5, color="tab:orange", lw=3)
    mask.set_xlabel("time step: a chunk starts at each tick, a stream at each orange line")
    handles = [Patch(color=color, label=name) for name, color in ANSWERS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, title="answer")
    figure.savefig(path, dpi=120)
