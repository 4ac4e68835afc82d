"""Tables of text, and how numbers are worded in them."""

from typing import NamedTuple

from study.names import CONDITIONS
from study.statistics import Estimate

MINUS = "\N{MINUS SIGN}"


class Table(NamedTuple):
    """A table of text: its name, its columns, its lines."""

    name: str
    columns: tuple[str, ...]
    lines: list[tuple[str, ...]]

    def markdown(self) -> str:
        """Writes it in Markdown."""
        rule = ("---",) * len(self.columns)
        return "\n".join(
            f"| {' | '.join(line)} |" for line in (self.columns, rule, *self.lines)
        )


def marked(difference: Estimate, digits: int) -> str:
    """Words a difference: in bold where its interval leaves out zero."""
    text = difference.text(digits, "+").replace("-", MINUS)
    return f"**{text}**" if difference.clear else text


def apart(one: str, other: str) -> str:
    """Names the difference of two conditions."""
    return f"{CONDITIONS[one]} {MINUS} {CONDITIONS[other]}"
