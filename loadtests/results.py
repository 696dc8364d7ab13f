"""The result of a run: one per load and the whole, written to `results.json` and read back."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from harness.record.results import EXIT_CODES, RESULTS_FILE
from harness.record.verdict import BrokenError, Finding, Verdict, merge
from harness.record.whole_file import write_whole
from harness.run.run_directory import RESULTS_FOLDER, environment
from loadtests.figures import FIGURES, Figures, grouped
from loadtests.judge import Strictness

FOLDER: Final = RESULTS_FOLDER / "load"
# The machine's limit that a server written with grpcio is compared with; the name of the share.
PLAIN: Final = "plain grpcio"
SHARE: Final = "share_of_plain_grpcio"
# The label of a load that was run on plain grpcio, after the same load on the server.
SERVER: Final = "server"


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One load that was run and judged.

    Attributes:
        name: the profile's.
        labels: the point: of a sweep the axis and its value, of a comparison the side and the pair.
        directory: of its records, below the run's.
        figures: empty if it could not be run.
        findings: everything that was judged.
        seconds: how long it took, preparations included.
        histogram: its latencies as an encoded HdrHistogram; empty if it has none.
        plain: figures of the same load on plain grpcio; empty if it was not run there.
    """

    name: str
    labels: Mapping[str, str]
    directory: str
    figures: Figures
    findings: tuple[Finding, ...]
    seconds: float
    histogram: str = ""
    plain: Figures = field(default_factory=Figures)

    @property
    def is_plain(self) -> bool:
        """Whether it was run on plain grpcio."""
        return is_plain(self.labels)

    @property
    def verdict(self) -> Verdict:
        """The heaviest of the findings'."""
        return merge(self.findings)

    @property
    def decisive(self) -> tuple[Finding, ...]:
        """The findings that explain the verdict; empty for a pass."""
        if self.verdict is Verdict.PASS:
            return ()
        return tuple(each for each in self.findings if each.verdict is self.verdict)

    @property
    def unpaced_mb_per_s(self) -> float | None:
        """Its rate, if only server and machine set it; None if a pace did."""
        rates = self.figures.rates
        return rates.mb_per_s if rates.asked_per_s is None else None

    def share(self, limits: Mapping[str, float]) -> float | None:
        """Return its rate as a share of plain grpcio's; None if that was not measured.

        Compared is the same load, or the rate of one stream if it was not run and no pace set the
        rate.
        """
        if self.plain.rates.mb_per_s:
            return (self.figures.rates.mb_per_s or 0.0) / self.plain.rates.mb_per_s
        plain, rate = limits.get(PLAIN, 0.0), self.unpaced_mb_per_s
        return rate / plain if plain > 0 and rate is not None and not self.is_plain else None

    def shares(self) -> dict[str, float]:
        """Return its figures as shares of plain grpcio's under the same load, by name."""
        plain = self.plain.by_name()
        return {
            name: value / plain[name]
            for name, value in self.figures.by_name().items()
            if plain.get(name, 0.0) > 0 and FIGURES[name].is_comparable
        }

    @property
    def title(self) -> str:
        """Its name and its point."""
        labels = dict(self.labels)
        if "axis" in labels:
            labels[labels.pop("axis")] = labels.pop("value")
        return " ".join([self.name, *(f"{key}={value}" for key, value in labels.items())])


def is_plain(labels: Mapping[str, str]) -> bool:
    """Return whether a load with these labels was run on plain grpcio."""
    return labels.get(SERVER) == PLAIN


def beside_plain(results: Sequence[LoadResult]) -> tuple[LoadResult, ...]:
    """Return results, each with the figures of plain grpcio that follow it."""
    after = [*results[1:], None]
    return tuple(
        replace(result, plain=next_.figures)
        if next_ is not None and next_.is_plain and not result.is_plain
        else result
        for result, next_ in zip(results, after, strict=True)
    )


@dataclass(frozen=True, slots=True)
class PairsEffect:
    """The effect that some pairs of a comparison show.

    Attributes:
        name: `A and A` or `A and B`.
        median_a, median_b: of the compared figure.
        pairs, ratio, low, high, confidence, p: see `statistics.Effect`.
        says: the effect in words.
    """

    name: str
    median_a: float
    median_b: float
    pairs: int
    ratio: float
    low: float
    high: float
    confidence: float
    p: float
    says: str


@dataclass(frozen=True, slots=True)
class PairRatio:
    """B / A of one pair; pairs are numbered from 0."""

    name: str
    pair: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        figure: its name.
        effects: of the control, and of the trial if it was run.
        ratios: of every pair.
        profile, seed, allowed, asked_pairs: the question; see `compare.Question`. Older runs lack
            it: their asked_pairs are 0.
    """

    figure: str
    profile: str = ""
    seed: str = ""
    allowed: float = 0.0
    asked_pairs: int = 0
    effects: tuple[PairsEffect, ...] = ()
    ratios: tuple[PairRatio, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A whole run.

    Attributes:
        kind: `run`, `sweep` or `compare`.
        about: what repeats it, in the order to print.
        limits: of this machine, in MB/s; empty if they were not measured.
        results: one per load.
        comparison: the result of `compare`; None otherwise.
        conclusions: findings about all loads together.
        strictness: how it was judged, for judging it again.
    """

    kind: str
    about: Mapping[str, str]
    limits: Mapping[str, float]
    results: tuple[LoadResult, ...]
    comparison: Comparison | None = None
    conclusions: tuple[Finding, ...] = ()
    strictness: Strictness = field(default_factory=Strictness)

    @property
    def verdict(self) -> Verdict:
        """The heaviest of all; BROKEN if nothing was judged.

        A comparison replaces disturbed pairs by others: only its conclusions and FAILs count.
        """
        findings = [each for result in self.results for each in result.findings]
        if self.kind == "compare":
            findings = [each for each in findings if each.verdict is Verdict.FAIL]
        return merge([*findings, *self.conclusions])

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 broken."""
        return EXIT_CODES[self.verdict]


def about(target: str) -> dict[str, str]:
    """Return what repeats a run, in the order to print."""
    started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return {"target": target, "started at": started_at, **environment("loadtests")}


def save_report(report: LoadReport, directory: Path) -> None:
    """Write `results.json`; the file is complete or absent."""
    values: dict[str, Any] = {"verdict": report.verdict, **msgspec.to_builtins(report)}
    for result, saved in zip(report.results, values["results"], strict=True):
        saved["figures"] = result.figures.by_name()
        saved["plain"] = result.plain.by_name()
        saved["shares"] = result.shares()
        saved[SHARE] = result.share(report.limits)
    write_whole(directory / RESULTS_FILE, json.dumps(values, indent=1) + "\n")


def load_report(directory: Path) -> LoadReport:
    """Read `results.json`.

    Raises:
        BrokenError: it does not exist, or is not a report.
    """
    try:
        values = json.loads((directory / RESULTS_FILE).read_text())
        # In the file figures have their names, and an older run without a comparison has {}.
        for result in values["results"]:
            result["figures"] = grouped(result["figures"])
            result["plain"] = grouped(result.get("plain", {}))
        values["comparison"] = values.get("comparison") or None
        return msgspec.convert(values, type=LoadReport)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenError(f"no results of a run in {directory}: {error}") from error
