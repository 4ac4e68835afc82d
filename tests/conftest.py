import os

# Eight devices where there is one: sharding is tested without an accelerator.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def _strict_rank_promotion():
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)
