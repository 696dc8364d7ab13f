"""A run from start to end: what its report has, however it ends."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.record.results import CheckResult, load_report
from harness.record.verdict import Verdict
from harness.run import session
from harness.run.check_runner import Progress
from harness.run.choice import Choice
from tests.harness.report.cases import result_of

FIRST, SECOND = result_of("a.first", Verdict.FAIL), result_of("a.second", Verdict.PASS)


def run_with(
    checks: Callable[[Progress], list[CheckResult]], out: Path, patch: pytest.MonkeyPatch
) -> None:
    """Make a run whose checks end as the function does."""

    def run_checks(_target: Any, _checks: Any, _options: Any, progress: Progress, **_: Any) -> Any:
        return checks(progress)

    target = SimpleNamespace(name="local", describe=lambda: "nothing")
    patch.setattr(session, "run_checks", run_checks)
    patch.setattr(session, "open_identities", lambda *_: nullcontext())
    patch.setattr(session, "open_target", lambda *_: nullcontext(target))
    session.run_session(Choice(out=out))


def test_interrupted_run_reports_what_it_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(progress: Progress) -> list[CheckResult]:
        progress.finished(SECOND)
        progress.finished(FIRST)
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_with(interrupted, tmp_path, monkeypatch)
    assert set(load_report(tmp_path).results) == {FIRST, SECOND}


def test_complete_run_has_each_result_once_in_the_order_of_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(progress: Progress) -> list[CheckResult]:
        progress.finished(SECOND)
        progress.finished(FIRST)
        return [FIRST, SECOND]

    run_with(complete, tmp_path, monkeypatch)
    assert load_report(tmp_path).results == (FIRST, SECOND)
