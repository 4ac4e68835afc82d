"""What the package reads of Flax and JAX that they do not document is there, and listed."""

import ast
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.core import Scope, tracers
from jax.extend import core

import snn_dropout as sd
from snn_dropout.linen import _surroundings
from tests.mutants import ROOT

PACKAGE = ROOT / "snn_dropout"
TABLE = (ROOT / "CONTRIBUTING.md").read_text().split("do not document\n")[1]
UNDOCUMENTED = (
    "flax.core",
    "flax.linen.transforms",
    "flax.linen.dtypes",
    "flax.nnx.",
    "jax.extend",
    "jax.interpreters",
    "jax._src",
)


def undocumented_imports():
    for file in sorted(PACKAGE.rglob("*.py")):
        where = str(file.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "", alias.name) for alias in node.names]
            else:
                continue
            for module, name in names:
                if f"{module}.".startswith(
                    tuple(f"{n.rstrip('.')}." for n in UNDOCUMENTED)
                ):
                    yield where, module, name


def test_the_table_has_every_import_with_its_place():
    found = list(undocumented_imports())
    assert len(found) > 15
    for where, module, name in found:
        if (module, name) == ("jax.extend", "core"):
            name = "core.take_current_trace"
        rows = [
            row for row in TABLE.splitlines() if re.search(rf"[`.]{re.escape(name)}\b", row)
        ]
        assert any(f"`{where}`" in row for row in rows), f"{where}: {module}.{name}"


def test_the_table_names_files_that_are_there():
    for where in re.findall(r"`((?:linen|nnx|functional)/[\w/]+\.py)`", TABLE):
        assert (PACKAGE / where).exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["debug_path", "trace_level", "rng_counters"])
def test_a_flax_without_it_fails_at_import(name):
    """As a later version of Flax may rename it."""
    program = f"""
import flax.core.scope as scope
class Other(scope.Scope):
    def __dir__(self):
        return [name for name in super().__dir__() if name != "{name}"]
import flax.core
flax.core.Scope = Other
import snn_dropout
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert re.search(rf"ImportError: .*reads {name} of `flax.core.Scope`", run.stderr)


def test_what_is_there_means_what_is_read():
    """The values, of which an import sees nothing."""
    seen = {}

    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, each):
            w = self.param("w", nn.initializers.ones, ())
            drop = sd.Dropout(0.5, name="drop")
            seen["around"] = _surroundings.transforms_around(self.scope)
            seen["path"] = _surroundings.key_and_path(drop.scope, "dropout")[1]
            seen["outside"] = _surroundings.varies(w)
            seen["inside"] = _surroundings.varies(each)
            seen["level"] = self.scope.root.trace_level == tracers.current_trace()
            return x, None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, xs):
            options = dict(
                variable_broadcast="params",
                split_rngs=dict.fromkeys(("params", "dropout"), False),
            )
            return nn.scan(Body, **options)(name="body")(x, xs)

    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = Model().init(rngs, jnp.ones(3), jnp.ones((4, 3)))
    Model().apply(variables, jnp.ones(3), jnp.ones((4, 3)), rngs=rngs)
    assert seen == {
        "around": ("scan",),
        "path": ("body", "drop"),
        "outside": False,
        "inside": True,
        "level": True,
    }


def test_a_tracer_of_vmap_has_the_value_that_it_maps_over():
    def mapped(x):
        with core.take_current_trace() as trace:
            assert hasattr(trace, "axis_data")
            assert hasattr(trace, "parent_trace")
        assert hasattr(x, "batch_dim")
        assert x.val.shape == (3,)
        return x

    jax.vmap(mapped)(jnp.ones(3))


def test_counters_are_shared_in_one_apply_and_notes_are_of_one_root():
    assert Scope({}).rng_counters == {}
    scope = Scope({})
    assert scope.push("a").root is scope
