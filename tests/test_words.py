"""Plain words: phrases that a stranger cannot search for are banned, and the replacement is named.

Read are all strings, docstrings and comments of the service, the harness and the load tests, and
every Markdown page. Not read: the mutants, which quote other files, and this list itself.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_tidy import ROOT, tracked

# A pattern (case does not matter), and what to write in its place.
BANNED = [
    (r"\b(tell|tells|told)\b", "report(s), reported, return; 'told apart': distinguished"),
    (r"\basked\b", "requested, given, chosen"),
    (r"\bnobody\b", "no client, no one, nothing"),
    (r"\bmay not\b|\bwho may\b", "must not, is forbidden, is allowed to"),
    (r"\b(stands|stood)\b", "is, exists, runs, is written"),
    (r"\bthere (is|are) none\b", "does not exist, is missing"),
    (r"\bto be had\b", "available"),
    (r"\b(take|takes|taken|took) up\b", "resume, reload, accept, use"),
    (r"\bstopped dead\b", "paused with SIGSTOP"),
    (r"\b(is|are|was|were) no more\b|\bgood no more\b|\bno more than\b", "no longer; at most"),
    (r"\b(by|of|to|some|a|where|that) chance\b|\bchances\b", "random, at random, by accident"),
    (r"\b(come|comes|came|coming) to (its|an|the|their|no) end\b", "end, finish, time out"),
    (r"\bput to (the test|it|what)\b|\bis put to\b", "test, check, run"),
    ((r"\b(is|are|was|were|be) no (?!longer\b|more\b|less\b|different\b|such\b|later\b|faster\b)"
     r"(?=[a-z`{])"), "is not a ..., has no ..., ... is missing"),
    (r"\bnothing can be said\b|\bcan be said\b", "inconclusive"),
    (r"\bcome what may\b|\bwhatever becomes of\b", "in every case, however it ends"),
    (r"\bwhat (it|they|all|each)? ?(comes|came|come) to\b", "result, outcome"),
    (r"\bwhat there is\b", "the available ..., everything"),
    (r"\bto begin with\b|\bin the way of\b|\bof its own accord\b", "plain words"),
    (r"\bat a loss\b|\bthe like\b|\bas said\b|\bmeanwhile hurts\b", "plain words"),
]  # fmt: skip
QUOTING = ("harness/mutation/check_mutants/", "proto/")
PARTS = ("impl", "harness", "loadtests")

SOURCES = [
    path
    for path in tracked("*.py", "*.md", "*.j2", "Makefile", ".ci/*", "certs/make-certs")
    if path.exists()
    and str(path.relative_to(ROOT)).split("/")[0] != "tests"
    and not str(path.relative_to(ROOT)).startswith(QUOTING)
]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what people read of a file, each with its line: of Python no names and no keywords."""
    source = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_phrase(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]!r}, write: {instead}\n    {text.strip()[:160]}"
        for line, text in texts(path)
        for pattern, instead in BANNED
        for match in re.finditer(pattern, re.sub(r"\s+", " ", text), re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", tracked("*.md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_line_of_a_page_has_at_most_120_columns(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert not [
        number for number, line in enumerate(lines, 1) if len(line) > 120 and "|" not in line
    ]
