"""`DropConnect`: any module with its kernels masked, and what it adds to the laws."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

import snn_dropout as sd
from snn_dropout import functional
from snn_dropout.linen.state import MASK_NAMES
from tests.depth import cases
from tests.laws.test_laws import differ_by_chance, within
from tests.neurons import LIF, loop

KEY = jax.random.key(0)
RNGS = {"dropout": jax.random.key(5)}
X_SEQ = jax.random.normal(jax.random.key(1), (5, 3, 4))  # [T, N, I]
STEPS, EXAMPLES, INPUTS = X_SEQ.shape
HELD_IN_RNN = {
    "time_major": True,
    "variable_broadcast": ("params", "state"),
    "split_rngs": {"params": False, "dropout": False},
}


def dropped(module, **fields):
    return sd.DropConnect(module, deterministic=False, **fields)


def keep_masks(params, state):
    """The masks in a state, as a tree of the parameters; True where there is none."""
    leaves, stored = flatten_dict(meta.unbox(params)), flatten_dict(state)
    masks = {}
    for path, leaf in leaves.items():
        words = stored.get((*path[:-1], f"{path[-1]}_mask", "mask"))
        kept = jnp.ones(leaf.shape, bool)
        if words is not None:
            kept = functional.unpack_bits(words, (1, *leaf.shape)[-1]).reshape(leaf.shape)
        masks[path] = kept
    return unflatten_dict(masks)


def masked(params, state, p=0.5):
    """Parameters as the wrapped module has to see them, made by hand."""
    stored = flatten_dict(state)
    places = {path[:-1] for path in stored if path[-1] == "mask"}

    def lose(path, leaf, kept):
        dropped_here = (*path[:-1], f"{path[-1]}_mask") in places
        return jnp.where(kept, leaf / (1 - p), 0) if dropped_here else leaf

    leaves, masks = flatten_dict(params), flatten_dict(keep_masks(params, state))
    return unflatten_dict(
        {path: lose(path, leaf, masks[path]) for path, leaf in leaves.items()}
    )


class Encoder(nn.Module):
    """Attention, a residual branch and a table, as users write it."""

    @nn.compact
    def __call__(self, x, *, scale=1.0):
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=4)(scale * x)
        return nn.Dense(3)(nn.LayerNorm()(x))


MODULES = {
    "Dense": nn.Dense(33),
    "DenseGeneral": nn.DenseGeneral((2, 3)),
    "Conv": nn.Conv(5, (3,)),
    "ConvTranspose": nn.ConvTranspose(5, (3,)),
    "Sequential": nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(3)]),
    "attention": nn.MultiHeadDotProductAttention(2, qkv_features=6),
    "RNN": nn.RNN(nn.GRUCell(6)),
    "a module of one's own": Encoder(),
}


@cases("name", MODULES, short=["Conv"])
@cases("step_mode", ["s", "m"], short=["s"])
def test_a_module_runs_with_its_kernels_masked_and_gradients_reach_those_that_are_kept(
    name, step_mode
):
    module, x = MODULES[name], X_SEQ
    layer = dropped(module, step_mode=step_mode)
    variables, expected = jax.jit(lambda: (layer.init(KEY, x), module.init(KEY, x)))()
    chex.assert_trees_all_equal(variables, expected)

    @jax.jit
    def both(params, x):
        def loss(params, x):
            y, updated = layer.apply({"params": params}, x, rngs=RNGS, mutable=["state"])
            return (y**2).sum(), (y, updated["state"])

        (_, aux), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return aux, grads

    (y, state), (dparams, dx) = both(variables["params"], x)
    kernels = {path for path in flatten_dict(variables["params"]) if path[-1] == "kernel"}
    assert kernels
    assert {path[:-1] for path in flatten_dict(state)} == {
        (*path[:-1], "kernel_mask") for path in kernels
    }

    @jax.jit
    def by_hand(params, x):
        def loss(params, x):
            y = module.apply({"params": params}, x)
            return (y**2).sum(), y

        (_, y), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return y, grads

    hand = jax.jit(masked)(variables["params"], state)
    expected, (dmasked, dx_expected) = by_hand(hand, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, dx_expected, rtol=1e-4, atol=1e-4)
    # The scale and the mask of the product are those of its derivative.
    dmasked = jax.jit(masked)(dmasked, state)
    chex.assert_trees_all_close(dparams, dmasked, rtol=1e-4, atol=1e-4)
    kept = flatten_dict(jax.jit(keep_masks)(dparams, state))
    for path in kernels:
        assert not np.where(kept[path], 0, flatten_dict(dparams)[path]).any()
        assert 0 < kept[path].sum() < kept[path].size

    # In inference nothing is masked, drawn, scaled or needed.
    infer = jax.jit(
        lambda v: (
            layer.clone(deterministic=True).apply(v, x, mutable=["state"]),
            module.apply(v, x),
        )
    )
    (plain, after), expected = infer(variables)
    np.testing.assert_array_equal(plain, expected)
    assert not after


CELLS = {
    "LSTM": nn.LSTMCell(6),
    "optimised LSTM": nn.OptimizedLSTMCell(6),
    "GRU": nn.GRUCell(6),
    "convolutional LSTM": nn.ConvLSTMCell(3, (3,)),
}


@cases("name", CELLS, short=["optimised LSTM"])
def test_a_cell_stays_a_cell_and_loses_the_same_connections_at_every_step(name):
    cell = CELLS[name]
    x_seq = X_SEQ if "conv" not in name else X_SEQ[..., None]
    bare, rnn = nn.RNN(cell, time_major=True), nn.RNN(dropped(cell), **HELD_IN_RNN)
    carry = cell.initialize_carry(KEY, x_seq[0].shape)
    ours = dropped(cell).initialize_carry(KEY, x_seq[0].shape)
    chex.assert_trees_all_equal(ours, carry)

    @jax.jit
    def everything():
        variables = rnn.init(KEY, x_seq)
        y_seq, updated = rnn.apply(variables, x_seq, rngs=RNGS, mutable=["state"])
        hand = {"params": masked(variables["params"], updated["state"])}
        # A state that is made ahead is only read: it need not be mutable, nor have a key.
        inner = {"params": variables["params"]["cell"]}
        state = {"cell": sd.init_state(dropped(cell), inner, carry, x_seq[0], rngs=RNGS)}
        given = {"params": masked(variables["params"], state)}
        found = variables, y_seq, rnn.apply({**variables, "state": state}, x_seq)
        wanted = bare.init(KEY, x_seq), bare.apply(hand, x_seq), bare.apply(given, x_seq)
        return found, wanted, (state, updated["state"])

    (variables, *found), (bare_variables, *wanted), states = everything()
    chex.assert_trees_all_equal(variables, bare_variables)
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(*states)


def test_a_cell_that_would_draw_a_mask_a_step_raises():
    options = {**HELD_IN_RNN, "variable_broadcast": "params", "variable_axes": {"state": 0}}
    options["split_rngs"] = {"params": False, "dropout": True}
    rnn = nn.RNN(dropped(nn.GRUCell(6)), **options)
    variables = rnn.init(KEY, X_SEQ)
    with pytest.raises(RuntimeError, match=r"drawn once.*broadcast=\('params', 'state'\)"):
        rnn.apply(variables, X_SEQ, rngs=RNGS, mutable=["state"])


def test_the_weight_drop_of_awd_lstm_is_a_filter():
    """Hidden to hidden alone, as Merity et al. have it."""

    def hidden_to_hidden(path):
        return path[-1] == "kernel" and path[-2].startswith("h")

    cell = dropped(nn.LSTMCell(6), filter=hidden_to_hidden)
    variables = nn.RNN(cell, **HELD_IN_RNN).init(KEY, X_SEQ)
    rnn = nn.RNN(cell, **HELD_IN_RNN)
    _, updated = rnn.apply(variables, X_SEQ, rngs=RNGS, mutable=["state"])
    assert updated["state"]["cell"].keys() == {"hi", "hf", "hg", "ho"}


class Block(nn.Module):
    """All that a step may change beside its masks, and all kinds of names."""

    wrap: bool = True

    @nn.compact
    def __call__(self, x):
        around = dropped if self.wrap else lambda module: module
        x = around(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(6)]))(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        self.sow("intermediates", "normed", x)
        x = sd.Dropout(0.5, deterministic=False)(LIF()(4 * x))
        return around(nn.Dense(2, name="last"))(x)


def other_leaves(state):
    leaves = flatten_dict(state)
    return {path: leaf for path, leaf in leaves.items() if "kernel_mask" not in path}


@cases("whole", [True, False], short=[True])
def test_everything_else_is_as_in_the_module_by_itself(whole):
    """Names, keys, membranes, averages, other masks, and what `sow` collects.

    Around all of a module, or around parts of it that are made inline.
    """
    bare = Block(False)
    layer = dropped(bare) if whole else Block(True)
    variables = layer.init(KEY, X_SEQ[0])
    chex.assert_trees_all_equal(variables, bare.init(KEY, X_SEQ[0]))
    mutable = ["state", "batch_stats", "intermediates"]
    given = {"batch_stats": variables["batch_stats"], "state": variables["state"]}

    @jax.jit
    def steps(params):
        return loop(
            layer, {"params": params, **given}, X_SEQ[:2], rngs=RNGS, mutable=mutable
        )

    y_seq, updated = steps(variables["params"])
    params = masked(variables["params"], updated["state"])
    expected, after = loop(
        bare, {"params": params, **given}, X_SEQ[:2], rngs=RNGS, mutable=mutable
    )
    np.testing.assert_allclose(y_seq, expected, rtol=1e-5, atol=1e-5)
    found = {**updated, "state": other_leaves(updated["state"])}
    wanted = {**after, "state": other_leaves(after["state"])}
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert len(updated["intermediates"]["normed"]) == 2


def test_a_simulation_equals_the_loop_and_multistep_with_neurons_inside():
    layer = dropped(nn.Sequential([nn.Dense(8), LIF(), nn.Dense(3)]))
    variables = layer.init(KEY, X_SEQ[0])
    y_loop, updated_loop = loop(layer, variables, 4 * X_SEQ, rngs=RNGS, jit=True)

    @jax.jit
    def both(variables):
        kept = {"rngs": RNGS, "mutable": ["state"]}
        multi_step = sd.MultiStep(layer).apply(variables, 4 * X_SEQ, **kept)
        return sd.simulate(layer, variables, 4 * X_SEQ, rngs=RNGS), multi_step

    for y_seq, updated in both(variables):
        np.testing.assert_allclose(y_seq, y_loop, rtol=1e-5)
        chex.assert_trees_all_close(dict(updated), dict(updated_loop), rtol=1e-5)


@cases("p", [0.1, 0.5, 0.9], short=[0.9])
def test_kernels_lose_connections_at_exactly_the_rate_and_each_its_own(p):
    layer = dropped(nn.Sequential([nn.Dense(300), nn.Dense(300)]), p=p)
    params = {name: {"kernel": jnp.ones((300, 300))} for name in ("layers_0", "layers_1")}
    for branch in params.values():
        branch["bias"] = jnp.zeros(300)
    _, updated = layer.apply(
        {"params": params}, jnp.ones((1, 300)), rngs=RNGS, mutable=["state"]
    )
    masks = keep_masks(params, updated["state"])
    first, second = (masks[name]["kernel"] for name in params)
    for mask in (first, second):
        assert within(int(mask.sum()), mask.size, 1 - p)
        assert differ_by_chance(mask[::2], mask[1::2], 1 - p)
        assert differ_by_chance(mask[:, ::2], mask[:, 1::2], 1 - p)
    assert differ_by_chance(first, second, 1 - p)


def test_the_mean_over_masks_is_the_module_in_inference():
    """The scale makes it so."""
    layer = dropped(nn.Dense(3, use_bias=False), p=0.3)
    variables = layer.init(KEY, X_SEQ[0])
    apply = jax.jit(
        jax.vmap(
            lambda key: layer.clone(step_mode="m").apply(
                variables, X_SEQ[0], rngs={"dropout": key}
            )
        )
    )
    y = apply(jax.random.split(jax.random.key(3, impl="threefry2x32"), 4000))
    plain = nn.Dense(3, use_bias=False).apply(variables, X_SEQ[0])
    assert (abs(y.mean(0) - plain) <= 6 * y.std(0) / np.sqrt(4000)).all()


@pytest.mark.exhaustive
def test_parameters_of_any_name_and_shape_are_chosen_by_their_path():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, numbers):
            x = nn.Dense(40)(nn.Embed(7, 5)(numbers))
            return x * self.param("gain", nn.initializers.ones, ())

    seen = set()

    def everything_but_a_bias(path):
        seen.add(path)
        return path[-1] != "bias"

    layer = dropped(Scaled(), filter=everything_but_a_bias, p=0.25)
    numbers = jnp.arange(7)
    variables = layer.init(KEY, numbers)
    y, updated = layer.apply(variables, numbers, rngs=RNGS, mutable=["state"])
    assert seen == set(flatten_dict(variables["params"]))
    assert jax.tree.map(jnp.shape, updated["state"]) == {
        "Embed_0": {"embedding_mask": {"mask": (1, 7, 1), "mask_p": (1, 1, 1)}},
        "Dense_0": {"kernel_mask": {"mask": (1, 5, 2), "mask_p": (1, 1, 1)}},
        "gain_mask": {"mask": (1,), "mask_p": (1,)},
    }
    expected = masked(variables["params"], updated["state"], 0.25)
    np.testing.assert_allclose(y, Scaled().apply({"params": expected}, numbers), rtol=1e-5)


def test_layers_made_inline_have_their_own_names_in_paths_and_a_boxed_kernel_stays_boxed():
    seen = set()

    def choose(path):
        seen.add(path)
        return path[-1] == "kernel"

    class Inline(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            parts = nn.Sequential([nn.Dense(4, kernel_init=init), nn.Dense(3, name="out")])
            return dropped(parts, filter=choose)(x)

    variables = Inline().init(KEY, X_SEQ[0])
    assert seen == {(n, leaf) for n in ("Dense_0", "out") for leaf in ("kernel", "bias")}
    _, updated = Inline().apply(variables, X_SEQ[0], rngs=RNGS, mutable=["state"])
    assert updated["state"].keys() == {"Dense_0", "out"}


def test_a_layer_made_inline_may_have_the_name_of_one_inside():
    """Both are asked for by the same path, and both lose connections."""

    class Both(nn.Module):
        given: nn.Module

        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(self.given(x))

    class Inline(nn.Module):
        @nn.compact
        def __call__(self, x):
            return dropped(Both(nn.Dense(4), name="both"))(x)

    variables = Inline().init(KEY, X_SEQ[0])
    _, updated = Inline().apply(variables, X_SEQ[0], rngs=RNGS, mutable=["state"])
    stored = {path[:-1] for path in flatten_dict(updated["state"])}
    assert stored == {("Dense_0", "kernel_mask"), ("both", "Dense_0", "kernel_mask")}


def test_parameters_that_may_be_written_come_back_as_they_were():
    layer = dropped(nn.Dense(40))
    variables = layer.init(KEY, X_SEQ[0])
    for mutable in (True, ["params", "state"]):
        _, updated = layer.apply(
            variables, X_SEQ[0], rngs=RNGS, mutable=mutable, capture_intermediates=True
        )
        chex.assert_trees_all_equal(updated["params"], variables["params"])
        assert "mask" in updated["state"]["kernel_mask"]


# The state: the rules of all masks.


def started(p=0.5):
    layer = dropped(nn.Dense(40), p=p)
    variables = layer.init(KEY, X_SEQ[0])
    y, updated = layer.apply(variables, X_SEQ[0], rngs=RNGS, mutable=["state"])
    return layer, {**variables, **updated}, y


def test_a_simulation_keeps_the_masks_and_the_p_that_it_started_with():
    layer, variables, y = started()
    np.testing.assert_array_equal(variables["state"]["kernel_mask"]["mask_p"], 0.5)
    for p in (0.1, 1.0):
        later, after = layer.clone(p=p).apply(variables, X_SEQ[0], mutable=["state"])
        np.testing.assert_array_equal(later, y)
        chex.assert_trees_all_equal(after["state"], variables["state"])
    # None is read, nor dropped, at 0.
    quiet, after = layer.clone(p=0.0).apply(variables, X_SEQ[0], mutable=["state"])
    np.testing.assert_array_equal(quiet, nn.Dense(40).apply(variables, X_SEQ[0]))
    chex.assert_trees_all_equal(after["state"], variables["state"])
    # The next one has the new one.
    fresh = {"params": variables["params"]}
    _, after = layer.clone(p=0.1).apply(fresh, X_SEQ[0], rngs=RNGS, mutable=["state"])
    np.testing.assert_array_equal(after["state"]["kernel_mask"]["mask_p"], np.float32(0.1))


def test_p_of_0_stores_nothing_and_p_of_1_gives_zeros_and_zero_gradients_of_any_kernel():
    layer, variables, _ = started()
    variables = {"params": variables["params"]}
    _, after = layer.clone(p=0.0).apply(variables, X_SEQ[0], mutable=["state"])
    assert not after
    with jax.debug_nans(False):
        bad = variables["params"]["kernel"].at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf)
    nothing = layer.clone(p=1.0, step_mode="m")

    def loss(params):
        y = nothing.apply({"params": params}, X_SEQ, rngs=RNGS)
        return y.sum(), y

    params = {**variables["params"], "kernel": bad}
    with jax.debug_nans(True):
        grads, y = jax.grad(loss, has_aux=True)(params)
    assert not y.any()
    assert not grads["kernel"].any()


def test_resets_and_monte_carlo_know_the_masks_and_no_leaf_of_a_neuron():
    class Refractory(nn.Module):
        @nn.compact
        def __call__(self, x):
            for name in ("threshold_mask", "refractory_mask"):
                leaf = self.variable("state", name, jnp.zeros_like, x)
                leaf.value = leaf.value + x
            return x

    layer = dropped(nn.Sequential([nn.Dense(40), Refractory()]))
    variables = layer.init(KEY, X_SEQ[0])
    _, updated = sd.simulate(layer, variables, X_SEQ, rngs=RNGS)
    state = sd.reset_masks(updated["state"])
    assert state.keys() == {"layers_1"}
    assert state["layers_1"].keys() == {"threshold_mask", "refractory_mask"}
    result = jax.jit(
        lambda v: sd.monte_carlo(
            layer.clone(deterministic=True), v, X_SEQ, rngs=RNGS, samples=4
        )
    )(variables)
    assert (result.variance > 0).all()
    with pytest.raises(ValueError, match=r"no mask.*state/layers_0/kernel_mask/mask,"):
        sd.monte_carlo(layer, {**variables, **updated}, X_SEQ, rngs=RNGS, samples=4)


@pytest.mark.parametrize("examples", [3, 4, 40])
def test_a_mask_of_the_whole_batch_is_never_restarted_by_rows(examples):
    """Whatever the number of inputs: those are no examples."""
    _, variables, _ = started()
    done = jnp.arange(examples) == 1
    for axis in (None, 0, 1, 2):
        with pytest.raises(ValueError, match="kernel_mask"):
            sd.reset_rows(done, variables["state"], variables["state"], axis=axis)


def test_a_single_step_that_can_not_keep_its_mask_raises_and_a_whole_sequence_need_not():
    layer, variables, _ = started()
    params = {"params": variables["params"]}
    with pytest.raises(
        RuntimeError, match="must be mutable or hold a mask at state/kernel_"
    ):
        layer.apply(params, X_SEQ[0], rngs=RNGS)
    kept, _ = layer.clone(step_mode="m").apply(params, X_SEQ, rngs=RNGS, mutable=["state"])
    whole = layer.clone(step_mode="m").apply(params, X_SEQ, rngs=RNGS)
    np.testing.assert_array_equal(whole, kept)
    with pytest.raises(ValueError, match="DropConnect is in mode 'm'"):
        sd.simulate(layer.clone(step_mode="m"), params, X_SEQ, rngs=RNGS)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            {"mask": jnp.zeros((1, 3, 2), jnp.uint32)},
            r"must fit the parameter.*\(1, 4, 2\)",
        ),
        ({"mask": jnp.ones((1, 4, 40), bool)}, r"must fit the parameter.*uint32"),
        (
            {"mask": jnp.zeros((1, 4, 2), jnp.uint32), "mask_p": jnp.zeros(())},
            r"kernel_mask/mask_p must fit its mask",
        ),
        (jnp.zeros((3, 40)), r"state/kernel_mask must be free.*state_collection='masks'"),
    ],
)
def test_what_is_stored_in_the_place_of_a_mask_and_is_none_raises(stored, message):
    layer, variables, _ = started()
    with pytest.raises(ValueError, match=message):
        layer.apply(
            {"params": variables["params"], "state": {"kernel_mask": stored}},
            X_SEQ[0],
            rngs=RNGS,
            mutable=["state"],
        )


def test_masks_in_a_collection_of_their_own_beside_neurons():
    layer = dropped(nn.Sequential([nn.Dense(8), LIF()]), state_collection="masks")
    variables = layer.init(KEY, X_SEQ[0])
    _, updated = sd.simulate(layer, variables, X_SEQ, rngs=RNGS, mutable=["masks"])
    assert flatten_dict(updated["state"]).keys() == {("layers_1", "v")}
    assert {path[-1] for path in flatten_dict(updated["masks"])} == {"mask", "mask_p"}


# Transforms.


def test_a_simulation_keeps_one_masked_kernel_for_its_gradient_and_none_a_step():
    layer, variables, _ = started()

    def run(params, x_seq):
        return sd.simulate(layer, {"params": params}, x_seq, rngs=RNGS)[0]

    _, pullback = jax.vjp(run, variables["params"], X_SEQ)
    shapes = [leaf.shape for leaf in jax.tree.leaves(pullback)]
    assert (INPUTS, 40) in shapes
    assert not [shape for shape in shapes if shape[1:] == (INPUTS, 40)]
    assert not [shape for shape in shapes if shape[0] == STEPS and shape[-1] == 2]


def test_a_stack_over_depth_has_a_mask_a_layer():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return dropped(nn.Dense(INPUTS, name="dense"))(x), None

    stack = nn.scan(
        Layer,
        variable_axes={"params": 0, "state": 0},
        split_rngs={"params": True, "dropout": True},
        length=3,
    )()
    variables = stack.init(KEY, X_SEQ[0], None)
    (y, _), updated = stack.apply(variables, X_SEQ[0], None, rngs=RNGS, mutable=["state"])
    state, expected = updated["state"]["dense"], X_SEQ[0]
    assert len(np.unique(state["kernel_mask"]["mask"], axis=0)) == 3
    for n in range(3):
        params, masks = (
            jax.tree.map(lambda leaf, n=n: leaf[n], tree)
            for tree in (variables["params"]["dense"], state)
        )
        expected = nn.Dense(INPUTS).apply({"params": masked(params, masks)}, expected)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@cases("lifted", [nn.jit, nn.remat], short=[nn.remat])
@pytest.mark.parametrize("inside", [True, False])
def test_lifted_transforms_around_and_inside(lifted, inside):
    plain, variables, y = started()
    if inside:
        layer = dropped(lifted(nn.Dense)(40))
    else:
        layer = lifted(sd.DropConnect)(nn.Dense(40), deterministic=False)

    def loss(layer):
        def of(params):
            out = layer.apply({**variables, "params": params}, X_SEQ[0])
            return (out**2).sum(), out

        return of

    (_, out), grads = jax.value_and_grad(loss(layer), has_aux=True)(variables["params"])
    np.testing.assert_allclose(out, y, rtol=1e-6)
    expected = jax.grad(loss(plain), has_aux=True)(variables["params"])[0]
    chex.assert_trees_all_close(grads, expected, rtol=1e-5)
    _, drawn = layer.apply({"params": variables["params"]}, X_SEQ[0], rngs=RNGS,
                           mutable=["state"])  # fmt: skip
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn["state"], variables["state"])


def test_a_dropout_inside_of_a_wrapped_cell_sees_the_scan_around_it():
    """The masked kernels are new at each step, and yet no layers of a stack."""

    class Cell(nn.RNNCellBase):
        @nn.compact
        def __call__(self, carry, x):
            carry = carry + sd.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))
            return carry, carry

        @nn.nowrap
        def initialize_carry(self, rng, input_shape):
            return jnp.zeros((*input_shape[:-1], 4))

        @property
        def num_feature_axes(self):
            return 1

    held = nn.RNN(dropped(Cell()), **HELD_IN_RNN)
    variables = held.init(KEY, X_SEQ)
    y_seq, updated = held.apply(variables, X_SEQ, rngs=RNGS, mutable=["state"])
    mask = updated["state"]["cell"]["Dropout_0"]["mask"]
    moves = y_seq[1:] != y_seq[:-1]
    assert (moves == mask[None]).all()
    options = {**HELD_IN_RNN, "variable_axes": {"state": 0}}
    options["variable_broadcast"] = ("params", "masks")
    rnn = nn.RNN(dropped(Cell(), state_collection="masks"), **options)
    with pytest.raises(RuntimeError, match=r"cell/Dropout_0/mask must be drawn once"):
        rnn.apply(variables, X_SEQ, rngs=RNGS, mutable=["state", "masks"])


def test_a_mask_born_inside_a_raw_transform_raises_and_a_stored_one_is_read():
    class Raw(nn.Module):
        @nn.compact
        def __call__(self, x_seq):
            layer = dropped(nn.Dense(40, name="dense"))
            return jax.lax.scan(lambda carry, x: (carry, layer(x)), (), x_seq)[1]

    _, variables, y = started()
    params = {"params": {"dense": variables["params"]}}
    with pytest.raises(RuntimeError, match="inside a raw JAX transform"):
        Raw().apply(params, X_SEQ, rngs=RNGS, mutable=["state"])
    given = {**params, "state": {"dense": variables["state"]}}
    y_seq, updated = Raw().apply(given, X_SEQ, rngs=RNGS, mutable=["state"])
    np.testing.assert_allclose(y_seq[0], y, rtol=1e-6)
    chex.assert_trees_all_equal(updated["state"], given["state"])


@cases("spec", [("data", None), (None, "data"), (None, None)], short=[("data", None)])
@cases("kind", ["Auto", "Explicit"], short=["Explicit"])
def test_a_kernel_that_is_split_over_devices(kind, spec):
    layer, variables, y = started()
    params = {"params": variables["params"]}
    kind = jax.sharding.AxisType[kind]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))

    def place(x, *spec):
        spec = jax.sharding.PartitionSpec(*spec)
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        split = {"kernel": place(params["params"]["kernel"], *spec)}
        split["bias"] = place(params["params"]["bias"], spec[1])
        x = place(X_SEQ[0], None, None)
        run = jax.jit(lambda p, x: layer.apply(p, x, rngs=RNGS, mutable=["state"]))
        out, updated = run({"params": split}, x)
        np.testing.assert_allclose(out, y, rtol=1e-5)
        chex.assert_trees_all_equal(updated["state"], variables["state"])


# Arguments.


class Takes(nn.Module):
    """A module that takes the flag itself, and more."""

    @nn.compact
    def __call__(self, x, gain, *, deterministic):
        self.sow("intermediates", "flag", deterministic)
        return gain * nn.Dense(3)(x)


def test_deterministic_is_handed_on_to_a_module_whose_call_names_it():
    layer = sd.DropConnect(Takes())
    variables = layer.init(KEY, X_SEQ[0], 2.0, deterministic=True)
    variables = {"params": variables["params"]}
    for flag in (True, False):
        _, updated = layer.apply(
            *(variables, X_SEQ[0], 2.0),
            deterministic=flag,
            rngs=RNGS,
            mutable=["state", "intermediates"],
        )
        assert updated["intermediates"]["flag"] == (flag,)
        assert ("state" in updated) == (not flag)
    with pytest.raises(ValueError, match="given to DropConnect once"):
        layer.clone(deterministic=True).apply(variables, X_SEQ[0], 2.0, deterministic=True)
    with pytest.raises(ValueError, match="must be given to DropConnect"):
        sd.DropConnect(nn.Dense(3)).apply(variables, X_SEQ[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: sd.DropConnect(nn.Dense),
            TypeError,
            r"`module` must be an instance.*class",
        ),
        (lambda: sd.DropConnect(jnp.tanh), TypeError, r"`module` must be an instance"),
        (
            lambda: dropped(nn.Dense(3), filter="kernel"),
            TypeError,
            r"`filter` must be a func",
        ),
        (lambda: dropped(nn.Dense(3), p=1.5), ValueError, r"`p` must be in \[0, 1\]"),
        (
            lambda: dropped(dropped(nn.Dense(3))),
            TypeError,
            r"not lose .* got a DropConnect:",
        ),
        (
            lambda: dropped(sd.DropConnectLinear(4, 3)),
            TypeError,
            r"got a DropConnectLinear.*wrap `nn\.Dense",
        ),
    ],
)
def test_fields_are_checked_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Table(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.param("table", lambda key: jnp.arange(3))
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("module", "choose", "error", "message"),
    [
        (
            nn.Dense(3),
            lambda path: path[-1] == "kernal",
            ValueError,
            r"chose none of (bias, kernel|kernel, bias);",
        ),
        (LIF(), lambda path: True, ValueError, r"the module has none here"),
        (Table(), lambda path: True, TypeError, r"chose table of int32.*\('table',\)"),
        (nn.Dense(3), lambda path: None, TypeError, r"return True or False.*None"),
    ],
)
def test_what_a_filter_chooses_is_checked_in_init_and_later(module, choose, error, message):
    layer = sd.DropConnect(module, filter=choose)
    variables = module.init(KEY, X_SEQ[0])
    for flag in (True, False):
        with pytest.raises(error, match=message):
            layer.init(KEY, X_SEQ[0], deterministic=flag)
        given = {"deterministic": flag, "rngs": RNGS, "mutable": ["state"]}
        with pytest.raises(error, match=message):
            layer.apply(variables, X_SEQ[0], **given)


class Two(nn.Module):
    """Two wrappers around one instance, called in either order."""

    turned: bool

    def setup(self):
        dense = nn.Dense(INPUTS)
        self.one, self.other = dropped(dense), dropped(dense, p=0.1)

    def __call__(self, x):
        first, second = (self.other, self.one) if self.turned else (self.one, self.other)
        return second(first(x))


@pytest.mark.parametrize("turned", [True, False])
def test_two_wrappers_around_one_instance_raise(turned):
    with pytest.raises(
        ValueError, match=r"lie in one DropConnect.*(one|other) is also that"
    ):
        Two(turned).init(KEY, X_SEQ[0])
    dense = nn.Dense(INPUTS)
    model = nn.Sequential([dropped(dense), dropped(dense)])
    with pytest.raises(ValueError, match=r"lie in one DropConnect"):
        sd.MultiStep(model).init(KEY, X_SEQ)


def test_one_wrapper_called_twice_and_a_module_used_bare_as_well_are_fine():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(INPUTS)
            layer = dropped(dense)
            return layer(layer(dense(x)))

    variables = Tied().init(KEY, X_SEQ[0])
    y, updated = Tied().apply(variables, X_SEQ[0], rngs=RNGS, mutable=["state"])
    assert updated["state"].keys() == {"Dense_0"}
    params, dense = variables["params"]["Dense_0"], nn.Dense(INPUTS)
    lost = {"params": masked(params, updated["state"]["Dense_0"])}
    expected = dense.apply({"params": params}, X_SEQ[0])
    np.testing.assert_allclose(
        y, dense.apply(lost, dense.apply(lost, expected)), rtol=1e-4, atol=1e-5
    )


@cases(
    "inner",
    [
        lambda: dropped(nn.Dense(3)),
        lambda: sd.DropConnectLinear(INPUTS, 3, invariant=True, deterministic=False),
        lambda: sd.MultiStep(dropped(nn.Dense(3))),
    ],
    short=lambda inner: "MultiStep" in inner.__code__.co_names,
)
def test_a_parameter_loses_connections_once(inner):
    """One wrapper inside of another is fine, if their parameters are not the same."""
    model = nn.Sequential([nn.Dense(INPUTS), inner()])
    x, fields = X_SEQ, {"step_mode": "m"}
    if isinstance(model.layers[1], sd.DropConnectLinear):
        x, fields = X_SEQ[0], {}
    twice = dropped(model, **fields)
    variables = {"params": model.init(KEY, x)["params"]}
    with pytest.raises(ValueError, match=r"layers_1/kernel.*lost some already.*`filter`"):
        twice.apply(variables, x, rngs=RNGS, mutable=["state"])

    def first(path):
        return path == ("layers_0", "kernel")

    once = dropped(model, filter=first, **fields)
    _, updated = once.apply(variables, x, rngs=RNGS, mutable=["state"])
    assert updated["state"].keys() == {"layers_0", "layers_1"}


def test_by_default_parameters_of_the_name_kernel_are_lost_and_not_what_is_below_it():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="kernel")(x)

    _, updated = dropped(Named()).init_with_output(KEY, X_SEQ[0])
    variables = {"params": updated["params"]}
    _, updated = dropped(Named()).apply(variables, X_SEQ[0], rngs=RNGS, mutable=["state"])
    assert updated["state"]["kernel"].keys() == {"kernel_mask"}


def test_the_field_of_the_wrapper_is_not_handed_to_the_module():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic=True):
            x = nn.Dense(40)(x)
            return nn.Dropout(0.5)(x, deterministic=deterministic)

    ones = jnp.ones((4, 6))
    params = Noisy().init(KEY, ones)["params"]
    for field, flag, drops in (
        (False, None, False),
        (True, None, False),
        (None, False, True),
        (None, True, False),
    ):
        model = sd.DropConnect(Noisy(), deterministic=field)
        y, _ = model.apply(
            {"params": params}, ones, deterministic=flag, rngs=RNGS, mutable=["state"]
        )
        assert ((y == 0).mean() > 0.3) == drops


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_no_parameter_of_lost_connections_loses_them_again(name):
    inner = sd.DropConnectLinear(INPUTS, 3, invariant=True, deterministic=False)
    twice = dropped(inner_of(inner), filter=lambda path: path[-1] == name)
    variables = {"params": inner_of(inner).init(KEY, X_SEQ[0])["params"]}
    with pytest.raises(ValueError, match=rf"layers_0/{name} of .* lost some already"):
        twice.apply(variables, X_SEQ[0], rngs=RNGS, mutable=["state"])


def inner_of(layer):
    return nn.Sequential([layer, nn.tanh])


def test_mask_leaves_have_the_names_that_every_part_knows():
    _, variables, _ = started()
    assert {path[-1] for path in flatten_dict(variables["state"])} <= set(MASK_NAMES)
