"""MkDocs hook: runs the code of the tutorials, and shows what it prints and draws.

The blocks of a page run in order, in the names of those before, in an empty folder. What
a block prints is shown below it; a picture that it saves there is part of the site, under
its name. An error ends the build.
"""

import contextlib
import io
import os
import re
import tempfile
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
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
    for name, content in pictures.items():
        files.append(File.generated(config, f"tutorials/{name}", content=content))
    return text
