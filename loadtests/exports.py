"""A run for other programs: CSV, and Prometheus's text format.

Each Prometheus series is unique: loads with the same profile and labels get a label `repeat`.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from loadtests.figures import FIGURES
from loadtests.results import SHARE, LoadReport, LoadResult

CSV_FILE: Final = "results.csv"
PROMETHEUS_FILE: Final = "results.prom"


def write_csv(report: LoadReport, directory: Path) -> None:
    """Write a row per load; a figure that the load lacks is empty."""
    labels = sorted({key for result in report.results for key in result.labels})
    with (directory / CSV_FILE).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["profile", *labels, "verdict", "seconds", *FIGURES, SHARE])
        for result in report.results:
            writer.writerow(
                [
                    result.name,
                    *(result.labels.get(key, "") for key in labels),
                    result.verdict,
                    f"{result.seconds:.3f}",
                    *("" if value is None else value for value in _values(result)),
                    result.share(report.limits) or "",
                ]
            )


def write_prometheus(report: LoadReport, directory: Path) -> None:
    """Write gauges, for node_exporter's textfile collector or a push gateway."""
    (directory / PROMETHEUS_FILE).write_text(prometheus(report))


def prometheus(report: LoadReport) -> str:
    """Return a run as gauges `jobworker_load_...`."""
    lines = [
        "# HELP jobworker_load_passed 1 if the load was reached and the server kept its limits",
        "# TYPE jobworker_load_passed gauge",
    ]
    loads = list(zip(report.results, _series(report.results), strict=True))
    for result, labels in loads:
        lines.append(f"jobworker_load_passed{labels} {int(result.verdict == 'PASS')}")
    for name, figure in FIGURES.items():
        lines += _gauge(
            name, figure.about, [(labels, figure.of(each.figures)) for each, labels in loads]
        )
    lines += _shares(loads)
    lines += _gauge(
        SHARE,
        "rate, as a share of plain grpcio's under the same load, or to one reader if not measured",
        [(labels, each.share(report.limits)) for each, labels in loads],
    )  # fmt: skip
    if report.limits:
        lines += ["# HELP jobworker_load_limit_mb_per_s rate of this machine over loopback"]
        lines += ["# TYPE jobworker_load_limit_mb_per_s gauge"]
        lines += [
            f'jobworker_load_limit_mb_per_s{{of="{_escaped(name)}"}} {rate:g}'
            for name, rate in report.limits.items()
        ]
    return "\n".join(lines) + "\n"


def _values(result: LoadResult) -> Iterator[float | None]:
    return (figure.of(result.figures) for figure in FIGURES.values())


def _gauge(name: str, about: str, samples: Sequence[tuple[str, float | None]]) -> list[str]:
    known = [(labels, value) for labels, value in samples if value is not None]
    if not known:
        return []
    head = [f"# HELP jobworker_load_{name} {about}", f"# TYPE jobworker_load_{name} gauge"]
    return [*head, *(f"jobworker_load_{name}{labels} {value:g}" for labels, value in known)]


def _shares(loads: Sequence[tuple[LoadResult, str]]) -> list[str]:
    """Return each figure of a load as a share of plain grpcio's under the same load."""
    found = [
        f'jobworker_load_share{{{labels[1:-1]},figure="{name}"}} {share:g}'
        for each, labels in loads
        for name, share in each.shares().items()
    ]
    head = [
        "# HELP jobworker_load_share a figure, as a share of plain grpcio's under the same load",
        "# TYPE jobworker_load_share gauge",
    ]
    return [*head, *found] if found else []


def _series(results: Sequence[LoadResult]) -> list[str]:
    """Return the labels of each load, in Prometheus's syntax; all are distinct."""
    plain = [_labels(each.name, each.labels) for each in results]
    often, seen = Counter(plain), Counter[str]()
    found = []
    for each, labels in zip(results, plain, strict=True):
        seen[labels] += 1
        if often[labels] > 1:
            repeat = {"repeat": str(seen[labels])}
            found.append(_labels(each.name, {**each.labels, **repeat}))
        else:
            found.append(labels)
    return found


def _labels(profile: str, labels: Mapping[str, str]) -> str:
    pairs = {"profile": profile, **labels}
    inside = ",".join(
        f'{re.sub(r"[^a-zA-Z0-9_]", "_", key)}="{_escaped(value)}"' for key, value in pairs.items()
    )
    return f"{{{inside}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
