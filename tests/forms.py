"""What is compiled for accelerators, run on the CPU for its numbers."""

import contextlib
from unittest import mock

import jax


@contextlib.contextmanager
def of_accelerators(platform="default"):
    """Compiles what differs from platform to platform as for one, or for none by name."""

    def form(*operands, **forms):
        return forms.get(platform, forms["default"])(*operands)

    jax.clear_caches()
    with mock.patch.object(jax.lax, "platform_dependent", form):
        yield
    jax.clear_caches()
