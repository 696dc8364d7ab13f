"""Judges a check's records. It needs no server, so a saved run can be judged again."""

import dataclasses
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from harness.checks.check import Check
from harness.drive.receiver import QUIET_S
from harness.record.foundations import (
    ENDS,
    OWNERS,
    SURVIVES,
    Foundation,
    attributed,
    broken_by,
)
from harness.record.history import Cause, History, Interruption, load
from harness.record.machine_load import MachineLoad
from harness.record.results import CheckResult, RunReport
from harness.record.scopes import distrusted, inconclusive
from harness.record.terms import without_fields
from harness.record.verdict import BrokenError, Duration, Finding, Verdict, merge

_TRACEBACK_CHARACTERS: Final = 3000


def judge_check(check: Check, history: History) -> tuple[Finding, ...]:
    """Judge a check's records; a judge that crashes is BROKEN.

    If the run was interrupted, only the interruptions are judged, and whether streams ended. If the
    server's machine died, the check is BROKEN: the server is not to blame for unanswered calls and
    cut streams. Nor is it for what a judge finds after an assumption that is not met, or for what
    the load of the machine explains.
    """
    interruptions = history.all(Interruption)
    machine = [each for each in interruptions if each.cause is Cause.MACHINE_DIED]
    loads = [each for each in history.all(MachineLoad) if not each.is_quiet]
    findings = tuple(_interrupted(machine or interruptions, loads))
    if machine:
        return findings
    try:
        findings = findings or tuple(distrusted(check.judge(history)))
        findings = findings or (
            Finding(Verdict.BROKEN, "the check judges at least one promise", "none"),
        )
        return tuple(_excused(findings + _unended(history), loads))
    except BrokenError as error:
        return (Finding(Verdict.BROKEN, "the records are complete", str(error)),)
    except Exception:  # noqa: BLE001 - a judge that crashes is BROKEN, whatever it was
        return (Finding(Verdict.BROKEN, "the judge reaches a verdict", crash_text()),)


def _excused(findings: Iterable[Finding], loads: Sequence[MachineLoad]) -> Iterator[Finding]:
    """Make what took too long inconclusive where the load of the machine explains it."""
    for each in findings:
        load = next(
            (load for load in loads if each.duration and load.explains(each.duration)), None
        )
        if load is None or each.verdict is not Verdict.FAIL:
            yield each
        else:
            yield inconclusive(each, load.sentence())


def _unended(history: History) -> tuple[Finding, ...]:
    """Return a finding if streams did not end: judges see all of their output all the same."""
    labels = [stream.label for stream in history.streams() if stream.unended]
    got = f"no end of {len(labels)} streams: {', '.join(labels[:3])}"
    duration = Duration.past_deadline(QUIET_S)
    return (Finding(Verdict.FAIL, ENDS, got, "an end", duration=duration),) if labels else ()


def _interrupted(
    interruptions: Sequence[Interruption], loads: Sequence[MachineLoad]
) -> Iterator[Finding]:
    for each in interruptions:
        match each.cause:
            case Cause.NEED_MISSING:
                yield Finding(Verdict.SKIPPED, each.detail)
            case Cause.PROMISE_BROKEN if each.finding is not None:
                yield dataclasses.replace(each.finding, verdict=Verdict.FAIL)
            case Cause.SERVER_DIED:
                yield Finding(Verdict.FAIL, SURVIVES, f"it ended: {each.detail}")
            case Cause.SERVER_SILENT:
                yield Finding(Verdict.FAIL, SURVIVES, f"it answers no call: {each.detail}")
            case Cause.MACHINE_DIED:
                promise = "the server's machine survives the check"
                yield Finding(Verdict.BROKEN, promise, each.detail)
            case _:
                reasons = [each.detail, *(load.sentence() for load in loads)]
                yield Finding(Verdict.BROKEN, "the check completes", "; ".join(reasons))


def crash_text() -> str:
    """Return the end of the current exception's traceback."""
    return traceback.format_exc()[-_TRACEBACK_CHARACTERS:]


def judge_again(report: RunReport, directory: Path, checks: Sequence[Check]) -> RunReport:
    """Judge a saved run again with the current judges.

    A check whose history cannot be read is BROKEN; one that no longer exists keeps its result.
    """
    by_name = {check.name: check for check in checks}
    judges = {result.target: Judge() for result in report.results}
    for result in report.results:
        if result.name in OWNERS and result.name in by_name and result.history:
            with suppress(BrokenError):
                history = load(directory / result.history)
                judges[result.target].learn(by_name[result.name], history)
    return dataclasses.replace(
        report,
        results=tuple(
            _judge_result(result, directory, by_name.get(result.name), judges[result.target])
            for result in report.results
        ),
    )


class Judge:
    """Judges the checks of one target: first it learns which foundations are broken."""

    def __init__(self) -> None:
        self._broken: tuple[Foundation, ...] = ()

    def learn(self, owner: Check, history: History) -> None:
        """Take note of what the owner of a foundation found; see `foundations`."""
        self._broken += broken_by(owner.name, judge_check(owner, history))

    def has_broken(self, promise: str) -> bool:
        """Return whether the foundation of this promise is broken."""
        return any(each.promise == promise for each in self._broken)

    def __call__(self, check: Check, history: History) -> tuple[Finding, ...]:
        """Return a check's findings, without those that a broken foundation explains."""
        fields = {each.field for each in self._broken if each.field and each.owner != check.name}
        findings = judge_check(check, without_fields(history, fields))
        return attributed(check.name, findings, history, self._broken)


def _judge_result(
    result: CheckResult, directory: Path, check: Check | None, judge: Judge
) -> CheckResult:
    if check is None or not result.history:
        return result
    try:
        findings = judge(check, load(directory / result.history))
    except BrokenError as error:
        findings = (Finding(Verdict.BROKEN, "the records can be read", str(error)),)
    return dataclasses.replace(
        result, findings=findings, verdict=merge(findings), guarantee=check.guarantee
    )
