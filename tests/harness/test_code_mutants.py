"""The mechanical mutants: each operator's changes, and what is left alone."""

from pathlib import Path

import pytest

from harness.mutation.code_mutants import code_mutants
from harness.mutation.mutation import SERVICE, edited_text
from tests.test_tidy import ROOT

MODULES = sorted((ROOT / SERVICE).glob("*.py"))


def changes(source: str) -> dict[str, set[str]]:
    """Return the changed texts by operator."""
    found: dict[str, set[str]] = {}
    for mutant in code_mutants("module.py", source):
        found.setdefault(mutant.operator, set()).add(mutant.changed(source))
    return found


@pytest.mark.parametrize(
    ("source", "operator", "changed"),
    [
        ("a < b", "comparison", {"a <= b"}),
        ("a >= b", "comparison", {"a > b"}),
        ("(a) == (b)", "comparison", {"(a) != (b)"}),
        ("a is not b", "comparison", {"a is b"}),
        ("a not in b", "comparison", {"a in b"}),
        ("0 < a <= 9", "comparison", {"0 <= a <= 9", "0 < a < 9"}),
        ("x = 3", "constant", {"x = 4"}),
        ("x = 2.5", "constant", {"x = 5.0"}),
        ("x = True", "constant", {"x = False"}),
        ("x = 'cpu.max'", "constant", {"x = 'cpu.maxX'"}),
        ("a and b or c", "boolean operator", {"a or b or c", "a and b and c"}),
        ("if a < b: c", "condition negated", {"if (not (a < b)): c"}),
        ("if not a: c", "condition negated", {"if (a): c"}),
        ("x = [a for a in b if a.c]", "condition negated", {"x = [a for a in b if (not (a.c))]"}),
        ("f()", "statement dropped", {"pass"}),
        ("x.y = z", "statement dropped", {"pass"}),
        ("raise KeyError", "statement dropped", {"pass"}),
        ("raise KeyError(a)", "exception type", {"raise RuntimeError(a)"}),
        ("f(a, b)", "arguments swapped", {"f(b, a)"}),
        ("f(a, c=d)", "argument dropped", {"f(a)"}),
        ("def f():\n    return g", "return value", {"def f():\n    return None"}),
        ("a + b", "arithmetic", {"a - b"}),
        ("a -= b", "arithmetic", {"a += b"}),
        ("é = 'x' + ä < ö", "comparison", {"é = 'x' + ä <= ö"}),
        (
            "try: a\nexcept (B, C): d", "exception type",
            {
                "try: a\nexcept (ZeroDivisionError, C): d",
                "try: a\nexcept (B, ZeroDivisionError): d",
            },
        ),
        (
            "with suppress(A): b", "exception type", {"with suppress(ZeroDivisionError): b"},
        ),
    ],
)  # fmt: skip
def test_operator_makes_exactly_these_changes(
    source: str, operator: str, changed: set[str]
) -> None:
    assert changes(source).get(operator) == changed


@pytest.mark.parametrize(
    "source",
    [
        '"""Docstring, 1 < 2."""',
        "import a.b",
        "def f(x: 'T' = y) -> 'list[1]': pass",
        "x: Literal['a', 1] = y",
        "type T = dict[1, 'x']",
        "@decorated(1)\ndef f(): pass",
        "logger.warning('%s', 1 + 2)",
        "assert a < 1",
        "x = 'a text with spaces'",
        "x = f'{1 + 2}'",
        "class C:\n    def __init__(self): self.x = y",
    ],
)
def test_what_no_client_could_see_is_left_alone(source: str) -> None:
    assert changes(source) == {}


def test_texts_of_errors_are_left_alone() -> None:
    assert set(changes("raise KeyError('a', 1)")) == {"statement dropped", "exception type"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_mutants_of_the_service_are_other_valid_programs(path: Path) -> None:
    source = path.read_text()
    mutants = code_mutants(path.name, source)
    for mutant in mutants[::4]:
        mutation = mutant.mutation(source)
        changed = edited_text(mutation, mutation.edits[0], source)
        assert changed == mutant.changed(source) != source
        compile(changed, path.name, "exec")
    assert len({mutant.changed(source) for mutant in mutants}) == len(mutants)
