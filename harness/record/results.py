"""A run's results, one per check and target, written to `results.json` and read back."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from harness.record.foundations import rank
from harness.record.typed_json import from_values, to_values
from harness.record.verdict import BrokenError, Finding, Verdict
from harness.record.whole_file import write_whole

RESULTS_FILE: Final = "results.json"
EXIT_CODES: Final = {Verdict.PASS: 0, Verdict.SKIPPED: 0, Verdict.FAIL: 1, Verdict.BROKEN: 2}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check against one target.

    Attributes:
        target: the target's name.
        name: the check's name, `area.what`.
        guarantee: the promise, as a sentence.
        verdict: the heaviest verdict of the findings.
        findings: all findings.
        seconds: the duration.
        cites: case numbers and requirement ids.
        rerun: the command that repeats only this check.
        history: path of the records, relative to the run directory; empty without records.
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
        """The first part of the check's name."""
        return self.name.partition(".")[0]

    @property
    def because(self) -> str:
        """The check whose FAIL is the reason why this one could not be judged; empty: none."""
        if self.verdict is not Verdict.SKIPPED:
            return ""
        return next((finding.because for finding in self.findings if finding.because), "")

    @property
    def decisive(self) -> tuple[Finding, ...]:
        """The findings that decided the verdict; none if it is PASS."""
        if self.verdict is Verdict.PASS:
            return ()
        return tuple(each for each in self.findings if each.verdict is self.verdict)


@dataclass(frozen=True, slots=True)
class Cause:
    """A failed or broken result, and how many checks could not be judged because of it."""

    result: CheckResult
    hides: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """A whole run.

    Attributes:
        about: what is needed to repeat it, in printing order: seed, command, commit, kernel, ...
        started_at: ISO 8601, UTC.
        seconds: the duration.
        results: one per check and target.
        skips_allowed: globs; skips that match TARGET:CHECK are allowed. None allows every skip.
        expected: the number of results of a complete run; with fewer the run is inconclusive.
        setup_error: why a target could not be judged, and what to change; empty if all could.
    """

    about: Mapping[str, str]
    started_at: str
    seconds: float
    results: tuple[CheckResult, ...]
    skips_allowed: tuple[str, ...] | None = None
    expected: int = 0
    setup_error: str = ""

    def unexpected_skips(self) -> list[CheckResult]:
        """Return the skipped results that neither a pattern nor another check's FAIL allows."""
        return [
            result
            for result in self.results
            if result.verdict is Verdict.SKIPPED and not self._is_skip_allowed(result)
        ]

    def _is_skip_allowed(self, result: CheckResult) -> bool:
        if result.because:
            cause = (result.target, result.because, Verdict.FAIL)
            return any((each.target, each.name, each.verdict) == cause for each in self.results)
        if self.skips_allowed is None:
            return True
        name = f"{result.target}:{result.name}"
        return any(fnmatchcase(name, pattern) for pattern in self.skips_allowed)

    def causes(self) -> list["Cause"]:
        """Return the failed and broken results, the most fundamental FAIL first, BROKEN last."""
        hidden = Counter((each.target, each.because) for each in self.results)
        bad = [each for each in self.results if each.verdict in {Verdict.FAIL, Verdict.BROKEN}]
        bad.sort(key=lambda each: (each.verdict is Verdict.BROKEN, rank(each.name)))
        return [Cause(each, hidden[each.target, each.name]) for each in bad]

    def counts(self) -> Counter[Verdict]:
        """Return the number of results by verdict."""
        return Counter(result.verdict for result in self.results)

    @property
    def is_cut_short(self) -> bool:
        """Whether it ended before its last check."""
        return len(self.results) < self.expected

    @property
    def verdict(self) -> Verdict:
        """FAIL if any check failed; BROKEN if inconclusive, or if no check passed; else PASS."""
        counts = self.counts()
        if counts[Verdict.FAIL]:
            return Verdict.FAIL
        if self.setup_error or self.is_cut_short or self.unexpected_skips():
            return Verdict.BROKEN
        if counts[Verdict.BROKEN] or not counts[Verdict.PASS]:
            return Verdict.BROKEN
        return Verdict.PASS

    @property
    def exit_code(self) -> int:
        """0 if PASS, 1 if FAIL, 2 if BROKEN."""
        return EXIT_CODES[self.verdict]


def save_report(report: RunReport, directory: Path) -> None:
    """Write `results.json`; it is complete or does not exist."""
    causes = [
        {"target": result.target, "name": result.name, "verdict": result.verdict,
         "finding": result.decisive[0].sentence() if result.decisive else "", "hides": cause.hides}
        for cause in report.causes()
        for result in (cause.result,)
    ]  # fmt: skip
    values = {"verdict": report.verdict, "causes": causes, **to_values(report)}
    write_whole(directory / RESULTS_FILE, json.dumps(values, indent=1) + "\n")


def load_report(directory: Path) -> RunReport:
    """Read `results.json`.

    Raises:
        BrokenError: it is missing, or is not a report.
    """
    try:
        values = json.loads((directory / RESULTS_FILE).read_text())
        # These are for other programs; `RunReport` computes them from the results.
        del values["verdict"], values["causes"]
        return from_values(values, RunReport)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"no results of a run in {directory}: {error}") from error
