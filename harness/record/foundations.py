"""The promises that most checks rely on, and one finding for one cause.

Jobs start, their output is exact, a stream ends with its job, and so on: each such promise is owned
by one check; the owners run first. While that check FAILs for this promise, the other checks report
their own promises only: what they found by relying on the broken one is left out, and a check that
has nothing else to report could not be judged. If the owner passes or was not run, every
FAIL is reported where it was found.

Two kinds of promise are narrower. What repeats another check's promise, as an independent probe
does, is left out while that check FAILs for it. And a field of a query that is reported wrongly is
compared by its owner alone.

A check may say that only some of its findings rest on a promise: then the others are reported
whether it is broken or not.

What it leaves out: a second fault that shows only in a check that relied on a broken promise is
seen once the first is mended.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from harness.record.history import Call, History, Interruption, Outcome, Stream
from harness.record.verdict import Finding, Verdict

# Shared by the owners' judges and by the client, which interrupts a check that relied on it.
STARTS: Final = "a job starts"
ANSWERS: Final = "a running job is reported as running"
EXACT: Final = "every byte is the one that the job wrote"
COMPLETE: Final = "a stream that ends has all of the output"
ENDS: Final = "a stream ends with its job"
OUTPUT: Final = (EXACT, COMPLETE, ENDS)
STOPS: Final = "a running job stops"
WHOLE: Final = "a stream has all and ends when its job has ended"
EXIT_CODE: Final = "an exit code is reported exactly, as status exited and without a signal"
OLD_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2")
# No broken promise explains that a server ended: it is reported where it is seen.
SURVIVES: Final = "the server survives the check"
_LITTLE_BYTES: Final = 64 * 1024
# A stop that ends with one of these was never begun, so that nothing relies on it.
_REFUSALS: Final = frozenset(
    {
        "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Foundation:
    """A promise that many checks rely on.

    Attributes:
        promise: of the owner's finding.
        owner: the name of the check that reports it.
        relied_on: whether what a check recorded depends on it.
        field: of a query that no other check compares while the promise is broken.
    """

    promise: str
    owner: str
    relied_on: Callable[[History], bool]
    field: str = ""


def version_refused(version: str) -> str:
    """Return the promise that a server refuses an old version of TLS."""
    return f"{version} is refused"


def _calls(history: History, rpc: str) -> list[Call]:
    return [call for call in history.calls() if call.rpc == rpc]


def _start_failed(history: History) -> bool:
    return any(call.code not in {"OK", *_REFUSALS} for call in _calls(history, "StartJob"))


def _queried(history: History) -> bool:
    return bool(_calls(history, "QueryJob"))


def _read(history: History) -> bool:
    return any(each.text or each.wrong_at is not None for each in history.streams())


def _read_much(history: History) -> bool:
    """Of little output, nothing is left when the job ends: nothing of it can be lost."""
    return any(each.received_bytes > _LITTLE_BYTES for each in history.streams())


def _waited_for_an_end(history: History) -> bool:
    """A stream that reached its deadline, or that the reader cancelled to end the wait.

    Or a check that was given up, since it waited for many.
    """
    given_up = [each.finding for each in history.all(Interruption) if each.finding is not None]
    return any(each.promise == ENDS for each in given_up) or any(
        timed_out(each) or (each.outcome is Outcome.ERROR and each.code == "CANCELLED")
        for each in history.streams()
    )


def timed_out(stream: Stream) -> bool:
    """Return whether a stream had no end in the time that its reader waited for one."""
    return stream.unended or stream.outcome is Outcome.UNKNOWN


def _stopped(history: History) -> bool:
    return any(call.code not in _REFUSALS for call in _calls(history, "StopJob"))


def _by_no_check(_: History) -> bool:
    """Findings name the promise that they repeat; a field is not compared."""
    return False


# The most fundamental first.
FOUNDATIONS: Final = (
    Foundation(STARTS, "lifecycle.ids", _start_failed),
    Foundation(EXACT, "streams.writes", _read),
    Foundation(COMPLETE, "streams.writes", _read_much),
    Foundation(ENDS, "streams.end", _waited_for_an_end),
    Foundation(ANSWERS, "lifecycle.stop-twice", _queried),
    Foundation(STOPS, "lifecycle.stop-twice", _stopped),
    Foundation(WHOLE, "streams.end", _by_no_check),
    Foundation(EXIT_CODE, "lifecycle.exit-codes", _by_no_check, field="exit_code"),
    *(
        Foundation(version_refused(version), "identity.versions", _by_no_check)
        for version in OLD_VERSIONS
    ),
)
OWNERS: Final = tuple(dict.fromkeys(each.owner for each in FOUNDATIONS))


def rank(name: str) -> int:
    """Return the rank of a check: the owners of foundations first, in their order."""
    return OWNERS.index(name) if name in OWNERS else len(OWNERS)


def broken_by(name: str, findings: Collection[Finding]) -> tuple[Foundation, ...]:
    """Return the foundations that the findings of their owner show to be broken."""
    failed = {finding.promise for finding in findings if finding.verdict is Verdict.FAIL}
    return tuple(each for each in FOUNDATIONS if each.owner == name and each.promise in failed)


def attributed(
    name: str, findings: Sequence[Finding], history: History, broken: Sequence[Foundation]
) -> tuple[Finding, ...]:
    """Return a check's findings without those that a broken foundation explains.

    Args:
        name: the check's.
        findings: all that its judge returned.
        history: what it recorded.
        broken: the foundations that are broken, of all owners of the same target.
    """
    own = {SURVIVES, *(each.promise for each in FOUNDATIONS if each.owner == name)}
    elsewhere = {each.promise: each.owner for each in broken if each.owner != name}
    bad = [each for each in findings if each.verdict in {Verdict.FAIL, Verdict.BROKEN}]
    repeated = [each for each in bad if each.repeats in elsewhere]
    if repeated and len(repeated) == len(findings):
        return (_unjudged(elsewhere[repeated[0].repeats]),)
    findings = [each for each in findings if each not in repeated]
    named = {promise for each in findings for promise in each.rests_on}
    bad = [each for each in bad if each.promise not in own and each not in repeated]

    def explains(cause: Foundation, finding: Finding) -> bool:
        promise = cause.promise
        return promise not in named or promise in {finding.promise, *finding.rests_on}

    causes = [
        each
        for each in broken
        if each.owner != name and (each.promise in named or each.relied_on(history))
    ]
    causes = [cause for cause in causes if any(explains(cause, each) for each in bad)]
    bad = [each for each in bad if any(explains(cause, each) for cause in causes)]
    if not bad:
        return tuple(findings)
    judged = [each for each in findings if each not in bad]
    promises = {each.promise for each in causes}
    if judged and all(each.promise in promises for each in bad):
        return tuple(judged)  # its own promises are kept, and the owner reports the others
    return (*judged, _unjudged(causes[0].owner))


def _unjudged(owner: str) -> Finding:
    return Finding(Verdict.SKIPPED, f"could not be judged because of {owner}", because=owner)
