"""The one rule from a key, a path and a name to the key of a mask."""

import jax
import pytest
from flax.core.scope import LazyRng

from snn_dropout.functional import mask_key

KEY = jax.random.key(0)
LEAVES = ("mask", "kernel_mask", "bias_mask")


@pytest.mark.parametrize(
    "path", [(), ("drop",), ("layers_1",), ("blocks_0", "Dropout_12"), ("a_1", "b_2", "c")]
)
def test_the_key_is_that_of_flax_where_names_are_numbered(path):
    for leaf in LEAVES:
        assert mask_key(KEY, path, leaf) == LazyRng.create(KEY, *path, leaf).as_jax_rng()


def test_raw_keys_are_the_typed_ones():
    raw = mask_key(jax.random.key_data(KEY), ("a", "b"), "mask")
    typed = mask_key(KEY, ("a", "b"), "mask")
    assert raw.tolist() == jax.random.key_data(typed).tolist()
