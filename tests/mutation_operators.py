"""Small defects that nobody chose: the usual mutation operators, on the syntax tree.

A mutant changes the text of one node and keeps every line where it was. It is known by
its file, function, operator and text, not by its line, so that most of them keep their
names, and the sample drawn of them stays the same, when other code changes.

Not mutated are the wording of errors (text, and all inside of ``raise`` and of formatted
text), documentation, annotations and ``assert``, which stands for the type checker here.
"""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

SWAPPED_TOKENS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
    ast.BitXor: ("^", "&"),
}

Edit = tuple[int, int, str]  # from byte to byte, and what to write there
Defect = tuple[str, ast.AST, list[Edit]]  # its kind, and the node to show


@dataclass(frozen=True)
class Mutant:
    """A defect.

    Attributes:
      file: the file that has it, from the package's folder on.
      scope: the function or class, with those around it.
      operator: the kind of defect.
      old: the text around the defect, in one line.
      new: the text with the defect.
      lines: those of the statement; a test that runs none of them can not see it.
      edits: the changes of the file.
      number: which one of several that are alike.
    """

    file: str
    scope: str
    operator: str
    old: str
    new: str
    lines: range
    edits: tuple[Edit, ...]
    number: int = 1

    @property
    def name(self) -> str:
        """The mutant in words, which are its own."""
        again = f" ({self.number})" if self.number > 1 else ""
        return (
            f"{self.file}, {self.scope}, {self.operator}: {self.old} -> {self.new}{again}"
        )

    def apply(self, source: str) -> str:
        """Returns the file's text with the defect."""
        mutated = _edited(source.encode(), self.edits).decode()
        ast.parse(mutated)
        return mutated


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Returns all mutants of a file, in the order of its text."""
    seen: Counter[str] = Counter()
    found = []
    for mutant in _Finder(file, source).mutants():
        seen[mutant.name] += 1
        found.append(replace(mutant, number=seen[mutant.name]))
    return found


def all_mutants(root: Path) -> list[Mutant]:
    """Returns all mutants of the library in a copy of the project."""
    return [
        mutant
        for name, file in _files(root).items()
        for mutant in mutants_of(name, file.read_text())
    ]


def digests(root: Path) -> dict[str, str]:
    """Returns what tells whether a file of the library has changed."""
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for name, file in _files(root).items()
    }


def _files(root: Path) -> dict[str, Path]:
    package = root / "snn_dropout"
    return {str(f.relative_to(package)): f for f in sorted(package.rglob("*.py"))}


def sample(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """Draws mutants, each by its own name: what is drawn depends on no other mutant."""

    def lot(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {mutant.name}".encode()).digest()

    return sorted(mutants, key=lot)[:size]


class _Finder:
    def __init__(self, file: str, source: str) -> None:
        self.file = file
        self.text = source.encode()
        self.tree = ast.parse(source)
        self.line_starts = [0]
        for line in self.text.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))

    def mutants(self) -> Iterator[Mutant]:
        yield from self._walk(self.tree, (), "module", set())

    def _walk(
        self,
        node: ast.AST,
        above: tuple[ast.AST, ...],
        scope: str,
        bound: set[str],
    ) -> Iterator[Mutant]:
        # `above` is the way to the node, `bound` the names that its function knows.
        for operator, shown, edits in self._defects(node, above, scope, bound):
            yield self._mutant(operator, shown, edits, (*above, node), scope)
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            return
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            bound = {arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope = node.name if scope == "module" else f"{scope}.{node.name}"
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self._walk(child, (*above, node), scope, bound)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)

    def _defects(
        self, node: ast.AST, above: tuple[ast.AST, ...], scope: str, bound: set[str]
    ) -> Iterator[Defect]:
        shown = _surroundings(node, above)
        parent = above[-1] if above else None
        match node:
            case ast.Compare():
                operands = [node.left, *node.comparators]
                for i, token in enumerate(node.ops):
                    edit = self._token(operands[i], operands[i + 1], token)
                    yield "comparison", node, [edit]
                for side in operands:
                    if isinstance(side, ast.Constant) and isinstance(side.value, str):
                        yield "text", node, [self._replaced(side, f'"XX{side.value}"')]
            case ast.BoolOp():
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield "and/or", node, [self._token(left, right, node.op)]
            case ast.BinOp() if type(node.op) in SWAPPED_TOKENS:
                if not (scope == "module" and isinstance(node.op, ast.BitOr)):  # a type
                    yield "arithmetic", node, [self._token(node.left, node.right, node.op)]
            case ast.AugAssign():
                yield "arithmetic", node, [self._token(node.target, node.value, node.op)]
            case ast.UnaryOp(op=ast.USub() | ast.Not()):
                start, end = self._span(node)
                token = re.match(rb"-|not\s", self.text[start:end])
                assert token is not None
                yield "arithmetic", shown, [(start, start + token.end(), "")]
            case ast.Constant(value=bool()):
                yield "flag", shown, [self._replaced(node, str(not node.value))]
            case ast.Constant(value=int()):
                for other in (node.value + 1, node.value - 1):
                    yield "number", shown, [self._replaced(node, str(other))]
            case ast.Constant(value=float()):
                yield "number", shown, [self._replaced(node, repr(node.value + 1.0))]
            case ast.Call():
                for left, right in zip(node.args, node.args[1:], strict=False):
                    first, second = self._source(left), self._source(right)
                    if first != second and "*" not in (first[0], second[0]):
                        edits = [self._replaced(left, second), self._replaced(right, first)]
                        yield "arguments", node, edits
                for keyword in node.keywords:
                    if keyword.arg is not None:
                        yield "keyword", node, [self._without(keyword)]
            case ast.arguments():
                for default in [*node.defaults, *node.kw_defaults]:
                    yield from self._default(default, default)
            case ast.AnnAssign() if isinstance(parent, ast.ClassDef):
                yield from self._default(node.value, node)
        match node:
            case ast.If() | ast.While() | ast.IfExp():
                yield from self._branch(node.test)
            case ast.comprehension():
                for test in node.ifs:
                    yield from self._branch(test)
        if isinstance(node, ast.stmt) and _is_removable(node, parent, bound):
            start, end = self._span(node)
            yield "statement", node, [(start, end, "pass" + self._newlines(start, end))]

    def _branch(self, test: ast.expr) -> Iterator[Defect]:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return  # said already, by the operators of what it negates
        single = isinstance(test, ast.Compare) and len(test.ops) == 1
        ordered = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
        if single and not isinstance(test.ops[0], ordered):
            return
        start, end = self._span(test)
        yield "branch", test, [(start, start, "not ("), (end, end, ")")]

    def _default(self, default: ast.expr | None, shown: ast.AST) -> Iterator[Defect]:
        # Numbers and flags have operators of their own.
        if isinstance(default, ast.Constant):
            if default.value is None:
                yield "default", shown, [self._replaced(default, "False")]
            elif isinstance(default.value, str):
                yield "default", shown, [self._replaced(default, f'"XX{default.value}"')]

    def _mutant(
        self,
        operator: str,
        shown: ast.AST,
        edits: list[Edit],
        path: tuple[ast.AST, ...],
        scope: str,
    ) -> Mutant:
        start, end = self._span(shown)
        old = self.text[start:end]
        moved = [(a - start, b - start, text) for a, b, text in edits]
        old, new = _one_line(old), _one_line(_edited(old, moved))
        if isinstance(shown, ast.Raise):
            old = old.split("(")[0]  # and not its wording
        statement = next(node for node in reversed(path) if isinstance(node, ast.stmt))
        return Mutant(self.file, scope, operator, old, new, _lines(statement), tuple(edits))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.line_starts[node.lineno - 1] + node.col_offset,
            self.line_starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _source(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self.text[start:end].decode()

    def _replaced(self, node: ast.AST, text: str) -> Edit:
        return (*self._span(node), text)

    def _token(self, left: ast.AST, right: ast.AST, operator: ast.AST) -> Edit:
        old, new = SWAPPED_TOKENS[type(operator)]
        start, end = self._span(left)[1], self._span(right)[0]
        pattern = re.escape(old).replace(r"\ ", r"\s+").encode()
        found = re.search(pattern, self.text[start:end])
        assert found is not None
        return start + found.start(), start + found.end(), new

    def _without(self, keyword: ast.keyword) -> Edit:
        start, end = self._span(keyword)
        comma = re.match(rb"\s*,", self.text[end:])
        end += comma.end() if comma else 0
        return start, end, self._newlines(start, end)

    def _newlines(self, start: int, end: int) -> str:
        return "\n" * self.text[start:end].count(b"\n")


def _edited(text: bytes, edits: tuple[Edit, ...] | list[Edit]) -> bytes:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new.encode() + text[end:]
    return text


def _lines(statement: ast.stmt) -> range:
    """The lines of a statement, without those of the statements below it."""
    start = min([statement.lineno, *(d.lineno for d in _decorators(statement))])
    body = getattr(statement, "body", None)
    end = body[0].lineno - 1 if body else statement.end_lineno
    return range(start, max(start, end or start) + 1)


def _decorators(statement: ast.stmt) -> list[ast.expr]:
    return getattr(statement, "decorator_list", [])


def _surroundings(node: ast.AST, above: tuple[ast.AST, ...]) -> ast.AST:
    """A number alone says little: what is around it, unless that is a whole block."""
    for parent in reversed(above):
        block = hasattr(parent, "body") and not isinstance(parent, ast.Lambda | ast.IfExp)
        is_whole = isinstance(node, ast.Tuple) and isinstance(parent, ast.stmt | ast.Tuple)
        if block or is_whole or not hasattr(parent, "lineno"):
            break
        node = parent
        if not isinstance(node, ast.UnaryOp | ast.Slice | ast.Tuple | ast.Starred):
            break
    return node


def _is_removable(node: ast.stmt, parent: ast.AST | None, bound: set[str]) -> bool:
    """Whether a program without the statement may still run."""
    match node:
        case ast.Expr():
            return isinstance(node.value, ast.Call)
        case ast.Raise() | ast.AugAssign():
            return True
        case ast.Return():
            return isinstance(parent, ast.If)
        case ast.Assign(targets=[target]) | ast.AnnAssign(target=target, value=ast.expr()):
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            return not isinstance(parent, ast.ClassDef) and all(
                not isinstance(t, ast.Name) or t.id in bound for t in targets
            )
    return False


def _one_line(text: bytes) -> str:
    return " ".join(text.decode().split())
