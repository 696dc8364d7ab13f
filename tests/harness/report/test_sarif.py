"""results.sarif, as SARIF 2.1.0 requires it and code scanning reads it."""

import dataclasses
import json
import re
from typing import Any

import pytest

from harness.record.known_failing import KnownFailure
from harness.record.results import RunReport
from harness.record.verdict import Finding, Verdict
from harness.report.sarif import CONCLUSIVE, SCHEMA, to_sarif
from tests.harness.report.cases import report_of, result_of
from tests.harness.report.sample import NASTY

type Values = dict[str, Any]
# Of each object of the standard: the properties that this file may have; those in capitals it must.
# The texts, and what else a property may be, are in `require`.
FORM: dict[str, set[str]] = {
    "log": {"$schema", "VERSION", "RUNS"},
    "run": {"TOOL", "invocations", "RESULTS", "properties"},
    "driver": {"NAME", "rules"},
    "rule": {
        "ID", "shortDescription", "fullDescription", "help", "defaultConfiguration", "properties",
    },
    "invocation": {
        "EXECUTIONSUCCESSFUL", "exitCode", "exitCodeDescription", "commandLine", "startTimeUtc",
    },
    "result": {
        "ruleId", "ruleIndex", "level", "MESSAGE", "locations", "partialFingerprints",
        "suppressions", "properties",
    },
    "location": {"PHYSICALLOCATION", "logicalLocations"},
    "suppression": {"KIND", "status", "justification"},
}  # fmt: skip


def require(kind: str, values: Values) -> None:
    """Assert that an object has the properties of its kind, and no others."""
    allowed = {name.lower() for name in FORM[kind]}
    required = {name.lower() for name in FORM[kind] if name.isupper()}
    names = {name.lower() for name in values}
    assert required <= names <= allowed


def run_of(report: RunReport) -> Values:
    """Return the one run of a report, with its form asserted."""
    log = json.loads(to_sarif(report))
    require("log", log)
    assert (log["version"], log["$schema"]) == ("2.1.0", SCHEMA)
    [run] = log["runs"]
    require("run", run)
    assert list(run["tool"]) == ["driver"]
    require("driver", run["tool"]["driver"])
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for rule in rules:
        require("rule", rule)
        assert all(rule[name]["text"] for name in ("shortDescription", "fullDescription", "help"))
        tags = rule.get("properties", {}).get("tags", [])
        assert len(set(tags)) == len(tags)
    [invocation] = run["invocations"]
    require("invocation", invocation)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", invocation["startTimeUtc"])
    for result in run["results"]:
        require("result", result)
        assert result["level"] in {"error", "warning", "note"}
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        [location] = result["locations"]
        require("location", location)
        place = location["physicalLocation"]
        assert re.fullmatch(r"[A-Za-z0-9._~/%-]+", place["artifactLocation"]["uri"])
        assert place["region"] == {"startLine": 1}
        for suppression in result.get("suppressions", ()):
            require("suppression", suppression)
    found: Values = run
    return found


def test_findings_that_decided_are_results_with_the_level_of_their_verdict() -> None:
    findings = (
        Finding(Verdict.PASS, "kept"),
        Finding(Verdict.FAIL, "share of a processor", "0.81", "0.5", "±10%"),
        Finding(Verdict.FAIL, "its end", "none"),
    )
    run = run_of(
        report_of(
            result_of("a.kept", Verdict.PASS),
            result_of("b.bad", Verdict.FAIL, findings=findings, history="history/l/b bad.jsonl"),
            result_of("b.unsaid", Verdict.BROKEN),
            result_of("b.left", Verdict.SKIPPED),
            skips_allowed=(),
        )
    )
    assert [(each["ruleId"], each["level"]) for each in run["results"]] == [
        ("b.bad", "error"),
        ("b.bad", "error"),
        ("b.unsaid", "warning"),
        ("b.left", "note"),
    ]
    first = run["results"][0]
    assert first["message"]["text"] == (
        "share of a processor; got 0.81; want 0.5; tolerance ±10%\n"
        "To repeat it: harness run --only b.bad"
    )
    location = first["locations"][0]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "history/l/b%20bad.jsonl"
    assert location["logicalLocations"][0]["fullyQualifiedName"] == "local:b.bad"
    assert first["properties"]["want"] == "0.5"


def test_rules_are_all_checks_that_were_run_with_their_guarantees_once() -> None:
    results = [result_of("a.one", Verdict.PASS, target=each) for each in ("local", "vm")]
    rules = run_of(report_of(*results))["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["a.one", CONCLUSIVE]
    assert rules[0]["shortDescription"]["text"] == "The guarantee of a.one."
    assert rules[0]["properties"]["tags"] == ["a", "1.2", "R7"]


def test_passed_run_has_no_result_and_succeeded() -> None:
    run = run_of(report_of(result_of("a.one", Verdict.PASS), result_of("a.x", Verdict.SKIPPED)))
    assert run["results"] == []
    assert run["invocations"][0]["executionSuccessful"]
    assert run["invocations"][0]["exitCode"] == 0


@pytest.mark.parametrize(
    "report",
    [
        report_of(),
        report_of(result_of("a.one", Verdict.SKIPPED)),
        dataclasses.replace(report_of(result_of("a.one", Verdict.PASS)), expected=2),
        dataclasses.replace(report_of(result_of("a.one", Verdict.PASS)), setup_error="no route"),
    ],
)
def test_inconclusive_run_has_a_result_and_did_not_succeed(report: RunReport) -> None:
    run = run_of(report)
    assert [each["ruleId"] for each in run["results"]] == [CONCLUSIVE]
    assert not run["invocations"][0]["executionSuccessful"]
    assert run["invocations"][0]["exitCode"] == 2


def test_known_failure_is_suppressed_and_an_unexpected_pass_is_an_error() -> None:
    report = dataclasses.replace(
        report_of(result_of("a.bad", Verdict.FAIL), result_of("a.good", Verdict.PASS)),
        known_failing=(KnownFailure("*", "a.bad", "issue 7"), KnownFailure("*", "a.good", "x")),
    )
    bad, good = run_of(report)["results"]
    assert bad["suppressions"] == [
        {"kind": "external", "status": "accepted", "justification": "issue 7"}
    ]
    assert "suppressions" not in good
    assert (good["ruleId"], good["level"]) == ("a.good", "error")


def test_fingerprint_is_that_of_the_promise_whatever_was_got() -> None:
    def fingerprint(promise: str, got: str, target: str = "local") -> str:
        finding = Finding(Verdict.FAIL, promise, got)
        result = result_of("a.one", Verdict.FAIL, findings=(finding,), target=target)
        text: str = run_of(report_of(result))["results"][0]["partialFingerprints"]["promise/v1"]
        return text

    assert fingerprint("p", "1") == fingerprint("p", "2")
    assert len({fingerprint("p", ""), fingerprint("q", ""), fingerprint("p", "", "vm")}) == 3


def test_text_from_a_server_is_neither_a_link_nor_a_placeholder() -> None:
    finding = Finding(Verdict.FAIL, "p", got=r"[a](http://b) {0} {x} \[")
    text = to_sarif(report_of(result_of("a.bad", Verdict.FAIL, findings=(finding,))))
    message = json.loads(text)["runs"][0]["results"][0]["message"]["text"]
    assert message.startswith(r"p; got \[a\](http://b) {{0}} {x} \\\[" + "\n")


def test_text_from_a_server_is_printable_and_bounded() -> None:
    finding = Finding(Verdict.FAIL, NASTY, NASTY, NASTY)
    result = dataclasses.replace(
        result_of(NASTY, Verdict.FAIL, findings=(finding,) * 500, target=NASTY, history=NASTY),
        guarantee=NASTY,
        rerun=NASTY,
        cites=(NASTY, NASTY),
    )
    text = to_sarif(dataclasses.replace(report_of(result), about={"command": NASTY}))
    assert len(text) < 500_000
    [run] = json.loads(text)["runs"]
    assert len(run["results"]) == 20
    assert r"\\x1b\[31mred\\x00 \\udc80\\ufffe" in run["results"][0]["message"]["text"]
    assert "\x1b" not in json.loads(text)["runs"][0]["results"][0]["message"]["text"]
