"""What is compiled for accelerators, run on the CPU for its numbers."""

import contextlib
from unittest import mock

import jax


@contextlib.contextmanager
def of_accelerators():
    """Compiles what differs from platform to platform as for none that is named."""

    def default(*operands, default, **_):
        return default(*operands)

    jax.clear_caches()
    with mock.patch.object(jax.lax, "platform_dependent", default):
        yield
    jax.clear_caches()
