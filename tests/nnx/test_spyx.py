"""A network of spyx with dropout that is held, by its own `run` and `fit`.

It runs where spyx is installed: `pip install --no-deps spyx==1.0.0`, and what it imports.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import snn_dropout.nnx as sdn

spyx = pytest.importorskip("spyx")

X_SEQ = jax.random.uniform(jax.random.key(1), (6, 8, 10), maxval=4.0)  # [T, N, I]
LABELS = X_SEQ.mean(0)[:, :3].argmax(-1)


@pytest.fixture(autouse=True)
def _as_spyx_computes():
    with jax.numpy_rank_promotion("allow"):
        yield


def network(drop):
    rngs = nnx.Rngs(0)
    return spyx.nn.Sequential(
        nnx.Linear(10, 32, rngs=rngs),
        spyx.nn.LIF((32,), beta=0.5, rngs=rngs),
        drop(rngs),
        nnx.Linear(32, 3, rngs=rngs),
        spyx.nn.LI((3,), rngs=rngs),
    )


def held(rngs):
    return sdn.Carried(sdn.Dropout(0.5, rngs=rngs))


def loss(model, x_seq, labels):
    scores, _ = spyx.nn.run(model, x_seq)
    return optax.softmax_cross_entropy_with_integer_labels(scores.mean(0), labels).mean()


def test_dropout_of_flax_raises_in_its_run():
    with pytest.raises(Exception, match="trace"):
        spyx.nn.run(network(lambda rngs: nnx.Dropout(0.5, rngs=rngs)), X_SEQ)


def test_the_mask_is_held_within_a_run_and_new_in_the_next():
    drop = spyx.nn.Sequential(held(nnx.Rngs(0)))
    run = nnx.jit(lambda model, x_seq: spyx.nn.run(model, x_seq)[0])
    ones = jnp.ones((6, 8, 64))
    first, second = run(drop, ones), run(drop, ones)
    for y_seq in (first, second):
        assert (y_seq == y_seq[:1]).all()
        assert 0.3 < (y_seq == 0).mean() < 0.7
    assert (first != second).any()
    drop.eval()
    np.testing.assert_array_equal(run(drop, ones), ones)


def test_it_trains_by_fit_and_inference_is_clean():
    model = network(held)
    history = spyx.optimize.fit(
        model, optax.adam(1e-2), loss, lambda: [(X_SEQ, LABELS)] * 4, epochs=6
    )
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    model.eval()
    clean = network(lambda rngs: spyx.nn.Flatten())
    for index in (0, 1, 3, 4):
        nnx.update(clean.layers[index], nnx.state(model.layers[index]))
    found, expected = (spyx.nn.run(m, X_SEQ)[0] for m in (model, clean))
    np.testing.assert_array_equal(found, expected)


def test_its_neurons_run_in_simulate_too():
    """Behind a module that keeps their state in a Variable."""

    class Stateful(nnx.Module):
        def __init__(self):
            self.lif = spyx.nn.LIF((10,), beta=0.5, rngs=nnx.Rngs(0))
            self.v, self.drop = nnx.Variable(jnp.zeros((8, 10))), sdn.Dropout(0.5)

        def __call__(self, x):
            spikes, v = self.lif(x, self.v[...])
            self.v.set_value(v)
            return self.drop(spikes)

    y_seq = sdn.simulate(Stateful(), X_SEQ, key=jax.random.key(0))
    silent = (y_seq == 0).all(0).mean()
    assert 0.3 < silent < 0.8
    assert set(np.unique(y_seq)) == {0, 2}
