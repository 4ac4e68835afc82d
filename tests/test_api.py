"""The public face: names, documentation, imports, and who may know whom."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import snn_dropout as sd
from snn_dropout import functional, nnx

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "snn_dropout"


def test_importing_is_silent_and_brings_jax_and_flax_only():
    program = (
        "import sys, jax, flax.linen; before = set(sys.modules)\n"
        "import snn_dropout\n"
        "print({name.split('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert run.stderr == ""
    allowed = {"snn_dropout", "jax", "flax"} | sys.stdlib_module_names
    assert ast.literal_eval(run.stdout) <= allowed


def in_a_fresh_process(program):
    """What a program prints, where nothing of the package has been imported yet."""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    return ast.literal_eval(run.stdout)


ON_DEMAND = {
    "snn_dropout.convert",
    "snn_dropout.functional._chunks",
    "snn_dropout.functional._closed_forms",
    "snn_dropout.functional._trilinear",
    "snn_dropout.functional.connections",
    "snn_dropout.functional.expectation",
    "snn_dropout.functional.parameters",
    "snn_dropout.linen.layers.dropconnect",
    "snn_dropout.linen.layers.wrapper",
    "snn_dropout.linen.uncertainty",
    "snn_dropout.nnx",
}


def test_importing_brings_what_dropout_needs_and_no_more():
    """Nor does a dropout, or its simulation, ask for more when it is used."""
    imported, used = in_a_fresh_process("""
import sys, jax, flax.linen
before = set(sys.modules)
import snn_dropout as sd
imported = set(sys.modules)
def simulation(x_seq):
    rngs = {"dropout": jax.random.key(0)}
    return sd.simulate(sd.Dropout(0.5), {}, x_seq, deterministic=False, rngs=rngs)
jax.eval_shape(simulation, jax.ShapeDtypeStruct((2, 1, 3), "float32"))
used = {name for name in set(sys.modules) - imported if name.startswith("snn_dropout")}
print((imported - before, used))
""")
    assert not [name for name in imported if name.startswith(tuple(ON_DEMAND))]
    assert not used
    # Each is there when it is asked for, by this name.
    for package in (sd, functional):
        for name in package.__all__:
            getattr(package, name)
    assert set(sys.modules) > ON_DEMAND
    # Whatever JAX and Flax import in some version, this is not for us.
    heavy = {"concurrent", "numpy", "optax", "orbax", "scipy", "statistics"}
    assert not {name.split(".")[0] for name in imported} & heavy


def test_names_that_are_imported_on_demand_are_as_others():
    """In a star, in ``dir``, in copies and pickles, and by a name that is not there."""
    found = in_a_fresh_process("""
import copy, pickle
import snn_dropout as sd
for package in (sd, sd.functional):
    assert set(package.__all__) <= set(dir(package))
    assert not hasattr(package, "nowhere")
assert "nnx" in dir(sd)
names = {}
exec("from snn_dropout import *; from snn_dropout.functional import *", names)
assert set(sd.__all__) | set(sd.functional.__all__) <= set(names)
assert names["DropConnect"] is sd.DropConnect is vars(sd)["DropConnect"]
from snn_dropout import linen
from snn_dropout.linen import layers
for name in sd.__all__:
    for package in (linen, layers):
        assert name not in dir(package) or getattr(package, name) is getattr(sd, name)
for item in (sd.DropConnect, sd.monte_carlo, sd.functional.Threshold(1.0)):
    assert pickle.loads(pickle.dumps(item)) == copy.deepcopy(item) == item
try:
    sd.nowhere
except AttributeError as error:
    print(repr(str(error)))
""")
    assert found == "module 'snn_dropout' has no attribute 'nowhere'"


@pytest.mark.exhaustive
def test_modules_are_found_without_an_import_of_their_own():
    """In any order, as from a package that imports all of them."""
    modules = sorted(
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for file in PACKAGE.rglob("*.py")
        if "/_" not in f"/{file.relative_to(PACKAGE)}"
    )
    assert {"convert", "functional.linear", "linen.uncertainty", "nnx.time"} <= {*modules}
    found = in_a_fresh_process(f"""
import sys
found = []
for name in {modules}:
    for module in [module for module in sys.modules if "snn_dropout" in module]:
        del sys.modules[module]
    import snn_dropout as part
    for word in name.split("."):
        part = getattr(part, word)
    found.append(name if part is sys.modules[f"snn_dropout.{{name}}"] else part)
print(found)
""")
    assert found == modules


def test_type_checkers_see_the_names_that_are_imported_on_demand():
    """Their imports, which nothing runs, name what the package finds, and no more."""
    for package in ("", "functional", "linen", "linen/layers"):
        tree = ast.parse((PACKAGE / package / "__init__.py").read_text())
        [choice] = [node for node in tree.body if isinstance(node, ast.If)]
        typed = {alias.asname for node in choice.body for alias in node.names}
        [found] = [node for node in ast.walk(choice) if isinstance(node, ast.Dict)]
        assert typed == {key.value for key in found.keys}


@pytest.mark.exhaustive
def test_names_may_be_asked_for_first_while_a_program_is_traced():
    """A module that computes when it is imported would keep tracers of that program."""
    asked_for = in_a_fresh_process("""
import jax
import snn_dropout as sd
names = [(package, name) for package in (sd, sd.functional) for name in dir(package)]
def program(x):
    for package, name in names:
        getattr(package, name)
    return x
with jax.checking_leaks():
    jax.make_jaxpr(program)(1.0)
import sys
print(set(sys.modules))
""")
    assert asked_for > ON_DEMAND


# What each part may know of the package, from the bottom up.
MAY_IMPORT = {
    "_on_demand": set(),
    "_checks": {"_checks"},
    "functional": {"_checks", "_on_demand", "functional"},
    "convert": set(),
    "linen/_surroundings": {"_checks"},
    "linen/state": {"_checks", "functional", "linen/_surroundings"},
    "linen/reset": {"_checks", "linen/state"},
    "linen/_held": {"_checks", "functional", "linen/_surroundings", "linen/state"},
    "linen/_scopes": {"_checks", "linen/_held", "linen/_surroundings", "linen/state"},
    "linen/_parameters": {
        "linen/_held",
        "linen/_scopes",
        "linen/_surroundings",
        "linen/state",
    },
    "linen/_simulation": {"_checks", "functional", "linen/state", "linen/_scopes"},
    "linen/layers": {
        "_checks",
        "_on_demand",
        "functional",
        "linen/_held",
        "linen/_parameters",
        "linen/_surroundings",
        "linen/state",
        "linen/_scopes",
        "linen/_simulation",
        "linen/layers",
    },
    "linen/time": {
        "_checks",
        "functional",
        "linen/_held",
        "linen/_scopes",
        "linen/_simulation",
    },
    "linen/uncertainty": {
        "_checks",
        "functional",
        "linen/layers",
        "linen/state",
        "linen/time",
    },
    "nnx/_held": {"_checks", "functional"},
    "nnx/_calls": {"_checks", "nnx/_held"},
    "nnx/_engine": {"_checks", "functional", "nnx/_calls", "nnx/_held"},
    "nnx/_copies": {"_checks", "nnx/_calls", "nnx/_engine"},
    "nnx/_dropout": {"_checks", "functional", "nnx/_held"},
    "nnx/layers": {"_checks", "functional", "nnx/_dropout"},
    "nnx/_activation": {
        "_checks",
        "functional",
        "nnx/_copies",
        "nnx/_engine",
        "nnx/_held",
    },
    "nnx/dropconnect": {
        "_checks",
        "functional",
        "nnx/_activation",
        "nnx/_copies",
        "nnx/_dropout",
        "nnx/_held",
    },
    "nnx/masks": {"_checks", "functional", "nnx/_calls", "nnx/_engine", "nnx/_held"},
    "nnx/time": {"_checks", "functional", "nnx/_calls", "nnx/_engine"},
    "nnx/uncertainty": {"_checks", "functional", "nnx/_held", "nnx/time"},
    "nnx/spyx": {"_checks", "functional", "nnx/_dropout", "nnx/_held"},
}


def part_of(module):
    """The part of the package that a module belongs to."""
    parts = module.split(".")[1:]
    return "/".join(parts[:2] if parts[0] in ("linen", "nnx") else parts[:1])


@pytest.mark.short
@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part):
    folder = PACKAGE / part
    files = list(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [f"{module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("snn_dropout."):
                    assert part_of(name) in MAY_IMPORT[part], f"{file.name}: {name}"
                if part in ("_checks", "functional"):
                    assert not name.startswith("flax"), f"{file.name}: {name}"


def test_the_map_of_imports_has_every_part():
    files = PACKAGE.rglob("*.py")
    modules = [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files
    ]
    parts = {part_of(module) for module in modules if not module.endswith("__init__")}
    assert parts == MAY_IMPORT.keys()


PUBLIC = [(sd, name) for name in sd.__all__ if name != "functional"] + [
    (functional, name) for name in functional.__all__
]
PUBLIC += [(nnx, name) for name in nnx.__all__]
IDS = [f"{module.__name__.split('.')[-1]}.{name}" for module, name in PUBLIC]


@pytest.mark.short
@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=IDS)
def test_every_public_name_is_documented_with_an_example(module, name):
    documentation = inspect.getdoc(getattr(module, name))
    assert ">>>" in documentation
    assert "Args:" in documentation or "Attributes:" in documentation
    text = (ROOT / "README.md").read_text()
    # The very name, as code: not as a part of another one.
    prefix = r"nnx\." if module is nnx else r"(?:sd\.|functional\.)?"
    assert re.search(rf"`{prefix}{name}[`(]", text)


@pytest.mark.short
@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=IDS)
def test_every_public_signature_is_annotated(module, name):
    item = getattr(module, name)
    if item is nnx.HeldMask:
        return  # a kind of Variable, whose signatures are Flax's
    functions = [item] if inspect.isfunction(item) else [item.__call__]
    for function in functions:
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in list(signature.parameters.values()):
            assert parameter.name == "self" or parameter.annotation is not parameter.empty


def test_defaults_are_those_of_the_specification():
    assert sd.Dropout().p == 0.5
    assert {sd.Dropout1d().p, sd.Dropout2d().p, sd.Dropout3d().p, sd.DropPath().p} == {0.2}
    assert sd.Dropout(0.1, "m") == sd.Dropout(p=0.1, step_mode="m")


def test_spikingjellys_methods_are_callable_through_apply():
    rngs = {"dropout": jax.random.key(0)}
    x_seq = jnp.ones((4, 2, 8))
    for mode in ("s", "m"):
        layer = sd.Dropout(0.5, mode)
        mask, updated = layer.apply(
            {}, x_seq[0], rngs=rngs, method="create_mask", mutable=["state"]
        )
        assert updated["state"].keys() == {"mask", "mask_p"}
        assert updated["state"]["mask"] is mask
        y = layer.apply(updated, x_seq[0], False, method="single_step_forward")
        assert ((y != 0) == mask).all()
        y_seq = layer.apply(updated, x_seq, False, method="multi_step_forward")
        assert ((y_seq != 0) == mask[None]).all()
    for quiet in (sd.Dropout(0.0), sd.Dropout(0.5, deterministic=True)):
        mask, updated = quiet.apply({}, x_seq[0], method="create_mask", mutable=["state"])
        assert mask.all()
        assert updated == {}
    mask, variables = sd.Dropout().init_with_output(rngs, x_seq[0], method="create_mask")
    assert mask.all()
    assert variables == {}
