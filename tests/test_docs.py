"""The pages of `docs/`: their code runs as printed, and the reference has every name."""

import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import pytest

import snn_dropout as sd
from snn_dropout import functional, nnx

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {
    page.relative_to(DOCS).with_suffix("").as_posix(): page.read_text()
    for page in sorted(DOCS.glob("**/*.md"))
}
# The site runs the blocks of the tutorials when it is built, and no test does.
TUTORIALS = {name: text for name, text in PAGES.items() if name.startswith("tutorials/")}
BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for name, text in PAGES.items()
}
# A block, and what it prints where something does.
OUTPUT = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE
)


@pytest.mark.short
@pytest.mark.parametrize(
    "page", [name for name, blocks in BLOCKS.items() if blocks and name not in TUTORIALS]
)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    """What stands below a block, as `text`, is what it prints; numbers may be rounded."""
    monkeypatch.chdir(tmp_path)  # where a checkpoint may be written
    names = {"__name__": page}
    shown = OUTPUT.findall(PAGES[page])
    for number, (block, output) in enumerate(shown):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, f"{page}.md, block {number}", "exec"), names)
        assert words(printed.getvalue()) == words(output), f"block {number} prints this"


def words(text):
    """The words of a text, its numbers as what is near enough."""
    number = r"\d+\.\d+"
    return [
        pytest.approx(float(part), 0.1, 2e-3) if re.fullmatch(number, part) else part
        for part in re.split(rf"({number})|\s+", text)
        if part
    ]


def test_the_site_shows_what_a_tutorial_prints_and_draws():
    module = runpy.run_path(str(DOCS / "run_blocks.py"))
    page = """Text, to be [linked](../state.md#a-place).

```python
number = 6
```

```python
print(7 * number)
with open("a.svg", "w") as file:
    file.write("<svg/>")
```

![A picture](a.svg)

And [more](https://example.org).
"""
    shown, pictures = module["run"]("a page", page)
    printed = "\n```text\n42\n```\n"
    before, after = page.split("\n![A picture]")
    assert shown == before + printed + "\n![A picture]" + after
    assert pictures == {"a.svg": b"<svg/>"}
    cells = json.loads(module["notebook"](shown, pictures))["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        ("markdown", "Text, to be linked."),
        ("code", "number = 6"),
        ("code", page.split("```")[3].removeprefix("python\n").strip()),
        ("markdown", "And [more](https://example.org)."),
    ]
    assert cells[1]["outputs"] == []
    stream, picture = cells[2]["outputs"]
    assert stream["text"] == "42\n"
    assert picture["data"] == {"image/svg+xml": "<svg/>"}
    with pytest.raises(ZeroDivisionError) as error:
        module["run"]("a page", page.replace("7 * number", "number / 0"))
    assert error.traceback[-1].lineno + 1 == 8  # of the page


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_is_a_program_that_saves_the_pictures_it_shows(page):
    compile("\n".join(BLOCKS[page]), page, "exec")
    saved = re.findall(r'figure\.savefig\("(.*)"\)', TUTORIALS[page])
    assert saved == re.findall(r"^!\[.+\]\((.*)\)$", TUTORIALS[page], re.MULTILINE)
    assert all(name.startswith(page.removeprefix("tutorials/")) for name in saved)


def test_every_page_but_lists_of_names_and_programs_shows_code():
    assert [name for name, blocks in BLOCKS.items() if not blocks] == [
        "examples",
        "reference",
    ]


def test_every_page_can_be_reached():
    named = re.findall(
        r"^ +- .*: (\S+)\.md$", (DOCS.parent / "mkdocs.yml").read_text(), re.M
    )
    assert sorted(named) == sorted(name for name in PAGES if "ablation" not in name)


def test_the_search_splits_names_into_words():
    """At dots and before capitals; a name with underscores is found whole."""
    settings = (DOCS.parent / "mkdocs.yml").read_text()
    separator = re.search(r"separator: '(.*)'", settings)[1]
    for name, words in {
        "snn_dropout.Dropout3d": ["snn_dropout", "Dropout3d"],
        "`nnx.DropPath(p=0.2)`": ["nnx", "Drop", "Path", "p", "0", "2"],
        "functional.mask_key": ["functional", "mask_key"],
        "sd.DropConnectLinear": ["sd", "Drop", "Connect", "Linear"],
    }.items():
        assert [word for word in re.split(separator, name) if word] == words


def test_no_block_escapes_the_tests():
    """Indented or under another name, a block of Python would not be run."""
    for name, text in PAGES.items():
        assert len(re.findall(r"``` *(?:py|python)\b", text)) == len(BLOCKS[name]), name


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: snn_dropout\.(\S+)$", PAGES["reference"], re.MULTILINE)
    public = {name for name in sd.__all__ if name != "functional"}
    public |= {f"functional.{name}" for name in functional.__all__}
    public |= {f"nnx.{name}" for name in nnx.__all__}
    assert sorted(named) == sorted({*public, "linen.uncertainty.Uncertainty"})
