"""The README's code blocks run as printed, in order, each in the names of those before."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, *(page.read_text() for page in sorted(ROOT.glob("docs/**/*.md")))]


def test_every_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    names = {"__name__": "readme"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), names)


def test_continuous_integration_calls_the_command_that_is_printed():
    """On one Python as it stands; on the other in all depth, in three parts."""
    assert "\npython -m pytest\n" in README
    commands = (ROOT / ".ci" / "run").read_text()
    assert re.search(r" python -m pytest\n", commands)
    parts = re.findall(r" python -m pytest --exhaustive (.*)\n", commands)
    assert parts[:3] == [
        '-m "not optimised" --deselect "$quick"',
        "-m optimised",
        '-n 0 --durations=1 "$quick"',
    ]


def test_every_example_that_is_named_exists():
    for page in PAGES:
        named = re.findall(r"python (examples/\w+\.py)", page)
        assert all((ROOT / example).exists() for example in named)


def test_the_page_of_examples_has_every_program():
    page = (ROOT / "docs" / "examples.md").read_text()
    named = re.findall(r"^\| `python (examples/\w+\.py)", page, re.MULTILINE)
    programs = [f"examples/{program.name}" for program in ROOT.glob("examples/*.py")]
    assert sorted(named) == sorted(programs)


def test_it_is_two_screens_long():
    assert len(README.splitlines()) <= 150


def test_the_files_that_are_linked_exist():
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert linked
    assert all((ROOT / file).exists() for file in linked)


def test_the_citation_is_that_of_the_file():
    """What `CITATION.cff` says, as BibTeX."""
    fields = re.findall(
        r"^(?:title|version|  - name): (.*)$", (ROOT / "CITATION.cff").read_text(), re.M
    )
    assert len(fields) == 3
    entry = re.search(r"```bibtex\n(.*?)```", README, re.DOTALL)
    for field in fields:
        assert "{" + field.strip('"') + "}" in entry[1]
