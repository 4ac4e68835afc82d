"""Masks for a TPU are unpacked in its own way: to the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from snn_dropout import functional
from snn_dropout.functional import _draws
from snn_dropout.functional.bits import unpack_lanes
from tests.forms import of_accelerators

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("shape", "lanes"),
    [
        ((3, 8), 32),  # rows of 128
        ((2, 3, 25), 32),  # of 160
        ((3, 125), 8),  # of 200
        ((3, 49), 16),  # one row, 784
        ((0, 2), 32),  # one of 64
        ((3, 35), 4),  # 140
    ],
)
def test_unpacking_by_row_is_unpacking(shape, lanes):
    words = jax.random.bits(KEY, shape, jnp.uint32)
    found = _draws._unpack_by_row(words, lanes=lanes)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, unpack_lanes(words, lanes))


@pytest.mark.parametrize(
    ("shape", "lanes"), [((3, 130), 1), ((3, 131), 32), ((3, 251), 2), ((3, 1), 32)]
)
def test_rows_of_too_many_words_or_of_few_numbers_are_unpacked_as_ever(shape, lanes):
    jaxpr = jax.make_jaxpr(lambda words: _draws._unpack_by_row(words, lanes=lanes))
    words = jax.random.bits(KEY, shape, jnp.uint32)
    assert "optimization_barrier" not in str(jaxpr(words))
    np.testing.assert_array_equal(
        _draws._unpack_by_row(words, lanes=lanes), unpack_lanes(words, lanes)
    )


def masks():
    keys = jax.random.split(KEY, 4)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    split = NamedSharding(mesh, P("data"))

    @jax.jit
    def plain(keys):
        draw = functional.draw_mask
        mapped = jax.vmap(lambda key: draw(key, (4, 160), 0.5))(keys)
        return draw(KEY, (2, 3, 1000), 0.5), draw(KEY, (4, 96), 0.25), mapped

    @jax.jit
    def split_up(keys):
        explicit = functional.draw_mask(KEY, (4, 128), 0.5, out_sharding=split)

        def own(keys):
            return functional.draw_mask(keys[0], (1, 128), 0.5)

        manual = jax.shard_map(own, in_specs=P("data"), out_specs=P("data"))(keys)
        return explicit, manual

    found = plain(keys)
    with jax.set_mesh(mesh):
        found += split_up(jax.device_put(keys, split))
    return jax.tree.map(np.asarray, found)


def test_masks_for_a_tpu_are_those_for_a_cpu():
    expected = masks()
    with of_accelerators("tpu"):
        found = masks()
    for mask, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mask, other)


def test_a_mask_is_unpacked_by_row_for_a_tpu_alone():
    def lowered(platform):
        draw = jax.jit(lambda key: functional.draw_mask(key, (4, 1024), 0.5))
        return draw.trace(KEY).lower(lowering_platforms=(platform,)).as_text()

    # Rows of 128 numbers, each looking at the four words of its row.
    assert "4x8x4x128" in lowered("tpu")
    assert "4x8x4x128" not in lowered("cpu") + lowered("cuda")


def test_a_mask_of_no_axes_is_that_of_one_with_a_rate_of_its_own():
    for seed in range(8):
        key, rate = jax.random.key(seed), jnp.float32(0.4)
        mask = functional.draw_mask(key, (), rate)
        assert mask.shape == ()
        assert mask == functional.draw_mask(key, (1,), rate)[0]
