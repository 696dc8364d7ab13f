"""The page's text, and that it neither loads anything nor runs foreign scripts."""

import dataclasses
import html
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from harness.checks import ALL
from harness.record.known_failing import KnownFailure
from harness.record.verdict import Finding, Verdict
from harness.report.documented import documented
from harness.report.html import FINDINGS_MAX, DrawnCharts, render
from harness.report.theme import Chart
from tests.harness.report.cases import report_of, result_of
from tests.harness.report.sample import NASTY
from tests.test_tidy import ROOT

VOID = {"meta", "input"}
APART = {"dt", "dd", "th", "td"}


class Page(HTMLParser):
    """Reads a page: its elements, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in APART:
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script", "title"}:
            self.text += data


def said(page: str) -> str:
    return " ".join(Page(page).text.split())


def test_page_has_verdict_summary_problems_skips_and_all_checks_in_this_order() -> None:
    page = render(
        report_of(
            result_of("a.kept", Verdict.PASS),
            result_of("a.unsaid", Verdict.BROKEN),
            result_of("b.broken", Verdict.FAIL),
            result_of("b.left-out", Verdict.SKIPPED, promise="lacks cgroups"),
        )
    )
    text = said(page)
    places = [
        text.index(each)
        for each in (
            "FAIL A promise was broken in 1 check. Not all was judged: 1 check BROKEN. 1 FAIL",
            "Failed and broken checks, the most fundamental first FAIL: the server broke",
            "how to repeat it. FAIL b.broken local",
            "BROKEN a.unsaid local",
            "How to repeat this run seed 4711 kernel Linux 6.12",
            "By target and area",
            "Skipped checks lacks cgroups (1) b.left-out local",
            "All checks",
            "a.kept 1.2, R7 The guarantee of a.kept.",
        )
    ]
    assert places == sorted(places)


def test_failed_check_has_promise_got_want_tolerance_and_rerun_command() -> None:
    finding = Finding(Verdict.FAIL, "share of a processor", "0.81", "0.5", "±10%")
    page = render(report_of(result_of("limits.cpu", Verdict.FAIL, findings=(finding,))))
    assert (
        "The guarantee of limits.cpu. share of a processor got 0.81 want 0.5 tolerance ±10%"
    ) in said(page)
    assert "harness run --only limits.cpu" in said(page)


def test_failed_check_says_where_its_promise_is_documented() -> None:
    result = dataclasses.replace(
        result_of("a.one", Verdict.FAIL), cites=("1-2", "R-JOB-1", "R-GONE"), rerun="again"
    )
    assert (
        "case 1 A client without a certificate: UNAVAILABLE. docs/cases.md "
        "case 2 An expired certificate: UNAVAILABLE. docs/cases.md R-JOB-1 A job is any "
        "executable with its arguments, run without a shell. Its id is a version 4 UUID. "
        "docs/requirements.md R-GONE again"
    ) in said(render(report_of(result)))


def test_every_id_that_a_check_cites_has_its_text() -> None:
    ids = {each for check in ALL for each in check.cites}
    assert [row.id for row in documented(ids) if not row.text] == []


def test_failed_check_has_the_script_of_its_calls_and_a_passed_one_has_not() -> None:
    report = report_of(result_of("a.bad", Verdict.FAIL), result_of("a.good", Verdict.PASS))
    page = render(report, lambda result, _: DrawnCharts(script=f"call <{result.name}> {NASTY}"))
    text = said(page)
    assert r"Its calls, made with another client call <a.bad> <script>alert('got')" in text
    assert "<a.good>" not in text
    assert len(re.findall("<script", page)) == 1


def test_known_failures_are_apart_from_problems_and_what_contradicts_the_file_is_shouted() -> None:
    report = dataclasses.replace(
        report_of(result_of("a.bad", Verdict.FAIL), result_of("a.good", Verdict.PASS)),
        known_failing=(
            KnownFailure("*", "a.bad", "<b>issue 7"),
            KnownFailure("*", "a.good", "x"),
            KnownFailure("*", "a.gone", "y"),
        ),
    )
    text = said(render(report))
    assert "Failed and broken checks" not in text
    assert (
        "1 check passed, though known to fail: remove from the file of known failures a.good local"
    ) in text
    assert "1 known failure neither failed nor passed *:a.gone" in text
    assert "Known failures a.bad local <b>issue 7" in text


def test_guarantee_appears_once_for_all_targets() -> None:
    page = render(
        report_of(*(result_of("a.one", Verdict.PASS, target=each) for each in ("local", "guest")))
    )
    assert said(page).count("The guarantee of a.one.") == 1
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert {"a.one", "local:a.one", "guest:a.one", "area-a"} <= set(ids)


def test_ids_are_unique_and_every_link_has_its_target() -> None:
    names = ("a.one", "a.one", "a.o ne", "a.o/ne", "b.<x>")
    page = render(report_of(*(result_of(name, Verdict.FAIL) for name in names)))
    elements = Page(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    links = {attributes["href"] for tag, attributes in elements if tag == "a"}
    assert len(ids) == len(set(ids))
    assert links <= {f"#{each}" for each in ids}


def test_run_of_skips_is_broken_and_skips_not_allowed_are_listed() -> None:
    report = report_of(result_of("a.one", Verdict.SKIPPED), skips_allowed=())
    text = said(render(report))
    assert text.startswith("BROKEN Inconclusive: 1 check skipped without being allowed to")
    assert "1 check skipped without being allowed to a.one local" in text


def test_empty_run_is_broken() -> None:
    assert said(render(report_of())).startswith("BROKEN Inconclusive")


@pytest.mark.parametrize("place", ["target", "name", "guarantee", "rerun", "cites", "finding"])
def test_text_from_a_server_is_escaped(place: str) -> None:
    finding = Finding(Verdict.FAIL, NASTY, NASTY, NASTY, NASTY)
    result = result_of("a.one", Verdict.FAIL)
    changed: dict[str, object] = {
        place: NASTY,
        **({"cites": (NASTY,)} if place == "cites" else {}),
    }
    if place == "finding":
        changed = {"findings": (finding,)}
    nasty = dataclasses.replace(result, **changed)  # type: ignore[arg-type]
    skipped = dataclasses.replace(nasty, verdict=Verdict.SKIPPED)
    report = report_of(nasty, skipped)
    page = render(dataclasses.replace(report, about={NASTY: NASTY}, started_at=NASTY))
    assert page.encode().decode() == page
    assert len(re.findall("<script", page)) == 1
    assert set(re.findall(r"[^\x20-\x7e\n]", page)) == set()
    assert r"<script>alert('got')</script> \x1b[31mred\x00 \udc80\ufffe AAA" in said(page)
    assert len(page) < 100_000


def test_findings_are_truncated_with_failures_first() -> None:
    kept = tuple(Finding(Verdict.PASS, f"kept {n}.") for n in range(1000))
    findings = (*kept, *(Finding(Verdict.FAIL, f"broken {n}.") for n in range(7)))
    text = said(render(report_of(result_of("a.one", Verdict.FAIL, findings=findings))))
    problem, _, every = text.partition("All checks")
    assert [f"broken {n}." in problem for n in range(7)] == [True] * 5 + [False] * 2
    assert "and 2 more: all findings" in problem
    assert all(f"broken {n}." in every for n in range(7))
    assert every.count("kept ") == FINDINGS_MAX - 7
    assert "1007 findings" in every
    assert f"and {1007 - FINDINGS_MAX} more" in every


def test_chart_captions_are_escaped() -> None:
    chart = Chart("<b>title</b>", "caption & more", "<svg role='img'></svg>")
    page = render(
        report_of(result_of("a.one", Verdict.PASS)),
        lambda _result, prefix: DrawnCharts((chart,), f"note {prefix} <i>"),
    )
    assert "<figcaption><b>&lt;b&gt;title&lt;/b&gt;</b> caption &amp; more</figcaption>" in page
    assert "<svg role='img'></svg></figure>" in page
    assert "note p0 <i>" in said(page)


def test_page_loads_nothing_and_its_policy_allows_only_its_own_script() -> None:
    page = render(report_of(result_of("a.one", Verdict.FAIL)))
    assert re.findall(r"https?:|//[a-z]+\.", page) == []
    assert re.findall(r"\b(?:src|srcset|action|background)=|@import|url\(", page) == []
    elements = Page(page).elements
    [policy] = [
        each["content"]
        for tag, each in elements
        if tag == "meta" and each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]{43}='",
        html.unescape(policy or ""),
    )
    assert {tag for tag, _ in elements} & {"link", "img", "iframe", "object", "embed"} == set()


def test_page_without_scripts_hides_only_the_filter() -> None:
    elements = Page(render(report_of(result_of("a.one", Verdict.PASS)))).elements
    hidden = [attributes.get("id") for _, attributes in elements if "hidden" in attributes]
    assert hidden == ["filter"]


def test_page_without_charts_needs_no_matplotlib() -> None:
    text = "import sys, harness.report.html; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True)
