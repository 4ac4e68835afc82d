"""Tasks of JAX functions whose last argument is the key of one simulation."""

from collections.abc import Callable
from typing import Any

import jax

from benchmarks.implementations import Task, timed


def new_key(number: int) -> jax.Array:
    """Makes the key of one simulation."""
    return jax.block_until_ready(jax.random.key(number))


def with_new_key(function: Callable[..., Any], *arguments: Any) -> Callable[[int], float]:
    """Makes the ``call`` that runs a function with a new key each time."""
    return timed(
        lambda key: jax.block_until_ready(function(*arguments, key)),
        lambda number: (new_key(number),),
    )


def jitted_task(
    function: Callable[..., Any], arguments: tuple[Any, ...], check: Callable[[Any], None]
) -> Task:
    """Makes the task of a function under ``jax.jit``.

    Args:
      function: takes the arguments and a key.
      arguments: all but the key.
      check: takes the jitted function, and raises if it is wrong.

    Returns:
      The task.
    """
    jitted = jax.jit(function)
    memory = jitted.lower(*arguments, new_key(0)).compile().memory_analysis()
    known = {"MiB": memory.temp_size_in_bytes / 2**20}
    return Task(with_new_key(jitted, *arguments), lambda: check(jitted), known)


def programs_compiled(call: Callable[[], Any]) -> int:
    """Counts the programs that JAX compiles during a call."""
    compiled = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    call()
    return len(compiled)
