"""A layer for single steps on a whole sequence: what can be noticed is an error."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases
from tests.laws.catalogue import every_kind_of_dropout
from tests.neurons import LIF

RNGS = {"dropout": jax.random.key(5)}
STEPS, EXAMPLES = 6, 3
X_SEQ = jnp.ones((STEPS, EXAMPLES, 8))


@every_kind_of_dropout
def test_the_error_names_mode_m_first(row):
    x_seq = jnp.ones((STEPS, *row.shape))
    layer = row.layer(deterministic=False)
    with pytest.raises((RuntimeError, ValueError), match=r"`step_mode='m'`") as error:
        layer.apply({}, x_seq, rngs=RNGS)
    text = str(error.value)
    if "mutable=['state']" in text:
        assert text.index("[T, N, ...]") < text.index("mutable=['state']")
        assert text.index("`step_mode='m'`") < text.index("mutable=['state']")


class LayerByLayer(nn.Module):
    """A network of whole sequences, of which one layer was forgotten."""

    forgotten: nn.Module
    first: bool = False
    flat: bool = False
    beside: str = "MultiStep"

    @nn.compact
    def __call__(self, x_seq):
        def drop(x_seq):
            if not self.flat:
                return self.forgotten(x_seq)
            flat = x_seq.reshape(-1, *x_seq.shape[2:])
            return self.forgotten(flat).reshape(x_seq.shape)

        others = {
            "MultiStep": lambda x: sd.MultiStep(LIF())(x),
            "Dropout": lambda x: sd.Dropout(0.5, "m", deterministic=False)(x),
            "inference": lambda x: sd.Dropout(0.5, "m", deterministic=True)(x),
            "DropConnect": lambda x: sd.DropConnectLinear(
                x.shape[-1], x.shape[-1], step_mode="m", deterministic=False
            )(x),
        }
        other = others[self.beside]
        return other(drop(x_seq)) if self.first else drop(other(x_seq))


def forget(layer=None, x_seq=X_SEQ, **fields):
    """Calls the network, the mode of one layer forgotten and the state made mutable."""
    model = LayerByLayer(layer or sd.Dropout(0.5, deterministic=False), **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x_seq).get("params", {})
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    return model.apply({"params": params}, x_seq, rngs=RNGS, mutable=["state"])


@pytest.mark.short
@pytest.mark.parametrize("beside", ["MultiStep", "Dropout", "inference", "DropConnect"])
@cases("first", [True, False], short=[True])
def test_a_forgotten_mode_is_noticed_beside_what_runs_over_all_steps(beside, first):
    with pytest.raises(ValueError, match=r"at state/forgotten .*T = 6 .*N = 3 .*='m'"):
        forget(beside=beside, first=first)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(sd.Dropout1d, (8,)), (sd.Dropout2d, (5, 8)), (sd.DropPath, (5, 8))],
)
def test_channels_and_paths_are_noticed_too(layer, shape):
    with pytest.raises(ValueError, match=r"seems to hold all steps.*step_mode='m'"):
        forget(layer(0.5, deterministic=False), jnp.ones((STEPS, EXAMPLES, *shape)))


def test_steps_that_were_made_examples_are_noticed():
    with pytest.raises(
        ValueError, match=r"T \* N examples.*reshape it to \[T, N, \.\.\.\]"
    ):
        forget(flat=True)


def test_who_uses_mode_m_is_right():
    _, updated = forget(sd.Dropout(0.5, "m", deterministic=False))
    assert updated["state"]["forgotten"]["mask"].shape == (EXAMPLES, 8)


@cases("square", [True, False], short=[True])
def test_single_steps_beside_whole_sequences_work(square):
    """A head behind the average over time, and steps by hand."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            by_hand = sd.Dropout(0.5, deterministic=False)
            x_seq = jnp.stack([by_hand(x) for x in x_seq])
            inner = sd.Dropout(0.5, deterministic=False)
            x_seq = sd.MultiStep(nn.Sequential([LIF(), inner]))(4 * x_seq)
            return sd.Dropout(0.5, deterministic=False)(x_seq.mean(0))

    x_seq = jnp.ones((4, 4, 4)) if square else X_SEQ
    y, updated = Model().apply({}, x_seq, rngs=RNGS, mutable=["state"])
    assert y.shape == x_seq.shape[1:]
    leaves = jax.tree.leaves_with_path(updated["state"])
    masks = [leaf for path, leaf in leaves if path[-1].key == "mask"]
    assert [mask.shape for mask in masks] == [x_seq.shape[1:]] * 3


def test_one_step_that_looks_like_a_sequence_has_a_way_out():
    class Model(nn.Module):
        step_mode: str

        @nn.compact
        def __call__(self, x_seq):
            drop = sd.Dropout1d(0.5, self.step_mode, deterministic=False)
            x = sd.MultiStep(LIF())(x_seq).mean(0)
            return drop(x[None])[0] if self.step_mode == "m" else drop(x)

    x_seq = jnp.full((4, 4, 4, 8), 4.0)
    with pytest.raises(
        ValueError, match=r"`step_mode='m'` on `x\[None\]`, and take `\[0\]`"
    ):
        Model("s").apply({}, x_seq, rngs=RNGS, mutable=["state"])
    y, updated = Model("m").apply({}, x_seq, rngs=RNGS, mutable=["state"])
    mask = updated["state"]["Dropout1d_0"]["mask"]
    np.testing.assert_array_equal(y != 0, jnp.broadcast_to(mask, y.shape))


def test_exported_programs_of_any_batch_are_not_in_the_way():
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((STEPS, batch, 8), jnp.float32)

    def run(x_seq):
        model = LayerByLayer(sd.Dropout(0.5, "m", deterministic=False))
        return model.apply({}, x_seq, rngs=RNGS)

    exported = jax.export.export(jax.jit(run))(shape)
    np.testing.assert_array_equal(exported.call(X_SEQ), run(X_SEQ))


# One example without a batch axis, as under `jax.vmap`.


def vmapped(layer, xs, axis=None):
    """The layer over single examples, with a key for each, and a batch axis if given."""

    def one(x, key):
        x = x if axis is None else jnp.expand_dims(x, axis)
        y, updated = layer.apply({}, x, rngs={"dropout": key}, mutable=["state"])
        return (y if axis is None else jnp.squeeze(y, axis)), updated["state"]["mask"]

    return jax.vmap(one)(xs, jax.random.split(RNGS["dropout"], len(xs)))


@cases("step_mode", ["s", "m"], short=["s"])
def test_a_path_is_not_dropped_feature_by_feature_under_vmap(step_mode):
    layer = sd.DropPath(0.5, step_mode, deterministic=False)
    xs = jnp.ones((16, 8) if step_mode == "s" else (16, STEPS, 8))
    with pytest.raises(ValueError, match=r"one example without its batch axis") as error:
        vmapped(layer, xs)
    axis = {"`x[None]`": 0, "`x_seq[:, None]`": 1}
    (typed,) = [text for text in axis if text in str(error.value)]
    y, mask = vmapped(layer, xs, axis[typed])
    assert mask.shape == (16, 1, 1)
    assert 0 < int(mask.sum()) < 16
    np.testing.assert_array_equal(y, 2.0 * xs * mask.reshape(-1, *[1] * (xs.ndim - 1)))


def test_a_batch_of_scalars_says_so():
    layer, x = sd.DropPath(0.5, deterministic=False), jnp.ones(64)
    with pytest.raises(ValueError, match=r"for a batch of scalars, `x\[:, None\]`"):
        layer.apply({}, x, rngs=RNGS, mutable=["state"])
    _, updated = layer.apply({}, x[:, None], rngs=RNGS, mutable=["state"])
    assert updated["state"]["mask"].shape == (64, 1)
    with pytest.raises(
        ValueError, match=r"for a batch of scalars, `x_seq\[\.\.\., None\]`"
    ):
        layer.clone(step_mode="m").apply({}, jnp.ones((STEPS, 64)), rngs=RNGS)


@pytest.mark.short
@pytest.mark.parametrize("step_mode", ["s", "m"])
@cases(
    ("make", "shape"),
    [
        (sd.Dropout1d, (4, 8)),
        (sd.Dropout2d, (4, 4, 8)),
        (sd.Dropout3d, (4, 4, 4, 8)),
        (partial(sd.DropConnectLinear, 8, 4), (8,)),
    ],
    short=lambda case: case[0] not in (sd.Dropout1d, sd.Dropout3d),
)
def test_layers_of_a_fixed_rank_name_the_batch_axis_of_one_example(make, shape, step_mode):
    x = jnp.ones(shape if step_mode == "s" else (STEPS, *shape))
    layer = make(p=0.5, step_mode=step_mode, deterministic=False)
    typed = r"`x\[None\]`" if step_mode == "s" else r"`x_seq\[:, None\]`"
    with pytest.raises(ValueError, match=rf"one example .*{typed}.*a key of its own"):
        jax.eval_shape(lambda x: layer.init(jax.random.key(0), x), x)


def test_one_example_is_restarted_with_its_batch_axis():
    with pytest.raises(ValueError, match=r"`done\[None\]` for one example"):
        sd.reset_rows(jnp.bool_(True), {"v": jnp.ones(3)}, {"v": jnp.zeros(3)})
    state, fresh = {"v": jnp.ones((1, 3))}, {"v": jnp.zeros((1, 3))}
    assert not sd.reset_rows(jnp.bool_(True)[None], state, fresh)["v"].any()


@pytest.mark.parametrize("order", [("dt", "x"), ("x", "dt")])
def test_it_is_noticed_beside_a_sequence_of_numbers_too(order):
    class Step(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            given = dict(zip(order, inputs, strict=True))
            return given["dt"] * LIF()(given["x"])

    class Model(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            y_seq = sd.MultiStep(Step())(inputs)
            return sd.Dropout(0.5, deterministic=False, name="forgotten")(y_seq)

    given = {"dt": jnp.ones(STEPS), "x": X_SEQ}
    inputs = tuple(given[name] for name in order)
    with pytest.raises(ValueError, match=r"forgotten .*T = 6 .*N = 3 .*='m'"):
        Model().apply({}, inputs, rngs=RNGS, mutable=["state"])


def test_it_is_noticed_inside_of_two_wrappers_too():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            x_seq = nn.Dense(8, name="b")(nn.Dense(8, name="a")(x_seq))
            return sd.Dropout(0.5, deterministic=False, name="forgotten")(x_seq)

    def wrapped(module, name):
        chosen = lambda path: path[-2:] == (name, "kernel")  # noqa: E731
        return sd.DropConnect(module, 0.5, "m", deterministic=False, filter=chosen)

    for model in (
        wrapped(Block(), "a"),
        wrapped(nn.Sequential([wrapped(Block(), "a")]), "b"),
    ):
        params = model.init(jax.random.key(0), X_SEQ)["params"]
        with pytest.raises(ValueError, match=r"forgotten .*T = 6 .*N = 3 .*='m'"):
            model.apply({"params": params}, X_SEQ, rngs=RNGS, mutable=["state"])
