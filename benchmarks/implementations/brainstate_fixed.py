"""brainstate's ``DropoutFixed``, called at every time step."""

import brainstate
import jax

from benchmarks import checks
from benchmarks.implementations import Task, timed
from benchmarks.implementations.dropout import nonzero


def dropout(
    steps: int, examples: int, units: int, p: float, gradient: bool = False
) -> Task:
    """A loop over time after ``init_state``, which draws the mask."""
    assert not gradient
    # Its probability is that of being kept.
    layer = brainstate.nn.DropoutFixed((units,), 1 - p)
    layer.init_state(examples)
    x_seq = nonzero((steps, examples, units), 1)

    @brainstate.transform.jit
    def forward(x_seq: jax.Array) -> jax.Array:
        layer.init_state(examples)
        with brainstate.environ.context(fit=True):
            return brainstate.transform.for_loop(layer.update, x_seq)

    return Task(
        timed(lambda: jax.block_until_ready(forward(x_seq))),
        lambda: checks.check_dropout(x_seq, forward(x_seq), p),
    )
