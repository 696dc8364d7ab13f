"""Verdicts and findings, and the exceptions that decide a verdict.

A check's verdict follows from its findings. A check without findings is BROKEN, never PASS.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

DEADLINE_FACTOR: Final = 20.0


class Verdict(StrEnum):
    """The result of a check, as in LTP's TPASS, TCONF, TFAIL and TBROK.

    Attributes:
        PASS: the server kept every promise that the check judged.
        SKIPPED: the target lacks a feature or privilege that the check needs, or another check
            FAILed for a promise that this one relies on.
        FAIL: the server broke a promise.
        BROKEN: inconclusive: the harness, its virtual machine or the host failed.
    """

    PASS = "PASS"  # noqa: S105 - no password
    SKIPPED = "SKIPPED"
    FAIL = "FAIL"
    BROKEN = "BROKEN"


# In ascending order. Judging makes a FAIL that depends on an unmet assumption BROKEN (see
# `judging.judge_check`), so a FAIL that is left outweighs BROKEN.
_WEIGHT: Final = (Verdict.PASS, Verdict.SKIPPED, Verdict.BROKEN, Verdict.FAIL)


@dataclass(frozen=True, slots=True)
class Duration:
    """How long something took, and the bound that was promised."""

    took_s: float
    bound_s: float

    @classmethod
    def past_deadline(cls, took_s: float) -> Self:
        """Return the duration of what did not happen in the time that the harness waited for it.

        It waits for at least DEADLINE_FACTOR times what a quiet machine needs, so only a machine
        that is slower than that, or stalls, explains it.
        """
        return cls(took_s, took_s / DEADLINE_FACTOR)


@dataclass(frozen=True, slots=True)
class Finding:
    """One judged promise: its verdict, and the observed and the expected value.

    `because` names the check whose FAIL is the reason for a promise that could not be judged.
    `repeats` is the promise of another check that this one repeats, `rests_on` are those without
    which this finding, but not the rest of its check, says nothing; see `foundations`.
    `duration` is given where the machine's speed may be to blame; see `machine_load`.
    """

    verdict: Verdict
    promise: str
    got: str = ""
    want: str = ""
    tolerance: str = ""
    because: str = ""
    repeats: str = ""
    rests_on: tuple[str, ...] = ()
    duration: Duration | None = None

    def sentence(self) -> str:
        """Return the finding as one line."""
        parts = [self.promise]
        parts += [f"got {self.got}"] if self.got else []
        parts += [f"want {self.want}"] if self.want else []
        parts += [f"tolerance {self.tolerance}"] if self.tolerance else []
        return "; ".join(parts)


def merge(findings: Iterable[Finding]) -> Verdict:
    """Return the heaviest verdict of the findings; BROKEN without any finding."""
    verdicts = {finding.verdict for finding in findings}
    return max(verdicts, key=_WEIGHT.index, default=Verdict.BROKEN)


class BrokenError(Exception):
    """The harness, its virtual machine or this host failed: inconclusive about the server."""


class UnmetError(Exception):
    """The server broke a promise that the rest of the check depends on; the check ends as FAIL."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.sentence())
        self.finding = finding


class UnsupportedError(Exception):
    """The target lacks something that the check needs, named in the text: SKIPPED."""
