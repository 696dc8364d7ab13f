"""The report for continuous integration: junit.xml, a suite per target, a case per check.

A skip that is not allowed, and a run in which no check passed, become an <error>: CI would count
both as success. A failure that is known is <skipped>, and a known one that passed is a <failure>.
"""

from xml.etree import ElementTree as ET

from harness.record.results import CheckResult, RunReport
from harness.record.verdict import Verdict
from harness.report.summary import conclusion, counted, reason
from harness.report.text import one_line, shown, visible

_MESSAGE_CHARACTERS_MAX = 300
_FINDINGS_MAX = 20
_TAGS = {Verdict.FAIL: "failure", Verdict.BROKEN: "error", Verdict.SKIPPED: "skipped"}
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def to_xml(report: RunReport) -> bytes:
    """Return a run as JUnit XML, in UTF-8."""
    root = ET.Element("testsuites", name="jobworker", time=f"{report.seconds:.3f}")
    outcomes = _outcomes(report)
    for target in dict.fromkeys(result.target for result in report.results):
        suite = ET.SubElement(root, "testsuite", name=visible(target), timestamp=_timestamp(report))
        _add_about(suite, report)
        causes = [cause.result for cause in report.causes() if cause.result.target == target]
        results = causes + [
            each for each in report.results if each.target == target and each not in causes
        ]
        for result in results:
            _add_case(suite, result, outcomes.get((target, result.name)))
        suite.set("time", f"{sum(result.seconds for result in results):.3f}")
        _count(suite)
    if report.setup_error or (report.verdict is not Verdict.PASS and not _is_red(root)):
        _add_run(root, report)
    _count(root)
    ET.indent(root)
    xml: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"


def _timestamp(report: RunReport) -> str:
    return visible(report.started_at)


def _add_about(suite: ET.Element, report: RunReport) -> None:
    properties = ET.SubElement(suite, "properties")
    for name, value in report.about.items():
        ET.SubElement(properties, "property", name=visible(name), value=shown(value))


def _outcomes(report: RunReport) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Return the tag, message and type of the results that a verdict alone does not decide."""
    outcomes = {
        (each.target, each.name): (
            "error", f"this skip is not allowed: {reason(each)}", "unexpected skip"
        )
        for each in report.unexpected_skips()
    }  # fmt: skip
    for each in report.unexpected_passes():
        why = f"it passed, though known to fail: {report.known_reason(each)}"
        outcomes[each.target, each.name] = ("failure", why, "unexpected pass")
    for each in report.known_failures():
        first = f"; {each.decisive[0].sentence()}" if each.decisive else ""
        why = f"known to fail: {report.known_reason(each)}{first}"
        outcomes[each.target, each.name] = ("skipped", why, "known failure")
    return outcomes


def _add_case(suite: ET.Element, result: CheckResult, outcome: tuple[str, str, str] | None) -> None:
    # CI shows classname.name, which is the check's name.
    case = ET.SubElement(
        suite,
        "testcase",
        classname=visible(result.area),
        name=visible(result.name.partition(".")[2] or result.name),
        time=f"{result.seconds:.3f}",
    )
    if outcome is not None:
        tag, what, kind = outcome
        _add_outcome(case, tag, what, kind, result)
        return
    if result.verdict is Verdict.PASS:
        return
    first = result.decisive[0].sentence() if result.decisive else "no finding"
    what = reason(result) if result.verdict is Verdict.SKIPPED else first
    _add_outcome(case, _TAGS[result.verdict], what, result.verdict, result)


def _add_outcome(case: ET.Element, tag: str, what: str, kind: str, result: CheckResult) -> None:
    message = one_line(what, _MESSAGE_CHARACTERS_MAX)
    outcome = ET.SubElement(case, tag, message=message, type=kind)
    lines = [shown(result.guarantee)]
    lines += [shown(finding.sentence()) for finding in result.decisive[:_FINDINGS_MAX]]
    left_out = len(result.decisive) - _FINDINGS_MAX
    lines += [f"and {counted(left_out, 'finding')} more"] if left_out > 0 else []
    lines += [f"rerun: {shown(result.rerun)}"] if result.rerun else []
    outcome.text = "\n".join(lines)


def _is_red(root: ET.Element) -> bool:
    return any(root.find(f".//{tag}") is not None for tag in ("failure", "error"))


def _add_run(root: ET.Element, report: RunReport) -> None:
    suite = ET.SubElement(root, "testsuite", name="run", timestamp=_timestamp(report), time="0.000")
    case = ET.SubElement(suite, "testcase", classname="run", name="is conclusive", time="0.000")
    message = one_line(conclusion(report), _MESSAGE_CHARACTERS_MAX)
    ET.SubElement(case, "error", message=message, type=report.verdict)
    _count(suite)


def _count(element: ET.Element) -> None:
    element.set("tests", str(len(element.findall(".//testcase"))))
    for attribute, tag in _COUNTED.items():
        element.set(attribute, str(len(element.findall(f".//{tag}"))))
