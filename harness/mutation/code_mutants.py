"""Mechanical mutants of Python code: operators over its syntax tree list every place of a change.

No one chooses these faults, so the share of them that is noticed measures checks and tests. Each
mutant changes one place. Not mutated, since no client could see a fault in it: docstrings, type
annotations, decorators, imports, assertions, and the texts of logs, errors and help (a string with
a space in it counts as one).
"""

import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from harness.mutation.mutation import Edit, Mutation

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[str, str]]] = {
    ast.Lt: (r"<", "<="),
    ast.LtE: (r"<=", "<"),
    ast.Gt: (r">", ">="),
    ast.GtE: (r">=", ">"),
    ast.Eq: (r"==", "!="),
    ast.NotEq: (r"!=", "=="),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
}
# Their comparison's mutant is the negation.
_NEGATED_BY_COMPARISON: Final = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
_ARITHMETIC: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: (r"-", "+"),
    ast.Mult: (r"\*", "//"),
    ast.FloorDiv: (r"//", "*"),
    ast.Div: (r"/", "*"),
}
_LOGGERS: Final = frozenset({"logger", "logging", "warnings"})
_NEVER_RAISED: Final = "ZeroDivisionError"
_OTHER_ERROR: Final = "RuntimeError"


@dataclass(frozen=True, slots=True)
class CodeMutant:
    """One change of one place.

    Attributes:
        file: the name of the changed file.
        line: where the change begins, from 1.
        operator: the kind of change.
        start: of the replaced text, in bytes of UTF-8.
        end: of the replaced text.
        new: its replacement.
        shown: what the name shows instead of the replacement; empty: the replacement.
    """

    file: str
    line: int
    operator: str
    start: int
    end: int
    new: str
    shown: str = ""

    @property
    def name(self) -> str:
        """Where it is and what it does, on one line."""
        shown = " ".join((self.shown or self.new).split())[:60]
        return f"{self.file}:{self.line} {self.operator}: {shown}"

    def changed(self, source: str) -> str:
        """Return the file's text with the change."""
        data = source.encode()
        return (data[: self.start] + self.new.encode() + data[self.end :]).decode()

    def mutation(self, source: str) -> Mutation:
        """Return the change as a mutation of the file's text, which it replaces as a whole."""
        return Mutation(self.name, (Edit(self.file, source, self.changed(source)),), caught_by="")

    def diff(self, source: str) -> str:
        """Return the change as a unified diff."""
        lines = difflib.unified_diff(
            source.splitlines(keepends=True),
            self.changed(source).splitlines(keepends=True),
            self.file, self.file, n=2,
        )  # fmt: skip
        return "".join(lines)


def code_mutants(file: str, source: str) -> list[CodeMutant]:
    """Return every mutant of a Python file, in the order of its text."""
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found), key=lambda mutant: (mutant.start, mutant.end, mutant.new))


class _Finder(ast.NodeVisitor):
    """Collects the mutants of a syntax tree."""

    def __init__(self, file: str, source: str) -> None:
        self.found: list[CodeMutant] = []
        self._file = file
        self._data = source.encode()
        self._line_starts = [0]
        for line in self._data.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))
        self._function = ""

    # What is not mutated.

    def visit_Import(self, node: ast.Import) -> None:
        pass

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_TypeAlias(self, node: ast.TypeAlias) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._function = self._function, node.name
        self._visit_all([*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body])
        self._function = outer

    # Statements.

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant) or _is_log_call(node.value):
            return
        self._drop(node)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        # An attribute that is never set is an AttributeError at once.
        kept = all(isinstance(target, ast.Name | ast.Tuple) for target in node.targets)
        if not kept and self._function != "__init__":
            self._drop(node)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._drop(node)
        if (change := _ARITHMETIC.get(type(node.op))) is not None:
            self._add_between(node, node.target, node.value, "arithmetic", change)
        self.visit(node.value)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._drop(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._drop(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._drop(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._drop(node)
        if isinstance(node.exc, ast.Call):
            self._add(node.exc.func, "exception type", _OTHER_ERROR)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._drop(node)
        elif not isinstance(node.value, ast.Constant):
            self._add(node.value, "return value", "None")
        elif isinstance(node.value.value, str):
            self._add(node.value, "return value", '""')
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        for kind in filter(None, kinds):
            self._add(kind, "exception type", _NEVER_RAISED)
        self._visit_all(node.body)

    # Conditions.

    def visit_If(self, node: ast.If) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self._negate(condition)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add(node, "condition negated", f"({self._text(node.operand)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = (r"\band\b", "or") if isinstance(node.op, ast.And) else (r"\bor\b", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._add_between(node, left, right, "boolean operator", (old, new))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            self._add_between(node, left, right, "comparison", _COMPARISONS[type(operator)])
        self.generic_visit(node)

    # Values.

    def visit_BinOp(self, node: ast.BinOp) -> None:
        change = _ARITHMETIC.get(type(node.op))
        if change is not None and not any(map(_is_text, (node.left, node.right))):
            self._add_between(node, node.left, node.right, "arithmetic", change)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool():
                self._add(node, "constant", str(not node.value))
            case int():
                self._add(node, "constant", str(node.value + 1))
            case float():
                self._add(node, "constant", str(node.value * 2 if node.value else 1.0))
            case str() if node.value and not re.search(r"\s", node.value):
                self._add(node, "constant", repr(node.value + "X"))
            case bytes() if node.value:
                self._add(node, "constant", repr(node.value + b"X"))
            case _:
                pass

    def visit_Call(self, node: ast.Call) -> None:
        if _is_log_call(node):
            return
        if not any(isinstance(argument, ast.Starred) for argument in node.args):
            self._swap_arguments(node)
        for keyword in node.keywords:
            if keyword.arg is not None:
                self._drop_argument(node, keyword)
        if self._text(node.func).endswith("suppress"):
            for argument in node.args:
                self._add(argument, "exception type", _NEVER_RAISED)
        self.generic_visit(node)

    def _drop(self, node: ast.stmt) -> None:
        self._add(node, "statement dropped", "pass", shown=self._text(node))

    def _swap_arguments(self, node: ast.Call) -> None:
        for left, right in zip(node.args, node.args[1:], strict=False):
            first, second = self._text(left), self._text(right)
            if first != second:
                start, end = self._span(left)[1], self._span(right)[0]
                gap = self._data[start:end].decode()
                self._add_span(
                    (self._span(left)[0], self._span(right)[1]), left.lineno, "arguments swapped",
                    f"{second}{gap}{first}",
                )  # fmt: skip

    def _drop_argument(self, node: ast.Call, dropped: ast.keyword) -> None:
        kept = [self._text(each) for each in (*node.args, *node.keywords) if each is not dropped]
        without = f"{self._text(node.func)}({', '.join(kept)})"
        self._add(node, "argument dropped", without, shown=self._text(dropped))

    def _negate(self, condition: ast.expr) -> None:
        """Add the negation of a condition, unless another operator makes it."""
        match condition:
            case ast.UnaryOp(op=ast.Not()) | ast.Constant():
                return
            case ast.Compare(ops=[operator]) if isinstance(operator, _NEGATED_BY_COMPARISON):
                return
            case _:
                self._add(condition, "condition negated", f"(not ({self._text(condition)}))")

    def _visit_all(self, nodes: Sequence[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    # Places.

    def _span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.stmt | ast.expr | ast.keyword)  # noqa: S101 - for the types
        assert node.end_lineno is not None and node.end_col_offset is not None  # noqa: S101, PT018
        return (
            self._line_starts[node.lineno - 1] + node.col_offset,
            self._line_starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._data[start:end].decode()

    def _add(self, node: ast.stmt | ast.expr, operator: str, new: str, *, shown: str = "") -> None:
        self._add_span(self._span(node), node.lineno, operator, new, shown=shown)

    def _add_between(
        self,
        node: ast.expr | ast.stmt,
        left: ast.expr,
        right: ast.expr,
        operator: str,
        change: tuple[str, str],
    ) -> None:
        """Add the change of an operator between two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        old, new = change
        match = re.search(old.encode(), self._data[start:end])
        if match is not None:
            span = (start + match.start(), start + match.end())
            self._add_span(span, node.lineno, operator, new)

    def _add_span(
        self, span: tuple[int, int], line: int, operator: str, new: str, *, shown: str = ""
    ) -> None:
        if self._data[slice(*span)] != new.encode():
            self.found.append(CodeMutant(self._file, line, operator, *span, new, shown))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _is_log_call(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in _LOGGERS
    )
