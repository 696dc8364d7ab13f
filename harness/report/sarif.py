"""The report for code scanning: results.sarif, SARIF 2.1.0.

Rules are the checks with their guarantees; results are the findings that decided a FAIL (error), a
BROKEN (warning) or a skip that is not allowed (note). A failure that is known is suppressed. A run
that is inconclusive has a result of its own: a file without results would look like a success.
Findings have no place in a server's source; their place is the file of the records.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

from harness.record.results import RESULTS_FILE, CheckResult, RunReport
from harness.record.verdict import Finding, Verdict
from harness.report.summary import conclusion
from harness.report.text import FIELD_CHARACTERS_MAX, shown

SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
CONCLUSIVE: Final = "run.conclusive"
FINDINGS_MAX: Final = 20
_VALUE_CHARACTERS_MAX: Final = 500  # the message has more
_TOOL: Final = "jobworker"
_LEVELS: Final = {Verdict.FAIL: "error", Verdict.BROKEN: "warning", Verdict.SKIPPED: "note"}
# In a message, [a](b) is a link and {0} a placeholder.
_MARKUP: Final = re.compile(r"[\\\[\]]")
_PLACEHOLDER: Final = re.compile(r"\{(\d+)\}")
_UTC: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(Z|\+00:00)")

type Values = dict[str, Any]


def to_sarif(report: RunReport) -> str:
    """Return a run as SARIF."""
    checks = {result.name: result for result in report.results}
    rules = [_rule(result) for result in checks.values()]
    rules.append(_conclusive_rule())
    places = {rule["id"]: place for place, rule in enumerate(rules)}
    results = [{**each, "ruleIndex": places[each["ruleId"]]} for each in _results(report)]
    run = {
        "tool": {"driver": {"name": _TOOL, "rules": rules}},
        "invocations": [_invocation(report)],
        "results": results,
        "properties": {"verdict": report.verdict, "about": _shown(report.about)},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(result: CheckResult) -> Values:
    cited = f"It cites {', '.join(result.cites)}. " if result.cites else ""
    return {
        "id": result.name,
        "shortDescription": {"text": shown(result.guarantee)},
        "fullDescription": {"text": shown(result.guarantee)},
        "help": {"text": shown(f"{cited}To repeat it: {result.rerun or 'run the check'}")},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": list(dict.fromkeys(map(shown, (result.area, *result.cites))))},
    }


def _conclusive_rule() -> Values:
    text = "The run is conclusive: every check was judged, and no skip was unexpected."
    return {
        "id": CONCLUSIVE,
        "shortDescription": {"text": text},
        "fullDescription": {"text": text},
        "help": {"text": "Remove the reason, and run the checks again."},
        "defaultConfiguration": {"level": "warning"},
    }


def _results(report: RunReport) -> Iterator[Values]:
    for cause in report.causes():
        for finding in cause.result.decisive[:FINDINGS_MAX]:
            result = _result(cause.result, finding)
            if cause.known:
                result["suppressions"] = [
                    {
                        "kind": "external",
                        "status": "accepted",
                        "justification": shown(cause.known),
                    }
                ]
            yield result
    for skipped in report.unexpected_skips():
        for finding in skipped.decisive[:FINDINGS_MAX]:
            yield _result(skipped, finding)
    for passed in report.unexpected_passes():
        why = f"it passed, though known to fail: {report.known_reason(passed)}"
        yield _result(passed, Finding(Verdict.FAIL, why))
    if report.verdict is Verdict.BROKEN:
        yield {
            "ruleId": CONCLUSIVE,
            "level": "warning",
            "message": _message(conclusion(report)),
            "locations": [_location(RESULTS_FILE)],
            "partialFingerprints": {"promise/v1": _fingerprint(CONCLUSIVE)},
        }


def _result(result: CheckResult, finding: Finding) -> Values:
    rerun = f"\nTo repeat it: {result.rerun}" if result.rerun else ""
    names = ("promise", "got", "want", "tolerance")
    values = {name: getattr(finding, name) for name in names if getattr(finding, name)}
    location = _location(result.history or RESULTS_FILE)
    location["logicalLocations"] = [
        {
            "name": shown(result.name),
            "fullyQualifiedName": shown(f"{result.target}:{result.name}"),
            "kind": "function",
        }
    ]
    return {
        "ruleId": result.name,
        "level": _LEVELS[finding.verdict],
        "message": _message(f"{shown(finding.sentence())}{rerun}", 4000),
        "locations": [location],
        # Without what was got, which differs from run to run.
        "partialFingerprints": {
            "promise/v1": _fingerprint(result.target, result.name, finding.promise)
        },
        "properties": {"target": shown(result.target), "verdict": finding.verdict,
                       **_shown(values)},
    }  # fmt: skip


def _message(text: str, characters_max: int = FIELD_CHARACTERS_MAX) -> Values:
    """Return a message of plain text, without links and placeholders, whatever is in it."""
    plain = _MARKUP.sub(r"\\\g<0>", shown(text, characters_max))
    return {"text": _PLACEHOLDER.sub(r"{{\1}}", plain)}


def _location(path: str) -> Values:
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": quote(path, errors="replace")},
            "region": {"startLine": 1},
        }
    }


def _fingerprint(*texts: str) -> str:
    joined = "\0".join(texts)
    return hashlib.sha256(joined.encode(errors="backslashreplace")).hexdigest()


def _invocation(report: RunReport) -> Values:
    invocation: Values = {
        "executionSuccessful": report.verdict is not Verdict.BROKEN,
        "exitCode": report.exit_code,
        "exitCodeDescription": shown(conclusion(report)),
    }
    if command := report.about.get("command"):
        invocation["commandLine"] = shown(command)
    if utc := _UTC.fullmatch(report.started_at):
        invocation["startTimeUtc"] = f"{utc[1]}Z"
    return invocation


def _shown(values: Mapping[str, str]) -> dict[str, str]:
    return {shown(name): shown(value, _VALUE_CHARACTERS_MAX) for name, value in values.items()}
