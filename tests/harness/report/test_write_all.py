"""The files of a run."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.record.history import History, UsageCurve, save
from harness.record.results import load_report
from harness.record.verdict import BrokenError, Verdict
from harness.report import write_all
from harness.run.choice import Choice
from harness.run.session import begin_run
from tests.harness.report.cases import report_of, result_of

USAGE = UsageCurve("Memory", "bytes", None, ((0, 1), (1, 2)))


def test_write_all_writes_every_file_of_the_result(tmp_path: Path) -> None:
    save(History([USAGE]), tmp_path / "one.jsonl")
    report = report_of(result_of("a.one", Verdict.PASS, history="one.jsonl"))
    write_all(report, tmp_path)
    assert load_report(tmp_path) == report
    assert ET.parse(tmp_path / "junit.xml").getroot().get("tests") == "1"  # noqa: S314 - our own
    assert "<b>Memory</b>" in (tmp_path / "report.html").read_text()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "one.jsonl", "results.json", "junit.xml", "report.html", "summary.md", "results.sarif",
        "badge.json", "badge.svg",
    }  # fmt: skip


def test_file_that_cannot_be_written_is_one_error_and_hides_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").mkdir()
    with (
        pytest.raises(BrokenError, match=r"^the reports .*/report\.html: Is a directory$"),
        begin_run(Choice(out=tmp_path), 1) as run,
    ):
        run.results.append(result_of("a.one", Verdict.FAIL))
    assert "A promise was broken in 1 check." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "The records cannot be read: no history at"),
        (b"\xff\xfe", "The records cannot be read: no history at"),
        (b"no json\n", "The records cannot be read: not a record of a run"),
        (b"[]\n", "The records cannot be read: not a record of a run"),
        (
            b'{"kind": "UsageCurve", "title": 1, "unit": "", "limit": null, "samples": []}\n',
            "The records cannot be read: not a record of a run",
        ),
        (b'{"kind": "Of1.0"}\n', "The records cannot be read: unknown kind of record"),
        (
            (
                b'{"kind": "stream", "label": "a", "job_id": "j", "outcome": "OK", "code": "OK",'
                b'"detail": "", "received_bytes": 1, "sha256": "", "started_s": "x", "ended_s": 1,'
                b'"timeline": [[1, 2], [2, 3], [3, 4]]}\n'
            ),
            "The records cannot be read: not a record of a run",
        ),
        (
            b'{"kind": "UsageCurve", "title": "", "unit": "", "limit": 1, "samples": [[0, NaN]]}',
            "The charts cannot be drawn: ValueError",
        ),
    ],
)
def test_report_is_written_though_the_records_are_invalid(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "one.jsonl").write_bytes(content)
    write_all(report_of(result_of("a.one", Verdict.FAIL, history="one.jsonl")), tmp_path)
    assert said in (tmp_path / "report.html").read_text()
    assert load_report(tmp_path).verdict is Verdict.FAIL
