"""Garbage is looked for among what a test made: there are millions of older objects."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def older_objects_left_out() -> Iterator[None]:
    """Collections of garbage, and searches for what refers to an object, see no others."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def checking_leaks() -> Iterator[None]:
    """As JAX's, which collects garbage for each trace."""
    with older_objects_left_out(), jax.checking_leaks():
        yield
