"""Compares what was recorded with what was promised: each comparison is one finding."""

import dataclasses
from collections.abc import Collection

from harness.record.history import Call, Outcome
from harness.record.verdict import Duration, Finding, Verdict

_SHOWN_CHARACTERS = 300


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else repr(value)
    if len(text) > _SHOWN_CHARACTERS:
        return f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"
    return text or "''"


def holds(promise: str, *, kept: bool, got: object, want: object, tolerance: str = "") -> Finding:
    """Return PASS if a promise was kept, otherwise FAIL."""
    verdict = Verdict.PASS if kept else Verdict.FAIL
    return Finding(verdict, promise, _text(got), _text(want), tolerance)


def equal(promise: str, got: object, want: object) -> Finding:
    """Promise one exact value."""
    return holds(promise, kept=got == want, got=got, want=want)


def one_of(promise: str, got: object, allowed: Collection[object]) -> Finding:
    """Promise one of several values."""
    names = " or ".join(sorted(map(str, allowed)))
    return holds(promise, kept=got in allowed, got=got, want=names)


def within(promise: str, got: float, want: float, share: float, why: str) -> Finding:
    """Promise a value, with a tolerance of a share of it; `why` gives the tolerance's reason."""
    kept = abs(got - want) <= share * want
    return holds(promise, kept=kept, got=got, want=want, tolerance=f"±{share:.0%}: {why}")


def at_most(promise: str, got: float, limit: float, why: str = "") -> Finding:
    """Promise an upper bound."""
    return holds(promise, kept=got <= limit, got=got, want=f"<= {limit:g}", tolerance=why)


def at_least(promise: str, got: float, limit: float, why: str = "") -> Finding:
    """Promise a lower bound."""
    return holds(promise, kept=got >= limit, got=got, want=f">= {limit:g}", tolerance=why)


def repeating(finding: Finding, promise: str) -> Finding:
    """Return a finding of what is another check's promise; see `foundations`."""
    return dataclasses.replace(finding, repeats=promise)


def resting_on(finding: Finding, *promises: str) -> Finding:
    """Return a finding that says nothing where one of these promises of other checks is broken.

    The check's other findings are judged all the same; see `foundations`.
    """
    return dataclasses.replace(finding, rests_on=promises)


def timed(finding: Finding, took_s: float, bound_s: float) -> Finding:
    """Return a finding whose FAIL is inconclusive where a busy machine explains the time it took.

    For a promise that is not an upper bound, but that only a machine with time to spare keeps.
    """
    return dataclasses.replace(finding, duration=Duration(took_s, bound_s))


def timed_out(finding: Finding, waited_s: float) -> Finding:
    """Return a finding whose FAIL is that something did not happen in the time that was waited.

    Only a machine that is as slow as a deadline is long explains it; see `Duration.past_deadline`.
    """
    return dataclasses.replace(finding, duration=Duration.past_deadline(waited_s))


def at_most_s(promise: str, took_s: float, bound_s: float, why: str = "") -> Finding:
    """Promise an upper bound of a time, in seconds; on a busy machine more is inconclusive."""
    return timed(at_most(promise, took_s, bound_s, why), took_s, bound_s)


def in_time(
    promise: str, took_s: float | None, bound_s: float, why: str = "", *, never: str = "never"
) -> Finding:
    """Promise that something happens within a bound, in seconds; see `at_most_s`.

    Args:
        promise: the promise.
        took_s: when it happened; None: not within the time that the run waited.
        bound_s: the bound; the run waited at least as long.
        why: the reason for the bound's tolerance.
        never: what a finding shows instead of None.
    """
    kept = took_s is not None and took_s <= bound_s
    got = never if took_s is None else took_s
    finding = holds(
        f"{promise} (seconds)", kept=kept, got=got, want=f"within {bound_s:g}", tolerance=why
    )
    return timed_out(finding, bound_s) if took_s is None else timed(finding, took_s, bound_s)


def floor(what: str, got: float, least: float) -> Finding:
    """Require that the harness made enough load; with less the check is inconclusive: BROKEN."""
    verdict = Verdict.PASS if got >= least else Verdict.BROKEN
    return Finding(verdict, f"load floor: {what}", _text(got), f">= {least:g}")


def assumed(what: str, *, true: bool, got: object, want: object = "") -> Finding:
    """Require something of the set-up; if it is untrue the check is inconclusive: BROKEN."""
    verdict = Verdict.PASS if true else Verdict.BROKEN
    return Finding(verdict, f"assumption: {what}", _text(got), _text(want) if want else "")


def unseen(promise: str, why: str) -> Finding:
    """Report that one promise was not judged, in a check whose other promises were."""
    return Finding(
        Verdict.SKIPPED, f"{promise}: not judged, because {why}; the other promises were"
    )


def answered(promise: str, call: Call, *codes: str) -> Finding:
    """Promise that a call ends with one of these statuses (by default OK)."""
    wanted = codes or ("OK",)
    got = f"{call.code}: {call.detail}" if call.detail else call.code
    finding = holds(promise, kept=call.code in wanted, got=got, want=" or ".join(wanted))
    if call.outcome is not Outcome.UNKNOWN or call.code in wanted:
        return finding
    took_s = call.ended_s - call.started_s
    got = f"no answer in {took_s:.1f} s"
    return timed_out(dataclasses.replace(finding, got=got), took_s)
