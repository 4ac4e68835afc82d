"""Programs for an H100 and a TPU v5e: their structure, without having either.

What is asserted are bounds of memory, products, draws and exchanges, and no times. The
compilers are no part of the tests' packages: without them this is skipped, with a line
that says what to type.
"""

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
    for result in results:
        name, chips = result["name"], result["chips"]
        assert result["temporary"] <= result["bound"], name
        assert not result["draws_in_loop"], name
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
        "accessed": 3.0,
        "microseconds": None,
        "collectives": {"all-reduce": 1000},
        "seconds": 1.0,
    }
    limit = {**result, "name": "limit", "limit": None, "bound": None, "accessed": 2.0}
    ours, _ = command.rows([result, limit])
    for part in ("1.00 of 2", "3.0, 1.50 x", "all-reduce 1,000"):
        assert part in ours
