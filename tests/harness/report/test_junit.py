"""junit.xml, as continuous integration reads it."""

from xml.etree import ElementTree as ET

from harness.record.results import CheckResult, RunReport
from harness.record.verdict import Finding, Verdict
from harness.report.junit import to_xml
from tests.harness.report.cases import report_of, result_of


def parsed(report: RunReport) -> ET.Element:
    return ET.fromstring(to_xml(report))  # noqa: S314 - our own


def only_case(result: CheckResult) -> ET.Element:
    [case] = parsed(report_of(result, result_of("z.z", Verdict.PASS))).findall(
        f".//testcase[@classname='{result.area}']"
    )
    return case


def test_junit_has_a_suite_per_target_with_counts() -> None:
    root = parsed(
        report_of(
            result_of("a.one", Verdict.PASS, target="local", seconds=1.25),
            result_of("a.two", Verdict.FAIL, target="local", seconds=0.5),
            result_of("a.one", Verdict.BROKEN, target="guest"),
            result_of("a.two", Verdict.SKIPPED, target="guest"),
        )
    )
    counted = [
        {name: suite.get(name) for name in ("name", "tests", "failures", "errors", "skipped")}
        for suite in [root, *root.findall("testsuite")]
    ]
    names = ("name", "tests", "failures", "errors", "skipped")
    assert counted == [
        dict(zip(names, ("jobworker", "4", "1", "1", "1"), strict=True)),
        dict(zip(names, ("local", "2", "1", "0", "0"), strict=True)),
        dict(zip(names, ("guest", "2", "0", "1", "1"), strict=True)),
    ]
    assert root.findall("testsuite")[0].get("time") == "1.750"


def test_junit_suite_has_the_properties_of_the_run() -> None:
    properties = parsed(report_of(result_of("a.one", Verdict.PASS))).findall(".//property")
    assert {each.get("name"): each.get("value") for each in properties} == {
        "seed": "4711",
        "kernel": "Linux 6.12",
    }


def test_junit_passed_case_is_empty_and_named_by_area_and_check() -> None:
    case = only_case(result_of("streams.binary", Verdict.PASS, seconds=2.5))
    assert case.attrib == {"classname": "streams", "name": "binary", "time": "2.500"}
    assert list(case) == []


def test_junit_failure_has_promise_got_want_tolerance_and_rerun_command() -> None:
    findings = (
        Finding(Verdict.PASS, "kept"),
        Finding(Verdict.FAIL, "share of a processor", "0.81", "0.5", "±10%"),
    )
    [failure] = only_case(result_of("limits.cpu", Verdict.FAIL, findings=findings))
    sentence = "share of a processor; got 0.81; want 0.5; tolerance ±10%"
    assert failure.tag == "failure"
    assert failure.attrib == {"message": sentence, "type": "FAIL"}
    assert failure.text == (
        f"The guarantee of limits.cpu.\n{sentence}\nrerun: harness run --only limits.cpu"
    )


def test_junit_broken_is_an_error_and_a_skip_has_its_reason() -> None:
    [broken] = only_case(result_of("a.one", Verdict.BROKEN, promise="load floor"))
    [skipped] = only_case(result_of("a.two", Verdict.SKIPPED, promise="lacks cgroups"))
    assert (broken.tag, broken.get("message")) == ("error", "load floor")
    assert (skipped.tag, skipped.get("message")) == ("skipped", "lacks cgroups")


def test_junit_skip_that_is_not_allowed_is_an_error() -> None:
    report = report_of(
        result_of("a.one", Verdict.SKIPPED, promise="lacks cgroups"),
        result_of("a.two", Verdict.SKIPPED),
        result_of("a.three", Verdict.PASS),
        skips_allowed=("local:a.two",),
    )
    [error] = parsed(report).findall(".//error")
    assert error.get("message") == "this skip is not allowed: lacks cgroups"
    assert len(parsed(report).findall(".//skipped")) == 1


def test_junit_of_a_run_without_a_pass_has_an_error() -> None:
    report = report_of(result_of("a.one", Verdict.SKIPPED))
    root = parsed(report)
    [error] = root.findall(".//testcase[@classname='run']/error")
    assert error.get("message") == "Inconclusive: no check passed."
    assert root.get("errors") == "1"
    assert parsed(report_of()).get("errors") == "1"


def test_junit_escapes_invalid_characters_and_truncates_long_text() -> None:
    nasty = "<script>&\x00\x1b\udc80\ufffe\x85" + "A" * 100_000
    finding = Finding(Verdict.FAIL, nasty, nasty, nasty)
    result = result_of("a.one", Verdict.FAIL, findings=(finding,) * 500, target="t\x00")
    data = to_xml(report_of(result))
    root = ET.fromstring(data)  # noqa: S314 - our own
    [failure] = root.findall(".//failure")
    text = failure.text or ""
    assert r"<script>&\x00\x1b\udc80\ufffe\x85AAA" in text
    assert "and 480 findings more" in text
    assert len(data) < 100_000
    assert len(failure.get("message") or "") < 500
