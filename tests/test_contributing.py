"""What contributors are told to type and to open is there."""

import importlib.util
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "snn_dropout"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
INSIDE = (ROOT / "docs" / "inside.md").read_text()
CODE = re.sub(r"```.*?```", "", CONTRIBUTING + INSIDE, flags=re.DOTALL)
QUOTED = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", CODE)]
BLOCKS = re.findall(r"```bash\n(.*?)```", CONTRIBUTING, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS += [text for text in QUOTED if text.startswith(("python ", ".ci/run"))]


def test_paths_that_are_named_exist():
    """From the root, or from the package."""
    paths = [
        text
        for text in QUOTED
        if re.fullmatch(r"[\w./-]+", text)
        and ("/" in text or text.endswith((".py", ".md", ".toml", ".cff", ".yml")))
    ]
    assert len(paths) > 40
    made = {".cache/programs"}  # by tools, and in no clone
    for path in set(paths) - made:
        assert any((at / path).exists() for at in (ROOT, PACKAGE)), path


def test_the_links_lead_somewhere():
    linked = re.findall(r"\]\(([^)#:]+)", CONTRIBUTING)
    assert linked
    assert all((ROOT / path).exists() for path in linked)


def test_the_drawing_of_the_house_is_true():
    """It has every part, and each file is in the folder that it is drawn in."""
    drawing = re.search(r"```text\nsnn_dropout/\n(.*?)```", INSIDE, re.DOTALL)[1]
    parts = {}
    for line in drawing.splitlines():
        if part := re.match(r"  (\S+)", line):
            words = parts.setdefault(part[1], [])
            line = line[len(part[0]) :]
        words += re.findall(r"\w+\.py|\w+/", line)
    drawn = {PACKAGE / part for part in parts}
    there = {path for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert drawn == {path for path in there if path.name != "__pycache__"}
    assert sum(map(len, parts.values())) > 20
    for part, words in parts.items():
        for word in words:
            assert (PACKAGE / part / word).exists(), f"{part}{word}"


def test_names_of_functions_are_in_the_files_that_are_named_behind_them():
    """As in: `held` in `linen/_held.py`; `over_time` of `linen/_simulation.py`."""
    named = re.findall(r"`(\w+)` (?:in|of) `(\w+/\w+\.py)`", INSIDE)
    assert len(named) > 5
    for name, path in named:
        assert re.search(rf"\bdef {name}\(", (PACKAGE / path).read_text()), (name, path)


def test_commands_can_be_typed():
    assert len(COMMANDS) > 10
    commands = (ROOT / ".ci" / "run").read_text()
    stages = re.search(r"^stages=\((.*)\)$", commands, re.M)[1].split()
    for command in COMMANDS:
        program, *words = command.split()
        options = [word for word in words if word.startswith("--")]
        if program == ".ci/run":
            assert set(words) <= set(stages), command
        elif program == "python" and words[0] != "-m":
            source = (ROOT / words[0]).read_text()
            assert all(f'"{option}"' in source for option in options), command
        elif program == "python" and words[1].startswith(("tests.", "benchmarks")):
            source = Path(importlib.util.find_spec(words[1]).origin).read_text()
            assert all(f'"{option}"' in source for option in options), command
        elif program == "python":
            assert importlib.util.find_spec(words[1]), command
            files = [word.split("::")[0] for word in words[2:] if "/" in word]
            assert all((ROOT / file).exists() for file in files), command


def test_the_extras_that_are_named_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"'\.\[([\w,]+)\]'", CONTRIBUTING)
    assert len(named) > 1
    extras = {extra for names in named for extra in names.split(",")}
    assert extras <= project["optional-dependencies"].keys()
