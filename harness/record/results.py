"""What a run came to: a result a check, and the whole, written to `results.json` and read back."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import msgspec

from harness.record.verdict import BrokenError, Finding, Verdict
from harness.record.whole_file import write_whole

RESULTS_FILE: Final = "results.json"
EXIT_CODES: Final = {Verdict.PASS: 0, Verdict.SKIPPED: 0, Verdict.FAIL: 1, Verdict.BROKEN: 2}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check against one target.

    Attributes:
        target: the target's name.
        name: the check's, `area.what`.
        guarantee: the promise, as a sentence.
        verdict: the heaviest of the findings'.
        findings: everything that was judged.
        seconds: how long it took.
        cites: case numbers and requirement ids.
        rerun: a command that repeats just this.
        history: path of the records below the run's directory; empty when there are none.
    """

    target: str
    name: str
    guarantee: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    seconds: float
    cites: tuple[str, ...] = ()
    rerun: str = ""
    history: str = ""

    @property
    def area(self) -> str:
        """What it belongs to."""
        return self.name.partition(".")[0]

    @property
    def telling(self) -> tuple[Finding, ...]:
        """The findings that made the verdict what it is; none for a pass."""
        if self.verdict is Verdict.PASS:
            return ()
        return tuple(each for each in self.findings if each.verdict is self.verdict)


@dataclass(frozen=True, slots=True)
class RunReport:
    """A whole run.

    Attributes:
        about: what repeats it, in the order to print: seed, command, commit, kernel, ...
        started_at: ISO 8601, UTC.
        seconds: how long it took.
        results: one each.
        skips_allowed: patterns of `TARGET:NAME` that may be skipped; None allows every skip.
        expected: how many results there must be: a run that was cut short says nothing final.
    """

    about: Mapping[str, str]
    started_at: str
    seconds: float
    results: tuple[CheckResult, ...]
    skips_allowed: tuple[str, ...] | None = None
    expected: int = 0

    def unexpected_skips(self) -> list[CheckResult]:
        """Return what was skipped although it must not be."""
        if self.skips_allowed is None:
            return []
        return [
            result
            for result in self.results
            if result.verdict is Verdict.SKIPPED and not self._may_be_skipped(result)
        ]

    def _may_be_skipped(self, result: CheckResult) -> bool:
        name = f"{result.target}:{result.name}"
        return any(fnmatchcase(name, pattern) for pattern in self.skips_allowed or ())

    def counts(self) -> Counter[Verdict]:
        """Return how many results have each verdict."""
        return Counter(result.verdict for result in self.results)

    @property
    def is_cut_short(self) -> bool:
        """Whether it ended before its last check."""
        return len(self.results) < self.expected

    @property
    def verdict(self) -> Verdict:
        """FAIL if a promise was broken; BROKEN if something could not be said, or nothing was."""
        counts = self.counts()
        if counts[Verdict.FAIL]:
            return Verdict.FAIL
        if self.is_cut_short or self.unexpected_skips():
            return Verdict.BROKEN
        if counts[Verdict.BROKEN] or not counts[Verdict.PASS]:
            return Verdict.BROKEN
        return Verdict.PASS

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 broken."""
        return EXIT_CODES[self.verdict]


def save_report(report: RunReport, directory: Path) -> None:
    """Write `results.json`; it is complete or not there."""
    values = {**msgspec.to_builtins(report), "verdict": report.verdict}
    write_whole(directory / RESULTS_FILE, json.dumps(values, indent=1) + "\n")


def load_report(directory: Path) -> RunReport:
    """Read `results.json`.

    Raises:
        BrokenError: it does not exist, or is not a report.
    """
    try:
        # Its verdict is for other readers: ours follows from the results.
        return msgspec.convert(json.loads((directory / RESULTS_FILE).read_text()), type=RunReport)
    except (OSError, ValueError) as error:
        raise BrokenError(f"no results of a run in {directory}: {error}") from error
