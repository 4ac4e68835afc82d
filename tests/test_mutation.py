"""The tool that measures the tests: ``python -m tests.mutation``."""

import ast
import importlib

import pytest

from tests import mutation
from tests.mutation_operators import all_mutants, mutants_of, sample
from tests.mutation_reach import Reach

SOURCE = '''\
"""Text that is not mutated: 1 < 2."""

Number = int | float


class Layer:
    size: int | None = None
    mode: str = "s"

    def f(self, x, y=0.5, *rest):
        """Neither is this: 3."""
        if x <= 1 and not self.g(x, y, mode="m"):
            raise ValueError(f"`x` must be {x + 1} and {[1][0]}" + "2" * 2)
        x = x * 2
        total = x - sum(rest)
        while y is None or y == "s":
            total += -x
        self.size = [n for n in rest if n]
        self.log(
            x,
            keep=True,
        )
        assert x != 4
        return g(*rest, x)
'''

EXPECTED = """\
default: size: int | None = None -> size: int | None = False
default: mode: str = "s" -> mode: str = "XXs"
number: 0.5 -> 1.5
branch: x <= 1 and not self.g(x, y, mode="m") -> not (x <= 1 and not self.g(x, y, mode="m"))
and/or: x <= 1 and not self.g(x, y, mode="m") -> x <= 1 or not self.g(x, y, mode="m")
comparison: x <= 1 -> x < 1
number: x <= 1 -> x <= 2
number: x <= 1 -> x <= 0
arithmetic: x <= 1 and not self.g(x, y, mode="m") -> x <= 1 and self.g(x, y, mode="m")
arguments: self.g(x, y, mode="m") -> self.g(y, x, mode="m")
keyword: self.g(x, y, mode="m") -> self.g(x, y, )
statement: raise ValueError -> pass
statement: x = x * 2 -> pass
arithmetic: x * 2 -> x / 2
number: x * 2 -> x * 3
number: x * 2 -> x * 1
arithmetic: x - sum(rest) -> x + sum(rest)
branch: y is None or y == "s" -> not (y is None or y == "s")
and/or: y is None or y == "s" -> y is None and y == "s"
comparison: y is None -> y is not None
comparison: y == "s" -> y != "s"
text: y == "s" -> y == "XXs"
arithmetic: total += -x -> total -= -x
statement: total += -x -> pass
arithmetic: total += -x -> total += x
statement: self.size = [n for n in rest if n] -> pass
branch: n -> not (n)
statement: self.log( x, keep=True, ) -> pass
keyword: self.log( x, keep=True, ) -> self.log( x, )
flag: keep=True -> keep=False
"""


def test_every_operator_and_nothing_that_is_no_program():
    found = [f"{m.operator}: {m.old} -> {m.new}" for m in mutants_of("toy.py", SOURCE)]
    assert found == EXPECTED.splitlines()


def test_mutants_keep_their_lines_and_differ_from_the_program_and_each_other():
    mutants = mutants_of("toy.py", SOURCE)
    trees = {ast.dump(ast.parse(mutant.apply(SOURCE))) for mutant in mutants}
    assert len({*trees, ast.dump(ast.parse(SOURCE))}) == len(mutants) + 1
    for mutant in mutants:
        changed = [
            number
            for number, (old, new) in enumerate(
                zip(SOURCE.split("\n"), mutant.apply(SOURCE).split("\n"), strict=True), 1
            )
            if old != new
        ]
        assert changed
        assert set(changed) <= set(mutant.lines), mutant.name
        assert len(mutant.lines) <= 4


def test_mutants_that_are_alike_have_names_of_their_own():
    mutants = mutants_of("toy.py", "def f(x):\n    return f(1, x), f(1, x)\n")
    assert len({mutant.name for mutant in mutants}) == len(mutants) == 6


def test_a_sample_depends_on_the_seed_and_not_on_other_code():
    mutants = mutants_of("toy.py", SOURCE)
    drawn = {m.name for m in sample(mutants, 20, seed=0)}
    assert drawn == {m.name for m in sample(mutants[::-1], 20, seed=0)}
    assert drawn != {m.name for m in sample(mutants, 20, seed=1)}
    moved = mutants_of("toy.py", "def h(x):\n    return x + 1\n\n\n" + SOURCE)
    assert len(drawn - {m.name for m in sample(moved, 20, seed=0)}) <= 3


def test_tests_come_in_the_order_of_their_distance_and_cost():
    mutant = next(
        m for m in mutants_of("functional/masks.py", "def f(x):\n    return -x\n")
    )
    durations = {
        "tests/test_api.py::cheap": 0.1,
        "tests/functional/test_bits.py::folder": 5.0,
        "tests/functional/test_masks.py::dear[1]": 2.0,
        "tests/functional/test_masks.py::cheap": 1.0,
        "tests/functional/test_masks.py::elsewhere": 0.0,
    }
    masks = "tests/functional/test_masks.py"
    elsewhere = f"{masks}::elsewhere"
    new = [f"{masks}::dear[2]", f"{masks}::elsewhere[3]", "tests/test_new.py::unknown"]
    failed = "tests/test_api.py::failed"

    def names(reached, source="same"):
        lines = {"functional/masks.py": reached}
        sources = {"functional/masks.py": "same"}
        reach = Reach(durations, [failed], lines, sources)
        found = reach.tests_of(mutant, [*durations, *new, failed], source)
        return [name.split("::")[1] for name in found]

    expected = ["cheap", "dear[2]", "dear[1]", "folder", "cheap", "unknown"]
    assert names({2: set(durations) - {elsewhere}, 1: None, 9: {elsewhere}}) == expected
    assert names({2: {elsewhere}}) == ["elsewhere", "elsewhere[3]", "unknown"]
    assert names({1: None, 9: {elsewhere}}, "other") == names({2: {elsewhere}})
    assert len(names({2: None})) == len(durations) + len(new)


@pytest.mark.exhaustive
def test_a_mutant_is_killed_or_survives():
    rule, spelling = (
        next(
            m for m in all_mutants(mutation.ROOT) if m.file == "convert.py" and old == m.old
        )
        for old in ('"bias" in given', 'argument == "state_dict"')
    )
    gone = "tests/test_convert.py::test_that_there_is_no_more"
    test = "tests/test_convert.py::test_the_arrays_are_new"
    for mutant, killer in ((rule, test), (spelling, "")):
        assert mutation.attempt(mutant, mutation.ROOT, [gone, test], {}, []) == killer


def test_the_table_explains_mutants_that_there_are_by_tests_that_there_are():
    names = {mutant.name for mutant in all_mutants(mutation.ROOT)}
    for name, row in mutation.survivors_table().items():
        assert name in names, f"no mutant, so no row: {name}"
        [(verdict, why)] = row.items()
        assert verdict in ("equivalent", "killed by")
        if verdict == "killed by":
            file, test = why.split("::")
            module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
            assert hasattr(module, test.split("[")[0]), why
