"""Each id that a check cites is a row of a page, and each row names the checks that cite it.

The pages are `docs/requirements.md` and `docs/cases.md`. A row that no check cites gives the reason
instead. Not covered: whether a check truly judges what it cites; its mutants show that.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from harness.checks import ALL
from harness.checks.check import Check
from tests.test_tidy import ROOT

PAGES = (ROOT / "docs" / "requirements.md", ROOT / "docs" / "cases.md")
ROW = re.compile(r"^\| (R-[A-Z0-9-]+|\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
NOT_JUDGED = re.compile(r"not judged (yet|by a check\b.*): \S")
PATH = re.compile(r"`([a-z]+/[\w/.-]+)`")


def expanded(cited: str) -> list[str]:
    """Return the ids of a citation: "2-4" stands for 2, 3 and 4."""
    span = re.fullmatch(r"(\d+)-(\d+)", cited)
    if span is None:
        return [cited]
    return [str(number) for number in range(int(span[1]), int(span[2]) + 1)]


def citing_checks() -> dict[str, list[str]]:
    """Return the names of the checks that cite each id, in alphabetical order."""
    citing: dict[str, list[str]] = {}
    for check in sorted(ALL, key=lambda check: check.name):
        for cited in dict.fromkeys(each for text in check.cites for each in expanded(text)):
            citing.setdefault(cited, []).append(check.name)
    return citing


CITING = citing_checks()
ROWS = [(page, *row) for page in PAGES for row in ROW.findall(page.read_text())]


@pytest.mark.parametrize(
    ("page", "row_id", "last_column"),
    [(page, row_id, last_column) for page, row_id, _, last_column in ROWS],
    ids=[row_id for _, row_id, _, _ in ROWS],
)
def test_row_names_the_checks_that_cite_it(page: Path, row_id: str, last_column: str) -> None:
    checks = ", ".join(f"`{name}`" for name in CITING.get(row_id, ()))
    if checks:
        assert last_column == checks, f"{page.name}, row {row_id}: write {checks}"
        return
    assert NOT_JUDGED.match(last_column), (
        f"{page.name}, row {row_id}: no check cites it; write 'not judged yet: REASON' or "
        "'not judged by a check: REASON'"
    )
    for path in PATH.findall(last_column):
        assert (ROOT / path).exists(), f"{page.name}, row {row_id}: {path} does not exist"


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
def test_cited_id_has_a_row(check: Check) -> None:
    assert check.cites, f"{check.name} cites no case and no requirement"
    rows = {row_id for _, row_id, _, _ in ROWS}
    unknown = [cited for text in check.cites for cited in expanded(text) if cited not in rows]
    assert not unknown, (
        f"{check.name} cites {unknown}: add a row to docs/cases.md or docs/requirements.md"
    )


def test_each_id_has_one_row_and_cases_are_in_order() -> None:
    ids = [row_id for _, row_id, _, _ in ROWS]
    assert [row_id for row_id, count in Counter(ids).items() if count > 1] == []
    cases = [int(row_id) for row_id in ids if row_id.isdecimal()]
    assert cases == sorted(cases)
    assert len(cases) > 100, "the pattern of a row no longer fits the page"
