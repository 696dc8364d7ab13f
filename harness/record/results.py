"""A run's results, one per check and target, written to `results.json` and read back."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from harness.record.foundations import SURVIVES, rank
from harness.record.known_failing import KnownFailure, entries_text, new_entry
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

    @property
    def death(self) -> Finding | None:
        """The finding that the server did not survive the check; None if it did."""
        deaths = (each for each in self.decisive if each.promise == SURVIVES)
        return next(deaths, None) if self.verdict is Verdict.FAIL else None

    def listed_by(self, known: Sequence[KnownFailure]) -> KnownFailure | None:
        """Return the entry that lists it; one excuses the server's death only if it says so."""
        entries = (each for each in known if each.matches(self.target, self.name))
        return next(
            (each for each in entries if self.death is None or SURVIVES in each.reason), None
        )


@dataclass(frozen=True, slots=True)
class Cause:
    """A failed or broken result.

    Attributes:
        result: the result.
        hides: the number of checks that could not be judged because of it.
        known: why it is known to fail; empty if it is not.
    """

    result: CheckResult
    hides: int
    known: str = ""


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long a step of a run took, of `make verify` or all checks of one target.

    Attributes:
        name: the step's.
        seconds: from its start to its end.
        budget_s: how long it is to take on two quiet cores; more is a warning. 0: as long as it
            does.
    """

    name: str
    seconds: float
    budget_s: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether it took longer than its budget."""
        return 0 < self.budget_s < self.seconds


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
        known_failing: the checks that are known to fail.
        steps: how long each part took, in the order of their ends; steps may overlap.
    """

    about: Mapping[str, str]
    started_at: str
    seconds: float
    results: tuple[CheckResult, ...]
    skips_allowed: tuple[str, ...] | None = None
    expected: int = 0
    setup_error: str = ""
    known_failing: tuple[KnownFailure, ...] = ()
    steps: tuple[StepTime, ...] = ()

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
        """Return the failed and broken results: the most fundamental FAIL first, then BROKEN.

        Those that are known to fail are last.
        """
        hidden = Counter((each.target, each.because) for each in self.results)
        causes = [
            Cause(each, hidden[each.target, each.name], self._known(each))
            for each in self.results
            if each.verdict in {Verdict.FAIL, Verdict.BROKEN}
        ]
        causes.sort(key=lambda cause: (
            bool(cause.known), cause.result.verdict is Verdict.BROKEN, rank(cause.result.name)
        ))  # fmt: skip
        return causes

    def _known(self, result: CheckResult) -> str:
        return self.known_reason(result) if result.verdict is Verdict.FAIL else ""

    def known_reason(self, result: CheckResult) -> str:
        """Return why a result is listed as known to fail; empty if it is not listed."""
        entry = result.listed_by(self.known_failing)
        return "" if entry is None else entry.reason

    def known_failures(self) -> list[CheckResult]:
        """Return the failed results that are known to fail."""
        return [each for each in self.results if self._known(each)]

    def unexpected_passes(self) -> list[CheckResult]:
        """Return the passed results that are listed as known to fail."""
        return [
            each
            for each in self.results
            if each.verdict is Verdict.PASS and self.known_reason(each)
        ]

    def unconfirmed(self) -> list[KnownFailure]:
        """Return the listed checks that neither failed nor passed, and that no FAIL hides."""
        return [
            entry
            for entry in self.known_failing
            if not any(
                entry.matches(each.target, each.name)
                and (each.verdict in {Verdict.FAIL, Verdict.PASS} or each.because)
                for each in self.results
            )
        ]

    def counts(self) -> Counter[Verdict]:
        """Return the number of results by verdict."""
        return Counter(result.verdict for result in self.results)

    @property
    def is_cut_short(self) -> bool:
        """Whether it ended before its last check."""
        return len(self.results) < self.expected

    @property
    def verdict(self) -> Verdict:
        """FAIL if any check failed; BROKEN if inconclusive, or if no check passed; else PASS.

        A failure that is known does not count, but a listed check that passed counts as a failure,
        and one that was not judged as inconclusive.
        """
        counts = self.counts()
        if counts[Verdict.FAIL] > len(self.known_failures()) or self.unexpected_passes():
            return Verdict.FAIL
        if self.setup_error or self.is_cut_short or self.unexpected_skips() or self.unconfirmed():
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
         "finding": result.decisive[0].sentence() if result.decisive else "", "hides": cause.hides,
         "known": cause.known}
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
        values.setdefault("steps", [])  # of a run that was saved before they were measured
        return from_values(values, RunReport)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenError(f"no results of a run in {directory}: {error}") from error


def save_known_failing(report: RunReport, path: Path) -> int:
    """Write a file of known failures from a run: its failures, and entries that did not pass.

    Entries that the run could not judge are kept. Returns the number of entries.

    Raises:
        BrokenError: the file cannot be written, or exists: it may have reasons that people wrote.
    """
    passed = report.unexpected_passes()
    new = [
        cause.result
        for cause in report.causes()
        if cause.result.verdict is Verdict.FAIL and not cause.known
    ]
    entries = [
        _with_death(entry, new)
        for entry in report.known_failing
        if not any(entry.matches(each.target, each.name) for each in passed)
        or any(entry.matches(each.target, each.name) for each in report.known_failures())
    ]
    only_target = len({result.target for result in report.results}) == 1
    for result in new:
        if result.listed_by(entries) is None:
            finding = result.death or next(iter(result.decisive), None)
            entries.append(new_entry(result.target, result.name, finding, only_target=only_target))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(entries_text(entries))
    except OSError as error:
        raise BrokenError(f"{path}: {error.strerror}; choose another file") from error
    return len(entries)


def _with_death(entry: KnownFailure, failed: Sequence[CheckResult]) -> KnownFailure:
    """Return an entry that also excuses the server's death, if it died in the check listed."""
    died = (each for each in failed if entry.matches(each.target, each.name) and each.death)
    if next(died, None) is None:
        return entry
    return replace(entry, reason=f"{entry.reason}; {SURVIVES}")
