"""Griffe extension: the literal blocks and roles of our docstrings as Markdown."""

import re
import textwrap
from typing import Any

from griffe import Extension, Object


class LiteralBlocks(Extension):
    """Turns what follows ``::`` into a fenced block."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Returns a docstring with fenced blocks for literal ones."""

    def fence(match: re.Match[str]) -> str:
        before, block = match.groups()
        block = textwrap.dedent(block).strip("\n")
        kind = "pycon" if block.startswith(">>>") else "text"
        return f"{before}:\n\n```{kind}\n{block}\n```\n\n"

    text = re.sub(r":func:`(\w+)`", r"``\1``", text)
    return re.sub(r"(?m)^(\S.*):: *\n\n((?:(?:  .*)?\n)*(?:  .*)?)", fence, text)
