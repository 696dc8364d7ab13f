"""A run for other programs: CSV, and Prometheus's text format."""

import csv
import re
from pathlib import Path
from typing import Final

from loadtests.metrics import FIGURES
from loadtests.results import RunReport

CSV_FILE: Final = "results.csv"
PROMETHEUS_FILE: Final = "results.prom"


def write_csv(report: RunReport, directory: Path) -> None:
    """Write a row a load; a figure that a load has not is empty."""
    labels = sorted({key for result in report.results for key in result.labels})
    with (directory / CSV_FILE).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["profile", *labels, "verdict", "seconds", *FIGURES])
        for result in report.results:
            writer.writerow(
                [
                    result.name,
                    *(result.labels.get(key, "") for key in labels),
                    result.verdict,
                    f"{result.seconds:.3f}",
                    *(result.figures.get(name, "") for name in FIGURES),
                ]
            )


def write_prometheus(report: RunReport, directory: Path) -> None:
    """Write gauges, for node_exporter's textfile collector or a push gateway."""
    (directory / PROMETHEUS_FILE).write_text(prometheus(report))


def prometheus(report: RunReport) -> str:
    """Return a run as gauges `jobworker_load_...`."""
    lines = [
        "# HELP jobworker_load_passed 1 if the load was reached and the server kept its limits",
        "# TYPE jobworker_load_passed gauge",
    ]
    for result in report.results:
        passed = int(result.verdict == "PASS")
        lines.append(f"jobworker_load_passed{_labels(result.name, result.labels)} {passed}")
    for name, (_, about) in FIGURES.items():
        samples = [
            f"jobworker_load_{name}{_labels(result.name, result.labels)} {result.figures[name]:g}"
            for result in report.results
            if name in result.figures
        ]
        if samples:
            lines += [
                f"# HELP jobworker_load_{name} {about}",
                f"# TYPE jobworker_load_{name} gauge",
            ]
            lines += samples
    if report.limits:
        lines += ["# HELP jobworker_load_limit_mb_per_s what this machine carries over loopback"]
        lines += ["# TYPE jobworker_load_limit_mb_per_s gauge"]
        lines += [
            f'jobworker_load_limit_mb_per_s{{of="{_escaped(name)}"}} {rate:g}'
            for name, rate in report.limits.items()
        ]
    return "\n".join(lines) + "\n"


def _labels(profile: str, labels: object) -> str:
    pairs = {"profile": profile, **(labels if isinstance(labels, dict) else {})}
    inside = ",".join(
        f'{re.sub(r"[^a-zA-Z0-9_]", "_", key)}="{_escaped(value)}"' for key, value in pairs.items()
    )
    return f"{{{inside}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
