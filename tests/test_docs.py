"""The pages of `docs/`: their code runs as printed, and the reference has every name."""

import re
from pathlib import Path

import pytest

import snn_dropout as sd
from snn_dropout import functional, nnx

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {page.stem: page.read_text() for page in sorted(DOCS.glob("**/*.md"))}
BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for name, text in PAGES.items()
}


@pytest.mark.short
@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a checkpoint may be written
    names = {"__name__": page}
    for number, block in enumerate(BLOCKS[page]):
        exec(compile(block, f"{page}.md, block {number}", "exec"), names)


def test_every_page_but_lists_of_names_and_programs_shows_code():
    assert [name for name, blocks in BLOCKS.items() if not blocks] == [
        "examples",
        "reference",
    ]


def test_every_page_can_be_reached():
    named = re.findall(
        r"^  - .*: (\S+)\.md$", (DOCS.parent / "mkdocs.yml").read_text(), re.M
    )
    assert sorted(named) == sorted(page.stem for page in DOCS.glob("*.md"))


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
