"""The table of security cases is complete, and the document agrees with its rows."""

import re
from pathlib import Path

import pytest

from harness.checks import ALL
from harness.mutation import check_mutants as mutants
from harness.project.security_table import (
    DOCUMENT,
    NOT_RUN,
    OBSERVED_COLUMN,
    ROWS,
    WITHIN,
    Row,
    documented,
    find_differences,
    observed,
    table,
    with_table,
)
from harness.record.results import CheckResult
from harness.record.verdict import BrokenError, Finding, Verdict
from tests.mutants.table import MUTANTS as TESTS_MUTANTS

ROOT = Path(__file__).parents[2]
CHECKS = {check.name: check for check in ALL}
CAUGHT_BY = {mutant.name: mutant.caught_by for mutant in mutants.ALL}
CAUGHT_BY_A_TEST = {mutant.name: mutant.caught_by for mutant in TESTS_MUTANTS}
UNPROVEN_MAX = 14  # a new row has a mutant, or is a reason to say it in docs/security.md
CATALOGUE = {str(number) for number in (*range(1, 31), *range(79, 83))}


def without_observed(line: str) -> list[str]:
    cells = line.split("|")
    return cells[:OBSERVED_COLUMN] + cells[OBSERVED_COLUMN + 1 :]


def test_document_has_each_row_with_a_passing_observation() -> None:
    lines = documented((ROOT / DOCUMENT).read_text())
    assert list(map(without_observed, lines)) == list(map(without_observed, table([])))
    for line in lines[2:]:
        seen = line.split("|")[OBSERVED_COLUMN].strip()
        assert seen != NOT_RUN, line
        assert not re.match("FAIL|BROKEN|SKIPPED", seen), line


def test_each_case_of_the_catalogue_has_a_row() -> None:
    assert {row.case for row in ROWS} >= CATALOGUE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.case}-{row.what}")
def test_row_names_its_judge_and_mutants_that_the_judge_catches(row: Row) -> None:
    if row.is_test:
        path, _, name = row.judge.partition("::")
        assert f"def {name}" in (ROOT / path).read_text()
    else:
        assert row.judge in CHECKS
    caught_by = CAUGHT_BY_A_TEST if row.is_test else CAUGHT_BY
    # A test's mutant may name one of its parameters.
    judges = {caught_by.get(name, "").partition("[")[0] for name in row.mutants}
    assert judges <= {row.judge}
    assert bool(row.mutants) != bool(row.unproven), "either a mutant, or why none exists"
    assert "|" not in row.what + row.expected


def test_each_named_mutant_exists_and_few_rows_have_none() -> None:
    named = {name for row in ROWS for name in row.mutants}
    assert named <= {*CAUGHT_BY, *CAUGHT_BY_A_TEST}
    without = [row.what for row in ROWS if not row.mutants]
    assert len(without) <= UNPROVEN_MAX, without


def test_differences_are_rows_observed_otherwise_than_documented() -> None:
    first, second = "| 1 | a | refused | OK | `x` | m |", "| 2 | b | refused | OK | `x` | m |"
    both = [first, second]
    assert find_differences(both, both) == []
    other = second.replace("OK", "INTERNAL")
    assert find_differences(both, [first, other]) == [f"run:      {other}"]
    assert find_differences(both, [first, second.replace("OK", NOT_RUN)]) == []
    assert find_differences(both, [first, second.replace("OK", "SKIPPED: no wing")]) == []
    assert find_differences(both, [first]) == [f"document: {second}"]
    assert find_differences([first], both) == [f"run:      {second}"]


def result(verdict: Verdict, *findings: Finding) -> CheckResult:
    return CheckResult("local", "identity.roles", "", verdict, findings, 1.0)


@pytest.mark.parametrize(
    ("findings", "seen"),
    [
        ([Finding(Verdict.PASS, "a user may not start", "PERMISSION_DENIED: no")] * 2,
         "PERMISSION_DENIED"),
        ([Finding(Verdict.PASS, "a user may not list", "refused: SSLEOFError")], "refused"),
        ([Finding(Verdict.PASS, "a user may not stop", "0.125")], WITHIN),
        ([Finding(Verdict.PASS, "a user may not stop", "a|b\nc")], "a/b c"),
        ([Finding(Verdict.FAIL, "a user may not stop", "OK")], "FAIL: OK"),
    ],
)  # fmt: skip
def test_observation_is_what_the_findings_got(findings: list[Finding], seen: str) -> None:
    row = Row("23", "", "", "identity.roles", "a user may not")
    assert observed(row, [result(Verdict.PASS, *findings)]) == seen


def test_unjudged_row_is_not_observed() -> None:
    row = Row("23", "", "", "identity.roles", "a user may not")
    assert observed(row, []) == NOT_RUN
    skipped = result(Verdict.SKIPPED, Finding(Verdict.SKIPPED, "the target lacks a wing"))
    assert observed(row, [skipped]) == "SKIPPED: the target lacks a wing"
    with pytest.raises(BrokenError, match="no finding"):
        observed(row, [result(Verdict.PASS, Finding(Verdict.PASS, "something else"))])


def test_document_without_table_markers_is_broken() -> None:
    with pytest.raises(BrokenError, match="lacks the lines"):
        with_table("no table here", [])
