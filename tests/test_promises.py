"""Every promise of the proto, of `serve --help` and of the marked sections has its holder.

`docs/promises.md` names the checks and tests that hold each promise, or says why none does. Not
covered: whether they truly hold it; their mutants show that.
"""

import re
from pathlib import Path

import pytest

from harness.checks import ALL
from tests.support.promises import (
    MARKED_PAGES,
    PAGE,
    ROOT,
    all_promises,
    declared_names,
    page_promises,
    proto_promises,
    rows,
    written_page,
)

CHECKS = {check.name for check in ALL}
NOT_JUDGED = re.compile(r"not judged: \S+")
HOLDER = re.compile(r"`([^`]+)`")
ROWS = rows()
REWRITE = "run `python -m tests.support.promises`, then fill in the last column"


def test_page_has_every_promise_with_its_words_and_no_other() -> None:
    promises = [each for group in all_promises().values() for each in group]
    names = [promise.name for promise in promises]
    assert len(names) == len(set(names))
    missing = [name for name in names if name not in ROWS]
    assert not missing, f"promises without a row: {missing}; {REWRITE}"
    assert not set(ROWS) - set(names), f"rows without a promise; {REWRITE}"
    assert PAGE.read_text() == written_page(), f"other words, or another order; {REWRITE}"


def test_every_rpc_and_field_is_found() -> None:
    assert declared_names() <= {promise.name for promise in proto_promises()}


def test_every_page_with_promises_has_a_marked_section() -> None:
    found = {promise.name.split()[0] for promise in page_promises()}
    assert found == {Path(name).stem for name in MARKED_PAGES}


@pytest.mark.parametrize("name", ROWS)
def test_promise_is_held_by_what_exists_or_says_why_not(name: str) -> None:
    held_by = ROWS[name][1]
    if NOT_JUDGED.match(held_by):
        return
    holders = HOLDER.findall(held_by)
    assert holders, f"{name}: name a check or a test, or write 'not judged: REASON'"
    faults = [holder for holder in holders if not exists(holder)]
    assert not faults, f"{name}: neither a check nor a test: {faults}"


def exists(holder: str) -> bool:
    """Return whether a check, a test or a file of tests exists; a test is written FILE::NAME."""
    if holder in CHECKS:
        return True
    file, _, test = holder.partition("::")
    path = ROOT / "tests" / file
    return path.is_file() and (not test or f"def {test}(" in path.read_text())
