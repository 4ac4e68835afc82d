"""Griffe extension: our docstrings as Markdown, and linen modules with their fields."""

import re
import textwrap
from typing import Any

from griffe import (
    Class,
    Decorator,
    ExprLambda,
    ExprName,
    Extension,
    Object,
    ParameterKind,
    Parameters,
)


class LiteralBlocks(Extension):
    """Turns what follows ``::`` into a fenced block."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_class_members(self, *, cls: Class, **kwargs: Any) -> None:
        """Shows the fields of a linen module as arguments: Flax makes a dataclass of it."""
        if not cls.canonical_path.startswith("snn_dropout.linen."):
            return
        dataclass = ExprName("dataclass", parent=ExprName("dataclasses"))
        cls.decorators.append(Decorator(dataclass, lineno=None, endlineno=None))
        for field in cls.attributes.values():
            # A function as a default, which would be taken for a method: itself.
            for argument in getattr(field.value, "arguments", ()):
                if isinstance(getattr(argument, "value", None), ExprLambda):
                    argument.name, argument.value = "default", argument.value.body

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        """Shows in the place of ``**options`` those that a layer hands on."""
        init = cls.members.get("__init__")
        if init is None or "options" not in (p.name for p in init.parameters):
            return
        shown = {p.name: p for p in init.parameters if p.name != "options"}
        for base in cls.mro():
            inherited = base.members.get("__init__")
            for parameter in inherited.parameters if inherited else ():
                if parameter.kind is ParameterKind.keyword_only:
                    shown.setdefault(parameter.name, parameter)
        init.parameters = Parameters(*shown.values())


def to_markdown(text: str) -> str:
    """Returns a docstring with fenced blocks for literal ones."""

    def fence(match: re.Match[str]) -> str:
        before, block = match.groups()
        block = textwrap.dedent(block).strip("\n")
        kind = "pycon" if block.startswith(">>>") else "text"
        return f"{before}:\n\n```{kind}\n{block}\n```\n\n"

    text = re.sub(r":(?:func|class|meth|mod):`([\w.]+)`", r"``\1``", text)
    return re.sub(r"(?m)^(\S.*):: *\n\n((?:(?:  .*)?\n)*(?:  .*)?)", fence, text)
