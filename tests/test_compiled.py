"""Programs for an H100 and a TPU v5e: their structure, without having either.

What is asserted are bounds of memory, products, draws and exchanges, and no times. The
compilers are no part of the tests' packages: without them this is skipped, with a line
that says what to type.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest

import snn_dropout as sd
from benchmarks.compiled import __main__ as command
from benchmarks.compiled.look import look
from benchmarks.compiled.targets import TARGETS

KEY = jax.random.key(0)


@pytest.fixture(
    scope="module", params=[(name, n) for name in TARGETS for n in (1, 8)], ids=str
)
def results(request):
    name, chips = request.param
    if install := TARGETS[name].missing():
        pytest.skip(command.absent(TARGETS[name], install))
    return command.run(TARGETS[name], chips, bounded=True)


@pytest.mark.exhaustive
def test_programs_for_devices_that_are_not_there_keep_their_bounds(results):
    assert len(results) > 15
    by_name = {result["name"]: result for result in results}
    assert sum(result["moves"] is not None for result in results) == 2
    for result in results:
        name, chips = result["name"], result["chips"]
        assert result["temporary"] <= result["bound"], name
        assert not result["draws_in_loop"], name
        if result["moves"]:
            limit = by_name[result["limit"]]
            assert result["moved"] <= result["moves"] * limit["moved"], name
        if result["masked"]:
            assert result["largest_size"] < result["masked"] / chips, name
        if result["matrix_units"]:
            assert result["products"] >= (3 if "gradient" in name else 1), name
        of_parameters = chips > 1 and "DropConnect" in name and "gradient" in name
        assert set(result["collectives"]) == ({"all-reduce"} if of_parameters else set()), (
            name
        )
        if of_parameters:
            width = {"1024 x 1024": 1024, "4096 x 4096": 4096}.get(
                name.split(", ")[-1], 512
            )
            assert result["collectives"] == {"all-reduce": width**2 + width}, name


def compiled(function, *arguments):
    return look(jax.jit(function).lower(*arguments).compile())


@pytest.mark.optimised
def test_what_a_program_says_is_read():
    x = jnp.ones((8, 16, 32))
    found = compiled(lambda x: jax.lax.scan(lambda c, x: (c + x, c @ c.T), x[0], x)[1], x)
    assert found["loops"] == 1
    assert found["products"] == 1
    assert found["arguments"] == 8 * 16 * 32 * 4 / 2**20
    assert found["largest_size"] >= 8 * 16 * 16
    assert found["collectives"] == {}
    assert not found["draws_in_loop"]


def test_a_draw_in_a_loop_over_time_is_seen():
    x_seq, layer = jnp.ones((4, 2, 64)), sd.Dropout(0.5, deterministic=False)

    def held(key):
        return sd.simulate(layer, {}, x_seq, rngs={"dropout": key})[0]

    def anew(key):
        def step(key, x):
            y, _ = layer.apply({}, x, rngs={"dropout": key}, mutable=["state"])
            return jax.random.fold_in(key, 1), y

        return jax.lax.scan(step, key, x_seq)[1]

    assert not compiled(held, KEY)["draws_in_loop"]
    assert compiled(anew, KEY)["draws_in_loop"]


@pytest.mark.optimised
def test_what_a_loop_moves_counts_as_often_as_it_runs():
    def moved(steps):
        x_seq = jnp.ones((steps, 64, 32))

        def step(carry, x):
            return carry + x, carry * x

        return compiled(lambda x_seq: jax.lax.scan(step, x_seq[0], x_seq)[1], x_seq)[
            "moved"
        ]

    ten_steps = 10 * 64 * 32 * 4 / 2**20
    # At each step two arrays are read and two written, and some of them copied.
    assert 4 * ten_steps <= moved(20) - moved(10) <= 10 * ten_steps


# A loop of seven steps: y[t] = x[t] + mask; its kernel reads a step of x and a mask, and
# writes a step of y. In front of it 4 KiB are copied.
LOOP = """HloModule loop

%kernel (a: f32[7,8,128], t: s32[], y: f32[7,8,128], m: pred[8,128]) -> f32[7,8,128] {
  %a = f32[7,8,128]{2,1,0:T(8,128)} parameter(0)
  %t = s32[]{:T(128)} parameter(1)
  %m = pred[8,128]{1,0:T(8,128)(4,1)S(1)} parameter(3)
  %y = f32[7,8,128]{2,1,0:T(8,128)} parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,8,128]{2,1,0} dynamic-slice(%a, %t, %zero, %zero)
  %one = f32[8,128]{1,0} bitcast(%slice)
  %float = f32[8,128]{1,0} convert(%m)
  %sum = f32[8,128]{1,0} add(%one, %float)
  %new = f32[1,8,128]{2,1,0} bitcast(%sum)
  ROOT %whole = f32[7,8,128]{2,1,0} dynamic-update-slice(%y, %new, %t, %zero, %zero)
}

%body (arg: (s32[], f32[7,8,128], f32[7,8,128], pred[8,128])) -> (s32[]) {
  %arg = (s32[], f32[7,8,128]{2,1,0}, f32[7,8,128]{2,1,0}, pred[8,128]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%arg), index=0
  %in = f32[7,8,128]{2,1,0} get-tuple-element(%arg), index=1
  %out = f32[7,8,128]{2,1,0} get-tuple-element(%arg), index=2
  %mask = pred[8,128]{1,0} get-tuple-element(%arg), index=3
  %done = f32[7,8,128]{2,1,0} fusion(%in, %n, %out, %mask), kind=kLoop, calls=%kernel, backend_config={"estimated_cycles":"10"}
  ROOT %all = (s32[], f32[7,8,128]{2,1,0}) tuple(%n, %in, %done, %mask)
}

%condition (arg.1: (s32[])) -> pred[] {
  %arg.1 = (s32[]) parameter(0)
  %limit = s32[]{:T(128)} constant(7)
  %now = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%now, %limit), direction=LT
}

ENTRY %main (x: f32[7,8,128], k: f32[8,128]) -> f32[7,8,128] {
  %x = f32[7,8,128]{2,1,0} parameter(0)
  %k = f32[8,128]{1,0} parameter(1)
  %moved = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[]) copy-start(%k)
  %there = f32[8,128]{1,0} copy-done(%moved)
  %room = f32[7,8,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %start = (s32[], f32[7,8,128]{2,1,0}) tuple(%x, %room)
  %loop = (s32[], f32[7,8,128]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %end = f32[7,8,128]{2,1,0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501


@pytest.mark.parametrize("known", [False, True])
def test_of_what_a_kernel_slices_the_slices_count(known):
    text = LOOP
    if known:
        text = text.replace("constant(7)", "constant(9)")
        count = ', backend_config={"known_trip_count":{"n":"7"}}'
        text = text.replace("body=%body", f"body=%body{count}")

    class Compiled:
        memory_analysis = mock.MagicMock()

        def as_text(self):
            return text

        def cost_analysis(self):
            return {"optimal_seconds": 1.0}

    step = 8 * 128 * 4
    # The number of the step, four bytes, is read, too.
    each_step = 2 * step + 8 * 128 + 4
    found = look(Compiled())
    assert found["moved"] * 2**20 == 7 * each_step + 2 * step
    assert found["cycles"] == 70
    assert found["microseconds"] is None  # the cost model takes the loop once


def test_an_exchange_is_counted():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(jnp.ones((8, 3)), place)
    assert compiled(lambda x: x.sum(0), x)["collectives"] == {"all-reduce": 3}


@pytest.mark.parametrize("name", TARGETS)
def test_a_compiler_that_is_missing_is_named_with_what_to_type(name, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    assert command.main(["--target", name]) == 0
    printed = capsys.readouterr().out
    assert "no compiler is installed; type: python -m pip install " in printed
    with pytest.raises(SystemExit, match=r"no compiler is installed; type: "):
        command.main(["--target", name, "--json"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "h200"], "invalid choice: 'h200'"),
        (["--chips", "2"], "invalid choice"),
    ],
)
def test_bad_options_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_unknown_programs_are_named(monkeypatch):
    monkeypatch.setattr(type(TARGETS["v5e"]), "prepare", lambda self: None)
    with pytest.raises(
        SystemExit, match=r"no program has .*nonsense.* in its name; there are: "
    ):
        list(command.compile_all(TARGETS["v5e"], 1, ["nonsense"], False))


def test_a_table_has_ratios_to_what_stands_beside(monkeypatch):
    result = {
        "name": "ours",
        "limit": "limit",
        "bound": 2.0,
        "temporary": 1.0,
        "arguments": 1.0,
        "results": 1.0,
        "kernels": 1,
        "loops": 0,
        "products": 0,
        "largest": "f32[2]",
        "moved": 3.0,
        "cycles": None,
        "microseconds": None,
        "collectives": {"all-reduce": 1000},
        "seconds": 1.0,
    }
    limit = {**result, "name": "limit", "limit": None, "bound": None, "moved": 2.0}
    ours, _ = command.rows([result, limit])
    for part in ("1.00 of 2", "3.0, 1.50 x", "all-reduce 1,000"):
        assert part in ours
