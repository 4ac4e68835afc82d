"""The one rule from a key, a path and a name to the key of a mask."""

import itertools

import jax
import pytest
from flax.core.scope import LazyRng

from snn_dropout.functional import mask_key

KEY = jax.random.key(0)
LEAVES = ("mask", "kernel_mask", "bias_mask")


def words(path, name="mask"):
    return tuple(jax.random.key_data(mask_key(KEY, path, name)).tolist())


@pytest.mark.parametrize(
    "path", [(), ("drop",), ("layers_1",), ("blocks_0", "Dropout_12"), ("a_1", "b_2", "c")]
)
def test_the_key_is_that_of_flax_where_names_are_numbered(path):
    for leaf in LEAVES:
        assert mask_key(KEY, path, leaf) == LazyRng.create(KEY, *path, leaf).as_jax_rng()


def test_paths_that_read_alike_have_other_keys():
    """All ways to cut a text into names, and those with a leaf that ends another one."""
    for text in (
        "abc",
        "a_1b",
        "a_1b_2c",
        "a_1_2b",
        "b_12c",
        "kernel_",
        "a_1kernel_",
        "0_1a",
    ):
        cuts = [
            tuple(text[i:j] for i, j in itertools.pairwise((0, *at, len(text))))
            for n in range(len(text))
            for at in itertools.combinations(range(1, len(text)), n)
        ]
        places = [(path, leaf) for path in cuts for leaf in LEAVES]
        assert len({words(*place) for place in places}) == len(places)


def test_raw_keys_are_the_typed_ones():
    raw = mask_key(jax.random.key_data(KEY), ("a", "b"), "mask")
    assert tuple(raw.tolist()) == words(("a", "b"))
