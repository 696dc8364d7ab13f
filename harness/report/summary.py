"""A run's summary in numbers and sentences, the same in every kind of report."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from harness.record.results import CheckResult, RunReport, StepTime
from harness.record.verdict import Finding, Verdict

NAMES_MAX: Final = 3
# The order in which verdicts are shown: those that need attention come first.
ORDER: Final = (Verdict.FAIL, Verdict.BROKEN, Verdict.SKIPPED, Verdict.PASS)


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One area of one target; `seconds` is the sum over its checks, which can overlap."""

    target: str
    area: str
    counts: Counter[Verdict]
    seconds: float


def rows(report: RunReport) -> list[SummaryRow]:
    """Return a row for each target and area, in the order of their first result."""
    grouped: dict[tuple[str, str], list[CheckResult]] = {}
    for target in dict.fromkeys(result.target for result in report.results):
        for result in report.results:
            if result.target == target:
                grouped.setdefault((target, result.area), []).append(result)
    return [
        SummaryRow(
            target,
            area,
            Counter(each.verdict for each in results),
            sum(each.seconds for each in results),
        )
        for (target, area), results in grouped.items()
    ]


def times(report: RunReport) -> list[StepTime]:
    """Return the steps that have a budget."""
    return [step for step in report.steps if step.budget_s]


def reason(result: CheckResult) -> str:
    """Return why a check was skipped."""
    return "; ".join(each.sentence() for each in result.decisive) or "no reason given"


def skips_by_reason(report: RunReport) -> dict[str, list[CheckResult]]:
    """Return the skipped results by reason; the most frequent reason first."""
    grouped: dict[str, list[CheckResult]] = {}
    for result in report.results:
        if result.verdict is Verdict.SKIPPED:
            grouped.setdefault(reason(result), []).append(result)
    return dict(sorted(grouped.items(), key=lambda item: -len(item[1])))


def heaviest_first(findings: tuple[Finding, ...]) -> list[Finding]:
    """Return findings, failures first, so that truncation does not hide a broken promise."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.verdict))


def counted(number: int, what: str) -> str:
    """Return `1 check`, `2 checks`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def conclusion(report: RunReport) -> str:
    """Return the reason of the overall verdict as a sentence."""
    counts = report.counts()
    known = len(report.known_failures())
    if report.verdict is Verdict.FAIL:
        return _failed(report, counts[Verdict.FAIL] - known, known)
    if report.setup_error:
        done = f"{len(report.results)} of {counted(report.expected, 'check')} run"
        return f"Set-up error, {done}: {report.setup_error}"
    reasons = _doubts(report)
    if not counts[Verdict.PASS]:
        reasons.append("no check passed")
    if reasons:
        return f"Inconclusive: {'; '.join(reasons)}."
    skipped = counts[Verdict.SKIPPED]
    excused = f", except in {counted(known, 'check')} known to fail{_hidden(report)}"
    rest = f"; {counted(skipped, 'check')} skipped" if skipped else ""
    return f"Every promise that was judged was kept{excused if known else ''}{rest}."


def _doubts(report: RunReport) -> list[str]:
    """Return what was not judged, except by a set-up error."""
    broken = report.counts()[Verdict.BROKEN]
    reasons = [f"{counted(broken, 'check')} BROKEN"] if broken else []
    if unexpected := len(report.unexpected_skips()):
        reasons.append(f"{counted(unexpected, 'check')} skipped without being allowed to")
    if report.is_cut_short and not report.setup_error:
        reasons.append(f"interrupted after {len(report.results)} of {report.expected} checks")
    if unconfirmed := report.unconfirmed():
        names = ", ".join(map(str, unconfirmed[:NAMES_MAX]))
        reasons.append(f"{counted(len(unconfirmed), 'known failure')} not judged ({names})")
    return reasons


def _hidden(report: RunReport) -> str:
    """Return how many checks could not be judged because of known failures."""
    hidden = sum(cause.hides for cause in report.causes() if cause.known)
    return f" ({counted(hidden, 'check')} could not be judged)" if hidden else ""


def _failed(report: RunReport, new: int, known: int) -> str:
    sentences = []
    if new:
        not_known = " not known to fail" if report.known_failing else ""
        sentences.append(f"A promise was broken in {counted(new, 'check')}{not_known}.")
    if passed := report.unexpected_passes():
        names = ", ".join(dict.fromkeys(each.name for each in passed[:NAMES_MAX]))
        sentences.append(
            f"{counted(len(passed), 'check')} passed, though known to fail ({names}): "
            f"remove {'it' if len(passed) == 1 else 'them'} from the file."
        )
    if known:
        sentences.append(f"Known failures: {known}{_hidden(report)}.")
    if doubts := _doubts(report):
        sentences.append(f"Not all was judged: {'; '.join(doubts)}.")
    if report.setup_error:
        sentences.append(f"A set-up error ended the run: {report.setup_error}")
    return " ".join(sentences)


def duration(seconds: float) -> str:
    """Return a duration for people: `0.4 s`, `42 s`, `3 min 07 s`, `1 h 02 min`."""
    if seconds < 10:  # noqa: PLR2004 - below this a tenth matters
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
