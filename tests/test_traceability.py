"""Each id that a check cites is a row of a page, and each row names the checks that cite it.

The pages are `docs/requirements.md` and `docs/cases.md`. A row that no check cites gives the reason
instead. Not covered: whether a check truly judges what it cites; its mutants show that.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from harness.checks import ALL
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


def fault_of(row_id: str, last_column: str) -> str:
    """Return what is wrong with a row's last column, or nothing."""
    checks = ", ".join(f"`{name}`" for name in CITING.get(row_id, ()))
    if checks:
        return "" if last_column == checks else f"write {checks}"
    if not NOT_JUDGED.match(last_column):
        return (
            "no check cites it: write 'not judged yet: REASON' or 'not judged by a check: REASON'"
        )
    missing = [path for path in PATH.findall(last_column) if not (ROOT / path).exists()]
    return f"{', '.join(missing)} does not exist" if missing else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_row_names_the_checks_that_cite_it(page: Path) -> None:
    faults = [
        f"{page.name}, row {row_id}: {fault}"
        for its_page, row_id, _, last_column in ROWS
        if its_page == page and (fault := fault_of(row_id, last_column))
    ]
    assert not faults, "\n".join(faults)


def test_cited_id_has_a_row() -> None:
    rows = {row_id for _, row_id, _, _ in ROWS}
    for check in ALL:
        assert check.cites, f"{check.name} cites no case and no requirement"
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
