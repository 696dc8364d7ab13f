"""What a run came to: a result a load, and the whole, written to `results.json` and read back."""

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.record.results import EXIT_CODES
from harness.record.verdict import BrokenError, Finding, Verdict, merge
from harness.run.run_directory import environment
from loadtests.judge import Strictness

RESULTS_FILE: Final = "results.json"
FOLDER: Final = Path("results") / "load"
RATE: Final = "rate_mb_per_s"
# The limit that a server written with grpcio is compared with, and the name of a share of it.
PLAIN: Final = "plain grpcio"
SHARE: Final = "share_of_plain_grpcio"


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One load that was run and judged.

    Attributes:
        name: the profile's.
        labels: what was set for this load: of a sweep the axis and its value, of a comparison the
            side and the pair.
        directory: of its records, below the run's.
        figures: by their names in `metrics.FIGURES`.
        findings: everything that was judged.
        seconds: how long it took, with all that was prepared.
        histogram: its latencies as an encoded HdrHistogram; empty when it has none.
    """

    name: str
    labels: Mapping[str, str]
    directory: str
    figures: Mapping[str, float]
    findings: tuple[Finding, ...]
    seconds: float
    histogram: str = ""

    @property
    def verdict(self) -> Verdict:
        """The heaviest of the findings'."""
        return merge(self.findings)

    @property
    def telling(self) -> tuple[Finding, ...]:
        """The findings that made the verdict what it is; none for a pass."""
        if self.verdict is Verdict.PASS:
            return ()
        return tuple(each for each in self.findings if each.verdict is self.verdict)

    @property
    def is_unpaced(self) -> bool:
        """Whether nothing but server and machine set the rate."""
        return RATE in self.figures and "asked_per_s" not in self.figures

    def share(self, limits: Mapping[str, float]) -> float | None:
        """Return what its rate is of plain grpcio's; None where that says nothing."""
        plain = limits.get(PLAIN, 0.0)
        return self.figures[RATE] / plain if plain > 0 and self.is_unpaced else None

    @property
    def title(self) -> str:
        """Its name, and what was set."""
        labels = dict(self.labels)
        if "axis" in labels:
            labels[labels.pop("axis")] = labels.pop("value")
        return " ".join([self.name, *(f"{key}={value}" for key, value in labels.items())])


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A whole run.

    Attributes:
        kind: `run`, `sweep` or `compare`.
        about: what repeats it, in the order to print.
        limits: of this machine, in MB/s; empty when they were not measured.
        results: a load each.
        comparison: what `compare` found; empty otherwise.
        conclusions: findings about all loads together.
        strictness: how it was judged, so that it is judged so again.
    """

    kind: str
    about: Mapping[str, str]
    limits: Mapping[str, float]
    results: tuple[LoadResult, ...]
    comparison: Mapping[str, Any] = field(default_factory=dict)
    conclusions: tuple[Finding, ...] = ()
    strictness: Strictness = field(default_factory=Strictness)

    @property
    def verdict(self) -> Verdict:
        """The heaviest of all; BROKEN when there is nothing.

        A comparison leaves out disturbed pairs and runs others: what it says is its conclusions.
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
    """Write `results.json`; it is complete or not there."""
    half = directory / f"{RESULTS_FILE}.half"
    values: dict[str, Any] = {"verdict": report.verdict, **dataclasses.asdict(report)}
    for result, saved in zip(report.results, values["results"], strict=True):
        saved[SHARE] = result.share(report.limits)
    half.write_text(json.dumps(values, indent=1) + "\n")
    half.rename(directory / RESULTS_FILE)


def load_report(directory: Path) -> LoadReport:
    """Read `results.json`.

    Raises:
        BrokenError: it is not there, or no report.
    """
    try:
        values = json.loads((directory / RESULTS_FILE).read_text())
        del values["verdict"]  # it follows from the rest
        results = tuple(
            LoadResult(**{
                **{name: value for name, value in each.items() if name != SHARE},  # it follows too
                "findings": _findings(each["findings"]),
            })
            for each in values.pop("results")
        )  # fmt: skip
        return LoadReport(**{
            **values,
            "results": results,
            "conclusions": _findings(values["conclusions"]),
            "strictness": Strictness(**values.get("strictness", {})),  # older runs have none
        })  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"no results of a run in {directory}: {error}") from error


def _findings(values: list[dict[str, Any]]) -> tuple[Finding, ...]:
    return tuple(Finding(**{**each, "verdict": Verdict(each["verdict"])}) for each in values)
