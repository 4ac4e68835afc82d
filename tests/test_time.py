"""`simulate` and `MultiStep`: any single-step module, in every place that users put it."""

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snn_dropout as sd
from tests.depth import cases, marked
from tests.jaxprs import equations
from tests.neurons import LIF, Net, loop

KEY = jax.random.key(7)
RNGS = {"dropout": KEY}


@pytest.fixture(scope="module")
def x_seq():
    return jax.random.normal(jax.random.key(3), (5, 3, 8))


class Inline(nn.Module):
    @nn.compact
    def __call__(self, x_seq, train=False):
        layers = nn.Sequential(
            [nn.Dense(16), lambda x: 4 * x, LIF(), sd.Dropout(0.5, deterministic=not train)]
        )
        hidden = sd.MultiStep(layers)(x_seq)
        return sd.MultiStep(Net(name="net"))(hidden, train=train)


class InlineSingleStep(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        layers = nn.Sequential(
            [nn.Dense(16), lambda x: 4 * x, LIF(), sd.Dropout(0.5, deterministic=not train)]
        )
        return Net(name="net")(layers(x), train=train)


class InSetup(nn.Module):
    def setup(self):
        self.net = Net()
        self.over_time = sd.MultiStep(self.net)

    def __call__(self, x_seq, train=False):
        return self.over_time(x_seq, train=train)


class InSetupSingleStep(nn.Module):
    def setup(self):
        self.net = Net()

    def __call__(self, x, train=False):
        return self.net(x, train=train)


def sequential():
    drop = sd.Dropout(0.5, deterministic=False)
    return nn.Sequential([nn.Sequential([nn.Dense(6), lambda x: 4 * x, LIF()]), drop])


class InSetupSequential(nn.Module):
    def setup(self):
        self.layers = sd.MultiStep(sequential())

    def __call__(self, x_seq):
        return self.layers(x_seq)


class InSetupSequentialSingleStep(nn.Module):
    def setup(self):
        self.layers = sequential()

    def __call__(self, x):
        return self.layers(x)


class Rematerialised(nn.Module):
    @nn.compact
    def __call__(self, x_seq, train=False):
        return nn.remat(Inline, static_argnums=2)(name="inner")(x_seq, train)


class RematerialisedSingleStep(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return InlineSingleStep(name="inner")(x, train)


PAIRS = {
    "alone": (sd.MultiStep(Net()), Net()),
    "alone, of a Sequential": (sd.MultiStep(sequential()), sequential()),
    "in setup, of a Sequential": (InSetupSequential(), InSetupSequentialSingleStep()),
    "inline in a compact method": (Inline(), InlineSingleStep()),
    "in setup": (InSetup(), InSetupSingleStep()),
    "inside nn.remat": (Rematerialised(), RematerialisedSingleStep()),
}


IN_SHORT = ("in setup, of a Sequential",)


@pytest.fixture(params=marked(PAIRS, short=IN_SHORT), scope="module")
def pair(request):
    return PAIRS[request.param], {} if "Sequential" in request.param else {"train": True}


def test_multistep_is_transparent(pair, x_seq):
    (whole, single), _ = pair
    chex.assert_trees_all_equal(whole.init(KEY, x_seq), single.init(KEY, x_seq[0]))
    y_seq = jax.eval_shape(lambda x: whole.init_with_output(KEY, x)[0], x_seq)
    assert y_seq.shape[:2] == (5, 3)


@pytest.mark.optimised
@cases("mode", ["eager", "jit"], short=["jit"])
def test_multistep_equals_the_loop(pair, x_seq, mode):
    (whole, single), train = pair
    variables = single.init(KEY, x_seq[0])
    wrap = jax.jit if mode == "jit" else lambda f: f
    y_loop, updated_loop = loop(single, variables, x_seq, rngs=RNGS, **train)
    y_seq, updated = wrap(
        lambda v: whole.apply(v, x_seq, rngs=RNGS, mutable=["state"], **train)
    )(variables)
    np.testing.assert_array_equal(y_seq, y_loop)
    chex.assert_trees_all_equal(updated, updated_loop)
    # Without a mutable state, or any state: the same masks and outputs.
    for given in (variables, {"params": variables.get("params", {})}):
        alone = wrap(lambda v: whole.apply(v, x_seq, rngs=RNGS, **train))(given)
        np.testing.assert_array_equal(alone, y_loop)


def test_multistep_gradients_equal_those_of_the_loop(pair, x_seq):
    (whole, single), train = pair
    variables = single.init(KEY, x_seq[0])

    def loss(run):
        return lambda params, x: (run({**variables, "params": params}, x) ** 2).sum()

    params = variables.get("params", {})
    grads = [
        jax.jit(jax.grad(loss(run), argnums=(0, 1)))(params, x_seq)
        for run in (
            lambda v, x: loop(single, v, x, rngs=RNGS, **train)[0],
            lambda v, x: whole.apply(v, x, rngs=RNGS, **train),
            jax.checkpoint(lambda v, x: whole.apply(v, x, rngs=RNGS, **train)),
        )
    ]
    for grad in grads[1:]:
        chex.assert_trees_all_close(grad, grads[0], rtol=1e-5, atol=1e-6)


def test_a_shared_instance_shares_weights_masks_and_membranes(x_seq):
    class Shared(nn.Module):
        def setup(self):
            self.core = Net(out=8)
            self.over_time = sd.MultiStep(self.core)

        def __call__(self, x_seq):
            first = self.over_time(x_seq, train=True)
            return self.over_time(first, train=True), self.core(x_seq[0], train=True)

    class ByHand(nn.Module):
        def setup(self):
            self.core = Net(out=8)

        def __call__(self, x_seq):
            first = jnp.stack([self.core(x, train=True) for x in x_seq])
            second = jnp.stack([self.core(x, train=True) for x in first])
            return second, self.core(x_seq[0], train=True)

    variables = ByHand().init(KEY, x_seq)
    chex.assert_trees_all_equal(Shared().init(KEY, x_seq)["params"], variables["params"])
    params = {"params": variables["params"]}
    zero = jax.tree.map(jnp.zeros_like, variables["state"])
    runs = [
        model.apply({**params, "state": zero}, x_seq, rngs=RNGS, mutable=["state"])
        for model in (Shared(), ByHand())
    ]
    chex.assert_trees_all_equal(*runs)


@pytest.mark.exhaustive
def test_inside_nn_vmap_each_row_has_its_own_mask(x_seq):
    class Mapped(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            mapped = nn.vmap(
                lambda module, x: module(x, train=True),
                in_axes=1,
                out_axes=1,
                variable_axes={"params": None, "state": 0},
                split_rngs={"params": False, "dropout": True},
            )
            return mapped(Inline(name="inner"), x_seq)

    variables = Mapped().init(KEY, x_seq)
    y_seq, updated = Mapped().apply(variables, x_seq, rngs=RNGS, mutable=["state"])
    mask = updated["state"]["inner"]["Dropout_0"]["mask"]
    assert mask.shape == (3, 16)
    assert not (mask[0] == mask[1]).all()
    alone = Mapped().apply({"params": variables["params"]}, x_seq, rngs=RNGS)
    np.testing.assert_array_equal(alone, y_seq)


def test_a_module_whose_child_is_called_module(x_seq):
    class Wrapper(nn.Module):
        def setup(self):
            self.module = Net()

        def __call__(self, x):
            return self.module(x, train=True)

    variables = Wrapper().init(KEY, x_seq[0])
    chex.assert_trees_all_equal(sd.MultiStep(Wrapper()).init(KEY, x_seq), variables)
    y_loop, _ = loop(Wrapper(), variables, x_seq, rngs=RNGS)
    np.testing.assert_array_equal(
        sd.simulate(Wrapper(), variables, x_seq, rngs=RNGS)[0], y_loop
    )


def test_simulate_inside_a_module_of_a_bound_model(x_seq):
    class Outer(nn.Module):
        def setup(self):
            self.net = Net()

        @nn.compact
        def __call__(self, x_seq):
            y = self.net(x_seq[0])
            variables = {"params": self.net.variables["params"]}
            return y, sd.simulate(self.net, variables, x_seq)[0]

    variables = Outer().init(KEY, x_seq)
    assert variables["params"].keys() == {"net"}
    (_, y_seq), _ = Outer().apply(variables, x_seq, mutable=["state"])
    given = {"params": variables["params"]["net"]}
    np.testing.assert_array_equal(y_seq, sd.simulate(Net(), given, x_seq)[0])


def test_parameters_are_not_carried(x_seq):
    variables = Net().init(KEY, x_seq[0])
    multi_step = sd.MultiStep(Net())

    def run(variables):
        return multi_step.apply(variables, x_seq, train=True, rngs=RNGS, mutable=True)

    _, updated = run(variables)
    chex.assert_trees_all_equal(updated["params"], variables["params"])
    jaxpr = jax.make_jaxpr(run)(variables).jaxpr
    (scan,) = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    kernels = {
        leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 2
    }
    assert not kernels & {out.aval.shape for out in scan.outvars}


def test_a_step_must_not_write_parameters(x_seq):
    class Writing(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, ())
            if not self.is_initializing():
                self.put_variable("params", "scale", scale + 1)
            return scale * x

    multi_step = sd.MultiStep(Writing())
    variables = multi_step.init(KEY, x_seq)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        multi_step.apply(variables, x_seq, mutable=True)


def test_counters_of_other_dropouts_go_on_from_call_to_call(x_seq):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(x)

    class Shared(nn.Module):
        def setup(self):
            self.noisy = Noisy()
            self.over_time = sd.MultiStep(self.noisy)

        def __call__(self, x_seq):
            x_seq = jnp.ones_like(x_seq)
            return self.noisy(x_seq[0]), self.over_time(x_seq), self.over_time(x_seq)

    class InTurn(nn.Module):
        """As many calls one after the other, with one key."""

        def setup(self):
            self.noisy = Noisy()

        def __call__(self, x):
            return [self.noisy(jnp.ones_like(x)) for _ in range(3)]

    def by_hand(key):
        return InTurn().apply({}, x_seq[0], rngs={"dropout": key})

    first, *later = Shared().apply({}, x_seq, rngs=RNGS)
    np.testing.assert_array_equal(first, by_hand(KEY)[0])
    steps = [by_hand(jax.random.fold_in(KEY, t)) for t in range(len(x_seq))]
    for call, y_seq in enumerate(later, 1):
        np.testing.assert_array_equal(y_seq, jnp.stack([step[call] for step in steps]))
    runs = [first, *later[0], *later[1]]
    assert all((a != b).any() for i, a in enumerate(runs) for b in runs[:i])


def test_errors_inside_an_inline_multistep_name_the_whole_path(x_seq):
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            return sd.MultiStep(Net(name="inner"))(x_seq, train=True)

    with pytest.raises(flax.errors.InvalidRngError, match=r"state/inner/Dropout_0/mask"):
        Outer().apply(Outer().init(KEY, x_seq), x_seq)


def test_batch_stats_are_carried_and_returned(x_seq):
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
            return sd.Dropout(0.5)(LIF()(4 * x), deterministic=not train)

    variables = Normalised().init(KEY, x_seq[0], False)
    for start in (variables, {"params": variables["params"]}):
        y_seq, updated = sd.simulate(
            Normalised(), start, x_seq, True, rngs=RNGS, mutable=["batch_stats"]
        )
        y_loop, updated_loop = loop(
            Normalised(),
            variables,
            x_seq,
            True,
            rngs=RNGS,
            mutable=("state", "batch_stats"),
        )
        np.testing.assert_allclose(y_seq, y_loop, rtol=1e-6)
        chex.assert_trees_all_close(updated, updated_loop, rtol=1e-5)
    # In inference they are constants, and need not be mutable.
    given = {**variables, "batch_stats": updated["batch_stats"]}
    y_seq, mutated = sd.simulate(Normalised(), given, x_seq, False)
    assert mutated.keys() == {"state"}
    np.testing.assert_allclose(y_seq, loop(Normalised(), given, x_seq, False)[0], rtol=1e-6)


def test_constant_collections_are_read(x_seq):
    class Constant(nn.Module):
        @nn.compact
        def __call__(self, x):
            gain = self.variable("constants", "gain", jnp.ones, ())
            return LIF()(gain.value * x)

    y_seq, _ = sd.simulate(Constant(), {"constants": {"gain": jnp.float32(4)}}, x_seq)
    np.testing.assert_array_equal(y_seq, sd.simulate(LIF(), {}, 4 * x_seq)[0])


def test_what_is_sown_is_stacked_over_time(x_seq):
    class Probed(nn.Module):
        @nn.compact
        def __call__(self, x):
            spikes = LIF()(4 * x)
            self.sow("intermediates", "spikes", spikes)
            return spikes.mean(-1)

    _, updated = sd.simulate(Probed(), {}, x_seq, mutable=["intermediates"])
    (spikes,) = updated["intermediates"]["spikes"]
    np.testing.assert_array_equal(spikes, sd.simulate(LIF(), {}, 4 * x_seq)[0])

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            over_time = sd.MultiStep(Probed())
            return over_time(x_seq), over_time(-x_seq)

    _, updated = Twice().apply({}, x_seq, mutable=["intermediates"])
    first, second = updated["intermediates"]["Probed_0"]["spikes"]
    np.testing.assert_array_equal(first, spikes)
    np.testing.assert_array_equal(second, sd.simulate(LIF(), {}, -4 * x_seq)[0])


def test_what_is_sown_with_a_reduction_is_stacked_too(x_seq):
    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("intermediates", "last", x, reduce_fn=lambda _, new: new)
            return x

    _, updated = sd.simulate(Last(), {}, x_seq, mutable="intermediates")
    np.testing.assert_array_equal(updated["intermediates"]["last"], x_seq)


def test_what_grows_from_step_to_step_raises(x_seq):
    class Grows(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("losses", "l2", (x**2).sum())
            return x

    with pytest.raises(ValueError, match=r"losses/l2 must keep its shape.*'intermediates'"):
        sd.simulate(Grows(), {}, x_seq, mutable="losses")


def test_closing_over_a_stateful_module_raises(x_seq):
    class Closes(nn.Module):
        def setup(self):
            self.lif = LIF()

        @nn.compact
        def __call__(self, x_seq):
            return sd.MultiStep(nn.Sequential([lambda x: self.lif(x)]))(x_seq)

    with pytest.raises(RuntimeError, match=r"changed state/lif/v outside .*an attribute"):
        Closes().apply({}, x_seq, mutable=["state"])


@cases("wrapper", [nn.WeightNorm, nn.SpectralNorm], short=[nn.WeightNorm])
def test_modules_that_write_when_init_runs(x_seq, wrapper):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            given = {"update_stats": False} if wrapper is nn.SpectralNorm else {}
            x = wrapper(nn.Dense(6))(x, **given)
            return sd.Dropout(0.5, deterministic=False)(LIF()(4 * x))

    variables = Normed().init(KEY, x_seq[0])
    y_loop, updated = loop(Normed(), variables, x_seq, rngs=RNGS)
    y_seq, updated_scan = sd.simulate(Normed(), variables, x_seq, rngs=RNGS)
    np.testing.assert_allclose(y_seq, y_loop)
    chex.assert_trees_all_close(updated_scan, updated, atol=1e-6)


def test_what_init_makes_is_that_of_the_first_step(x_seq):
    """Also of neurons that start from their first input, and of the output."""

    class Settled(nn.Module):
        @nn.compact
        def __call__(self, x):
            v = self.variable("state", "v", lambda: 10 * x)
            if not self.is_initializing():
                v.value = v.value + x
            return v.value

    y_seq, variables = sd.MultiStep(Settled()).init_with_output(KEY, x_seq)
    expected = Settled().init(KEY, x_seq[0])
    chex.assert_trees_all_equal(variables, expected)
    np.testing.assert_array_equal(y_seq, jnp.stack([10 * x_seq[0]] * len(x_seq)))
    y_loop, _ = loop(Settled(), expected, x_seq)
    for given in ({}, expected):
        np.testing.assert_array_equal(sd.simulate(Settled(), given, x_seq)[0], y_loop)


def test_arguments_of_any_number_and_kind_pass_through(x_seq):
    class Many(nn.Module):
        @nn.compact
        def __call__(
            self, inputs, scale, *shifts, mode, time_step=0.0, x=None, targets=None
        ):
            assert mode == "a string"
            return LIF()(inputs["signal"] * scale + sum(shifts) + time_step + x + targets)

    args = (jnp.float32(4), 1.0, jnp.ones((3, 8)))
    kwargs = {"mode": "a string", "time_step": 1.0, "x": -1.0, "targets": jnp.ones((3, 8))}
    y_seq, _ = sd.simulate(Many(), {}, {"signal": x_seq}, *args, **kwargs)
    expected, _ = sd.simulate(LIF(), {}, 4 * x_seq + 3)
    np.testing.assert_allclose(y_seq, expected)
    y_seq = sd.MultiStep(Many()).apply({}, {"signal": x_seq}, *args, **kwargs)
    np.testing.assert_allclose(y_seq, expected)


@pytest.mark.parametrize("step_mode", ["m", "simulate", "MultiStep"])
def test_zero_time_steps_give_an_empty_output(step_mode):
    x_seq = jnp.ones((0, 3, 8))
    layer = sd.Dropout(0.5, "m" if step_mode == "m" else "s", deterministic=False)
    if step_mode == "simulate":
        y_seq, _ = sd.simulate(layer, {}, x_seq, rngs=RNGS)
    else:
        model = layer if step_mode == "m" else sd.MultiStep(layer)
        y_seq = model.apply({}, x_seq, rngs=RNGS)
    assert y_seq.shape == (0, 3, 8)


def test_no_retrace_on_the_second_batch(x_seq):
    """The state that a simulation returns is no other kind of argument than the first."""
    traces = []

    @jax.jit
    def run(variables, x_seq, key):
        traces.append(None)
        rngs = {"dropout": key}
        _, updated = sd.simulate(Net(), variables, x_seq, train=True, rngs=rngs)
        return {**variables, "state": sd.reset_masks(updated["state"])}

    variables = Net().init(KEY, x_seq[0])
    for seed in range(3):
        variables = run(variables, x_seq + seed, jax.random.key(seed))
    assert len(traces) == 1
    run(variables, x_seq[:2], KEY)
    assert len(traces) == 2, "another number of steps is another program"


def test_one_exported_program_serves_any_number_of_steps_and_examples(x_seq):
    params = Net().init(KEY, x_seq[0])["params"]

    def run(params, x_seq, seed):
        rngs = {"dropout": jax.random.wrap_key_data(seed)}
        return sd.simulate(Net(), {"params": params}, x_seq, train=True, rngs=rngs)[0]

    steps, examples = jax.export.symbolic_shape("steps, examples")
    shape = jax.ShapeDtypeStruct((steps, examples, 8), x_seq.dtype)
    seed = jax.random.key_data(KEY)
    platforms = ["cpu", "cuda", "tpu"]
    exported = jax.export.export(jax.jit(run), platforms=platforms)(params, shape, seed)
    for given in (x_seq, x_seq[:2, :1]):
        np.testing.assert_array_equal(
            exported.call(params, given, seed), run(params, given, seed)
        )


class DroppedCell(nn.RNNCellBase):
    """Variational dropout (Gal and Ghahramani 2016) on the input and the output."""

    cell: type[nn.RNNCellBase]
    features: int

    @nn.compact
    def __call__(self, carry, x):
        x = sd.Dropout(0.5, name="input")(x, False)
        carry, y = self.cell(self.features)(carry, x)
        return carry, sd.Dropout(0.5, name="output")(y, False)

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        cell = self.cell(self.features, parent=None)
        return cell.initialize_carry(rng, input_shape)

    @property
    def num_feature_axes(self):
        return 1


@cases("kind", [nn.LSTMCell, nn.GRUCell], short=[nn.LSTMCell])
def test_held_masks_inside_nn_rnn_over_a_recurrent_cell(x_seq, kind):
    cell = DroppedCell(kind, 6)
    rnn = nn.RNN(
        cell,
        time_major=True,
        variable_broadcast=("params", "state"),
        split_rngs={"params": False, "dropout": False},
    )
    variables = rnn.init(KEY, x_seq)
    assert variables.keys() == {"params"}
    y_seq, updated = rnn.apply(variables, x_seq, rngs=RNGS, mutable=["state"])
    masks = updated["state"]["cell"]
    assert {name: leaf["mask"].shape for name, leaf in masks.items()} == {
        "input": (3, 8),
        "output": (3, 6),
    }
    dropped = jnp.broadcast_to(~masks["output"]["mask"], y_seq.shape)
    np.testing.assert_array_equal(y_seq[dropped], 0)
    # The same masks once more, now given: nothing is drawn.
    again = rnn.apply({**variables, **updated}, x_seq)
    np.testing.assert_array_equal(again, y_seq)
