"""MkDocs hook: runs the code of the tutorials, and shows what it prints and draws.

The blocks of a page run in order, in the names of those before, in an empty folder. What
a block prints is shown below it; a picture that it saves there is part of the site, under
its name. An error ends the build. Each page is there as a notebook, too.
"""

import contextlib
import io
import json
import os
import re
import tempfile
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(BLOCK.pattern + r"(?:\n```text\n(.*?)\n```\n)?", BLOCK.flags)
WIDTH = 92  # of a line of output, as of one of code


@cache  # `mkdocs serve` builds all pages when one has changed
def run(page: str, markdown: str) -> tuple[str, dict[str, bytes]]:
    """Returns a page with its outputs, and the pictures that it made."""
    names = {"__name__": "__main__"}

    def shown(match: re.Match[str]) -> str:
        line = markdown.count("\n", 0, match.start(1))
        code = compile("\n" * line + match[1], page, "exec")  # errors name the page's lines
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        lines = printed.getvalue().rstrip().splitlines()
        output = "\n".join(
            textwrap.fill(line, WIDTH) if len(line) > WIDTH else line for line in lines
        )
        return match[0] + (f"\n```text\n{output}\n```\n" if output else "")

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        text = BLOCK.sub(shown, markdown)
        pictures = {file.name: file.read_bytes() for file in Path().glob("*.svg")}
    return text, pictures


def notebook(text: str, pictures: dict[str, bytes]) -> str:
    """Returns a page with its outputs as a notebook, whose blocks draw where they stand."""
    text = re.sub(r"^!\[.*?\]\(.*?\.svg\)\n", "", text, flags=re.MULTILINE | re.DOTALL)
    cells: list[dict[str, Any]] = []

    def add(kind: str, source: str, **more: Any) -> None:
        if source.strip():
            lines = source.strip().splitlines(keepends=True)
            cells.append({"cell_type": kind, "metadata": {}, "source": lines, **more})

    before, *parts = SHOWN.split(text)
    add("markdown", without_links(before))
    for code, printed, after in zip(*[iter(parts)] * 3, strict=True):
        outputs: list[dict[str, Any]] = []
        if printed:
            outputs.append(
                {"output_type": "stream", "name": "stdout", "text": f"{printed}\n"}
            )
        for name, content in pictures.items():
            if f'"{name}"' in code:
                data = {"image/svg+xml": content.decode()}
                outputs.append(
                    {"output_type": "display_data", "data": data, "metadata": {}}
                )
        add("code", code, execution_count=None, outputs=outputs)
        add("markdown", without_links(after))
    made = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def without_links(text: str) -> str:
    """Returns a text without its links to other pages, which a notebook does not have."""
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Runs a tutorial, before its links are looked at."""
    from mkdocs.structure.files import File

    source = page.file.src_uri
    if not source.startswith("tutorials/"):
        return markdown
    os.environ.setdefault("MPLBACKEND", "agg")
    # Most of the time is compilation, of which this takes a quarter off.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
    text, pictures = run(source, markdown)
    name = Path(source).with_suffix(".ipynb").name
    for file, content in {**pictures, name: notebook(text, pictures)}.items():
        files.append(File.generated(config, f"tutorials/{file}", content=content))
    title, rest = text.split("\n", 1)
    return f"{title}\n\n[This page as a notebook]({name}){{ download }}\n{rest}"
