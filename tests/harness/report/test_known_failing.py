"""Known failures: the file, a run's verdict, and what each report says of them."""

import dataclasses
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from rich.console import Console

from harness.__main__ import main
from harness.record.foundations import SURVIVES
from harness.record.known_failing import KnownFailure, read_known_failing, require_run
from harness.record.results import CheckResult, RunReport, load_report, save_known_failing
from harness.record.verdict import BrokenError, Finding, Verdict
from harness.report import write_all
from harness.report.summary import conclusion
from harness.report.terminal import Terminal
from harness.run.choice import Choice
from harness.run.session import begin_run
from tests.harness.report.cases import report_of, result_of

KNOWN = KnownFailure("*", "a.known", "issue 7")


def run_of(*results: CheckResult, known: Sequence[KnownFailure] = (KNOWN,)) -> RunReport:
    return dataclasses.replace(report_of(*results), known_failing=tuple(known))


def file_of(directory: Path, text: str) -> Path:
    path = directory / "known.txt"
    path.write_text(text)
    return path


def test_file_has_an_entry_a_line_with_its_reason(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        "# a comment\n\nlocal:a.b  # issue 7: # of readers\n  [[]::1]:50051:a.c-d # slow\n",
    )
    assert read_known_failing(path) == (
        KnownFailure("local", "a.b", "issue 7: # of readers", 3),
        KnownFailure("[[]::1]:50051", "a.c-d", "slow", 4),
    )
    assert read_known_failing(path)[1].matches("[::1]:50051", "a.c-d")


def test_file_may_begin_with_a_mark_and_name_an_address_with_brackets(tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_bytes(b"\xef\xbb\xbf[::1]:50051:a.b  # why\n")
    [entry] = read_known_failing(tmp_path / "known.txt")
    assert entry.matches("[::1]:50051", "a.b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("local:a.b\n", "line 1: local:a.b has no reason"),
        ("local:a.b  #  \n", "line 1: local:a.b has no reason"),
        ("a.b  # why\n", "line 1: 'a.b  # why' is invalid; write TARGET:CHECK  # reason"),
        ("local:*  # why\n", "line 1: 'local:*  # why' is invalid"),
        ("\nlocal:a.b # x\nlocal:a.b # y\n", "line 3: local:a.b is on line 2, too"),
    ],
)
def test_line_of_another_form_is_rejected_with_its_place(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(BrokenError) as error:
        read_known_failing(file_of(tmp_path, text))
    assert said in str(error.value)


def test_file_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_bytes(b"\xff")
    with pytest.raises(BrokenError, match="is not UTF-8"):
        read_known_failing(tmp_path / "known.txt")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (KnownFailure("*", "a.knwon", "x"), "does not exist; did you mean a.known?"),
        (KnownFailure("*", "a.other", "x"), "is not chosen"),
        (KnownFailure("vm", "a.known", "x"), "no target matches; the targets are local"),
    ],
)
def test_entry_that_a_run_cannot_confirm_is_rejected_before_it(
    entry: KnownFailure, said: str
) -> None:
    with pytest.raises(BrokenError) as error:
        require_run(
            [entry],
            Path("f"),
            every_check=["a.known", "a.other"],
            checks=["a.known"],
            targets=["local"],
        )
    assert said in str(error.value)


PASSED = result_of("a.kept", Verdict.PASS)
FAILED = result_of("a.known", Verdict.FAIL)
MISSING = result_of("a.known", Verdict.SKIPPED, promise="lacks cgroups")


@pytest.mark.parametrize(
    ("results", "verdict", "exit_code", "said"),
    [
        ((PASSED, FAILED), Verdict.PASS, 0, "kept, except in 1 check known to fail"),
        (
            (PASSED, FAILED, result_of("a.new", Verdict.FAIL)), Verdict.FAIL, 1,
            "A promise was broken in 1 check not known to fail. Known failures: 1.",
        ),
        (
            (PASSED, result_of("a.known", Verdict.PASS)), Verdict.FAIL, 1,
            "1 check passed, though known to fail (a.known): remove it from the file.",
        ),
        ((PASSED, MISSING), Verdict.BROKEN, 2, "1 known failure not judged (*:a.known)"),
        ((PASSED, result_of("a.known", Verdict.BROKEN)), Verdict.BROKEN, 2, "1 check BROKEN"),
        ((PASSED,), Verdict.BROKEN, 2, "1 known failure not judged (*:a.known)"),
        ((FAILED,), Verdict.BROKEN, 2, "no check passed"),
        ((FAILED, MISSING), Verdict.BROKEN, 2, "no check passed"),
        ((), Verdict.BROKEN, 2, "no check passed"),
    ],
)  # fmt: skip
def test_verdict_of_a_run_with_a_known_failure(
    results: tuple[CheckResult, ...], verdict: Verdict, exit_code: int, said: str
) -> None:
    report = run_of(*results)
    assert (report.verdict, report.exit_code) == (verdict, exit_code)
    assert said in conclusion(report)


def test_known_failure_of_another_target_excuses_nothing() -> None:
    report = run_of(PASSED, FAILED, known=[KnownFailure("vm", "a.known", "x")])
    assert report.verdict is Verdict.FAIL


def test_known_failure_that_fails_on_one_target_may_be_skipped_on_another() -> None:
    skipped = dataclasses.replace(MISSING, target="vm")
    assert run_of(PASSED, FAILED, skipped).verdict is Verdict.PASS


def test_known_failure_hidden_by_another_failure_is_not_an_open_entry() -> None:
    hidden = result_of(
        "a.hidden",
        Verdict.SKIPPED,
        findings=(Finding(Verdict.SKIPPED, "not judged", because="a.known"),),
    )
    known = [KNOWN, KnownFailure("*", "a.hidden", "x")]
    report = run_of(PASSED, FAILED, hidden, known=known)
    assert report.verdict is Verdict.PASS
    text = "except in 1 check known to fail (1 check could not be judged); 1 check skipped."
    assert text in conclusion(report)


DIED = result_of(
    "a.known",
    Verdict.FAIL,
    findings=(Finding(Verdict.FAIL, "it answers"), Finding(Verdict.FAIL, SURVIVES, "it ended")),
)


def test_known_failure_excuses_the_servers_death_only_if_its_reason_names_it() -> None:
    report = run_of(PASSED, DIED)
    assert (report.verdict, report.unconfirmed()) == (Verdict.FAIL, [])
    assert conclusion(report) == "A promise was broken in 1 check not known to fail."
    text = StringIO()
    Terminal(Console(file=text, width=200), known=[KNOWN]).finished(DIED)
    assert "known: issue 7" not in text.getvalue()
    assert SURVIVES in text.getvalue()
    named = KnownFailure("*", "a.known", f"issue 7: not {SURVIVES}")
    assert run_of(PASSED, DIED, known=[named]).verdict is Verdict.PASS


@pytest.mark.parametrize("known", [[], [KNOWN]])
def test_written_file_excuses_the_servers_death_by_name(
    tmp_path: Path, known: list[KnownFailure]
) -> None:
    report = run_of(PASSED, DIED, known=known)
    assert save_known_failing(report, tmp_path / "f") == 1
    [entry] = read_known_failing(tmp_path / "f")
    assert entry.reason == (f"issue 7; {SURVIVES}" if known else f"{SURVIVES}; got it ended")
    assert run_of(PASSED, DIED, known=[entry]).verdict is Verdict.PASS


def test_failed_run_says_what_it_did_not_judge() -> None:
    entry = KnownFailure("*", "a.open", "x")
    broken = result_of("a.broken", Verdict.BROKEN)
    report = run_of(PASSED, result_of("a.new", Verdict.FAIL), broken, known=[entry])
    assert conclusion(dataclasses.replace(report, expected=9)) == (
        "A promise was broken in 1 check not known to fail. Not all was judged: 1 check BROKEN; "
        "interrupted after 3 of 9 checks; 1 known failure not judged (*:a.open)."
    )


def test_cut_short_run_is_inconclusive_whatever_is_known() -> None:
    report = dataclasses.replace(run_of(PASSED, FAILED), expected=3)
    assert report.verdict is Verdict.BROKEN


def test_causes_have_the_known_ones_last_with_their_reasons() -> None:
    report = run_of(FAILED, result_of("a.new", Verdict.FAIL), result_of("a.x", Verdict.BROKEN))
    assert [(cause.result.name, cause.known) for cause in report.causes()] == [
        ("a.new", ""),
        ("a.x", ""),
        ("a.known", "issue 7"),
    ]


def test_known_failures_survive_saving(tmp_path: Path) -> None:
    report = run_of(PASSED, FAILED)
    write_all(report, tmp_path)
    assert load_report(tmp_path) == report
    causes = json.loads((tmp_path / "results.json").read_text())["causes"]
    assert [cause["known"] for cause in causes] == ["issue 7"]


def test_written_file_excuses_exactly_the_failures_of_its_run(tmp_path: Path) -> None:
    report = run_of(
        PASSED,
        result_of("a.new", Verdict.FAIL, promise="it\nstops\x1b " + "x" * 500),
        result_of("a.healed", Verdict.PASS),
        FAILED,
        known=[KNOWN, KnownFailure("*", "a.healed", "x"), KnownFailure("*", "a.absent", "y")],
    )
    path = tmp_path / "new.txt"
    assert save_known_failing(report, path) == 3
    entries = read_known_failing(path)
    assert [str(entry) for entry in entries] == ["*:a.known", "*:a.absent", "*:a.new"]
    assert entries[0].reason == "issue 7"
    assert entries[2].reason.startswith(r"it stops\x1b xxx")
    again = dataclasses.replace(report, known_failing=(entries[0], entries[2]))
    assert again.verdict is Verdict.PASS


def test_written_file_of_several_targets_names_each(tmp_path: Path) -> None:
    first = result_of("a.one", Verdict.FAIL, target="[::1]:5")
    other = result_of("a.one", Verdict.PASS, target="local")
    save_known_failing(run_of(first, other, known=()), tmp_path / "f")
    [entry] = read_known_failing(tmp_path / "f")
    assert (entry.matches("[::1]:5", "a.one"), entry.matches("local", "a.one")) == (True, False)


def test_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = file_of(tmp_path, "mine")
    with pytest.raises(BrokenError, match="choose another file"):
        save_known_failing(run_of(FAILED), path)
    done = CliRunner().invoke(main, ["check", "--write-known-failing", str(path)])
    assert (done.exit_code, "must be a new file, and this one exists" in done.output) == (2, True)
    assert path.read_text() == "mine"


def test_terminal_gives_a_known_failure_one_line_and_shouts_an_unexpected_pass() -> None:
    text = StringIO()
    report = run_of(
        FAILED, result_of("a.gone", Verdict.PASS), known=[KNOWN, KnownFailure("*", "a.gone", "x")]
    )
    terminal = Terminal(Console(file=text, width=200), known=report.known_failing)
    for result in report.results:
        terminal.finished(result)
    terminal.end(report, Path("d"))
    said = text.getvalue()
    assert "known: issue 7" in said
    assert "rerun:" not in said
    assert "Causes" not in said
    assert "UNEXPECTED PASSES: known to fail; remove them from the file\n    local  a.gone" in said


def test_junit_skips_a_known_failure_and_fails_an_unexpected_pass(tmp_path: Path) -> None:
    report = run_of(
        FAILED, result_of("a.gone", Verdict.PASS), known=[KNOWN, KnownFailure("*", "a.gone", "x")]
    )
    write_all(report, tmp_path)
    root = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314 - our own
    [skipped] = root.findall(".//testcase[@name='known']/skipped")
    [failure] = root.findall(".//testcase[@name='gone']/failure")
    assert skipped.get("message") == "known to fail: issue 7; the promise"
    assert failure.get("message") == "it passed, though known to fail: x"
    assert (root.get("failures"), root.get("errors"), root.get("skipped")) == ("1", "0", "1")


def test_junit_of_a_run_with_an_unjudged_entry_has_an_error(tmp_path: Path) -> None:
    write_all(run_of(PASSED), tmp_path)
    root = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314 - our own
    assert root.get("errors") == "1"


def test_run_reports_its_known_failures_and_writes_the_others(tmp_path: Path) -> None:
    written = tmp_path / "new.txt"
    choice = Choice(out=tmp_path / "run", known_failing=(KNOWN,), write_known_failing=written)
    with begin_run(choice, 3) as run:
        run.results += [PASSED, FAILED, result_of("a.new", Verdict.FAIL)]
    assert load_report(tmp_path / "run").known_failing == (KNOWN,)
    assert [str(entry) for entry in read_known_failing(written)] == ["*:a.known", "*:a.new"]


def test_check_rejects_an_entry_before_it_starts_a_server(tmp_path: Path) -> None:
    path = file_of(tmp_path, "local:lifecycle.idz  # issue 7\n")
    words = ["check", "--known-failing", str(path), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, words)
    assert isinstance(done.exception, BrokenError)
    assert "did you mean lifecycle.ids?" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_recheck_applies_a_file_to_a_saved_run(tmp_path: Path) -> None:
    checks = [result_of("lifecycle.ids", Verdict.FAIL), result_of("streams.end", Verdict.PASS)]
    write_all(report_of(*checks), tmp_path)
    assert CliRunner().invoke(main, ["recheck", str(tmp_path)]).exit_code == 1
    path = file_of(tmp_path, "local:lifecycle.ids  # issue 7\n")
    words = ["recheck", str(tmp_path), "--known-failing", str(path)]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert load_report(tmp_path).known_failing[0].reason == "issue 7"
    path.write_text("local:lifecycle.literal  # not in the run\n")
    done = CliRunner().invoke(main, words)
    message = "the run does not include this check; remove the entry"
    assert str(done.exception).endswith(f"local:lifecycle.literal: {message}")
