"""Results and reports for tests."""

from harness.record.results import CheckResult, RunReport
from harness.record.verdict import Finding, Verdict


def result_of(
    name: str,
    verdict: Verdict,
    *,
    target: str = "local",
    promise: str = "the promise",
    findings: tuple[Finding, ...] | None = None,
    seconds: float = 1.0,
    history: str = "",
) -> CheckResult:
    """Return a result with one finding, or those given."""
    return CheckResult(
        target=target,
        name=name,
        guarantee=f"The guarantee of {name}.",
        verdict=verdict,
        findings=(Finding(verdict, promise),) if findings is None else findings,
        seconds=seconds,
        cites=("1.2", "R7"),
        rerun=f"harness run --only {name}",
        history=history,
    )


def report_of(*results: CheckResult, skips_allowed: tuple[str, ...] | None = None) -> RunReport:
    """Return a run with these results."""
    return RunReport(
        about={"seed": "4711", "kernel": "Linux 6.12"},
        started_at="2025-11-24T22:48:31Z",
        seconds=12.5,
        results=results,
        skips_allowed=skips_allowed,
    )
