"""What an assumption that is not met makes inconclusive: the findings after it, in its scope.

The scope is the judge, or one of the groups of `separately`.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from harness.record.verdict import Finding, Verdict


def inconclusive(finding: Finding, why: str) -> Finding:
    """Return a FAIL as BROKEN, with the reason."""
    return dataclasses.replace(
        finding, verdict=Verdict.BROKEN, promise=f"{finding.promise}: inconclusive, since {why}"
    )


def distrusted(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Make what follows an assumption that is not met inconclusive.

    Judges yield what they assume first, but last what a fault of the server may leave unmet: a
    promise before it does not need it, and stays a FAIL.
    """
    unmet = ""
    for each in findings:
        if unmet and each.verdict is Verdict.FAIL:
            yield inconclusive(each, unmet)
            continue
        yield each
        if each.verdict is Verdict.BROKEN and not unmet:
            unmet = each.sentence()


def separately(groups: Iterable[Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of groups that do not depend on each other.

    An assumption of one group excuses no FAIL of another: what is BROKEN comes last.
    """
    broken = []
    for group in groups:
        for each in distrusted(group):
            if each.verdict is Verdict.BROKEN:
                broken.append(each)
            else:
                yield each
    yield from broken
