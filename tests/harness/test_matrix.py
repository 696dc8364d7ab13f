"""The matrix of mutants and checks: what a row counts, and what the table says."""

from harness.mutation.mutation import Mutation
from harness.record.verdict import Finding, Verdict
from harness.run.matrix import HEADER, MatrixRow
from tests.harness.report.cases import result_of

EXPLAINED = Finding(Verdict.SKIPPED, "could not be judged because of b.two", because="b.two")


def test_row_has_the_failures_what_they_hide_and_what_is_broken() -> None:
    results = (
        result_of("a.one", Verdict.PASS),
        result_of("b.two", Verdict.FAIL),
        result_of("c.one", Verdict.SKIPPED, findings=(EXPLAINED,)),
        result_of("c.two", Verdict.SKIPPED, findings=(EXPLAINED,)),
        result_of("d.one", Verdict.SKIPPED),
        result_of("e.one", Verdict.BROKEN),
    )
    row = MatrixRow(Mutation("loses a byte", (), "b.two"), results)
    assert row.fails == 1
    assert row.line() == "| loses a byte | 1 | b.two | 2 by b.two | e.one |"
    assert row.line().count("|") == HEADER.splitlines()[0].count("|")
