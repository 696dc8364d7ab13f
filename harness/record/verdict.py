"""The four verdicts, what a finding says, and the one exception that stands for a fault of our own.

A verdict is never computed from nothing: a check that judged no promise is BROKEN.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """What a check may say."""

    PASS = "PASS"  # noqa: S105 - no password
    SKIPPED = "SKIPPED"
    FAIL = "FAIL"
    BROKEN = "BROKEN"


# Least weight first. A broken promise that was seen stays one, whatever else went wrong around it.
_WEIGHT: Final = (Verdict.PASS, Verdict.SKIPPED, Verdict.BROKEN, Verdict.FAIL)


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise, judged: what was promised, what was seen, what was expected."""

    verdict: Verdict
    promise: str
    got: str = ""
    want: str = ""
    tolerance: str = ""

    def sentence(self) -> str:
        """Return it as one line."""
        parts = [self.promise]
        parts += [f"got {self.got}"] if self.got else []
        parts += [f"want {self.want}"] if self.want else []
        parts += [f"tolerance {self.tolerance}"] if self.tolerance else []
        return "; ".join(parts)


def merge(findings: Iterable[Finding]) -> Verdict:
    """Return the heaviest verdict; no finding at all is BROKEN."""
    verdicts = {finding.verdict for finding in findings}
    return max(verdicts, key=_WEIGHT.index, default=Verdict.BROKEN)


class BrokenError(Exception):
    """The harness, its virtual machine or this host failed: nothing can be said of the server."""


class UnmetError(Exception):
    """The server broke a promise on the way to what a check is about, which cannot go on."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.sentence())
        self.finding = finding


class UnsupportedError(Exception):
    """The target lacks something that a check needs; the text says what."""
