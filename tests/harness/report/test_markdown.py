"""summary.md, as GitHub renders it: complete, short, and without effect of a server's text."""

import dataclasses
import re

import pytest
from markdown_it import MarkdownIt

from harness.record.known_failing import KnownFailure
from harness.record.results import RunReport
from harness.record.verdict import Finding, Verdict
from harness.report.markdown import CHARACTERS_MAX, to_markdown
from tests.harness.report.cases import report_of, result_of

RENDERED = MarkdownIt("commonmark").enable("table")
OWN_TAGS = {
    "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "ul", "li", "code",
    "pre", "details", "summary", "span",
}  # fmt: skip
NASTY = (
    "<script>x</script> <img src=y> **b** _i_ `t` ``` ~~s~~ [a](http://b.c) ![p](q) | cell | "
    "@user #12 GH-12 gh-3 org/name#3 "
    "www.evil.org https://evil.org me@evil.org $m$ \\ &lt; \x1b\u202e\n# h\n"
    "- item\n1. one\n> quote\n\n```\nblock\n"
)


def html(report: RunReport) -> str:
    page: str = RENDERED.render(to_markdown(report))
    return page


def plain(report: RunReport) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html(report)).split())


def test_summary_has_counts_causes_skips_and_the_command_in_this_order() -> None:
    findings = (
        Finding(Verdict.FAIL, "share of a processor", "0.81", "0.5", "±10%"),
        *(Finding(Verdict.FAIL, f"broken {n}") for n in range(5)),
    )
    hidden = Finding(Verdict.SKIPPED, "not judged", because="b.broken")
    report = report_of(
        result_of("a.kept", Verdict.PASS),
        result_of("a.unsaid", Verdict.BROKEN),
        result_of("b.broken", Verdict.FAIL, findings=findings),
        result_of("b.hidden", Verdict.SKIPPED, findings=(hidden,)),
        result_of("b.left-out", Verdict.SKIPPED, promise="lacks cgroups"),
    )
    report = dataclasses.replace(report, about={"command": "python -m harness check", "seed": "7"})
    text = plain(report)
    places = [
        text.index(each)
        for each in (
            "Job worker: FAIL A promise was broken in 1 check.",
            "target area FAIL BROKEN SKIPPED PASS",
            "local a 0 1 0 1",
            "local b 1 0 2 0",
            "Causes, the most fundamental first FAIL b.broken ( local ): The guarantee of b.broken",
            "share of a processor, got 0.81 , want 0.5 , tolerance ±10%",
            "and 3 findings more",
            "1 check could not be judged because of it",
            "harness run --only b.broken",
            "BROKEN a.unsaid",
            "Reasons of skips (2)",
            "lacks cgroups : 1 check",
            "How to repeat this run python -m harness check",
        )
    ]
    assert places == sorted(places)


def test_summary_lists_what_is_known_to_fail_apart_from_the_causes() -> None:
    report = dataclasses.replace(
        report_of(result_of("a.bad", Verdict.FAIL), result_of("a.good", Verdict.PASS)),
        known_failing=(
            KnownFailure("*", "a.bad", "issue 7"),
            KnownFailure("*", "a.good", "x"),
            KnownFailure("*", "a.gone", "y"),
        ),
    )
    text = plain(report)
    assert "Causes" not in text
    assert "Passed, though known to fail: remove them from the file a.good ( local )" in text
    assert "Known to fail, but not judged *:a.gone" in text
    assert "Known failures (1) a.bad ( local ): issue 7" in text


def test_skip_that_is_not_allowed_is_not_folded_away() -> None:
    report = report_of(result_of("a.one", Verdict.SKIPPED), skips_allowed=())
    assert "<h3>Skipped without being allowed to</h3>" in html(report)


def test_run_without_results_says_that_it_is_inconclusive() -> None:
    assert plain(report_of()).startswith("Job worker: BROKEN Inconclusive: no check passed.")


@pytest.mark.parametrize(
    "place", ["target", "name", "guarantee", "rerun", "finding", "setup_error", "about", "reason"]
)
def test_text_from_a_server_has_no_effect_on_the_page(place: str) -> None:
    result = result_of("a.one", Verdict.FAIL)
    report = report_of(result)
    if place == "finding":
        finding = Finding(Verdict.FAIL, NASTY, NASTY, NASTY, NASTY)
        report = report_of(dataclasses.replace(result, findings=(finding,)))
    elif place == "setup_error":
        report = dataclasses.replace(report, setup_error=NASTY)
    elif place == "about":
        report = dataclasses.replace(report, about={"command": NASTY, "seed": NASTY})
    elif place == "reason":
        known = KnownFailure("*", "a.one", NASTY)
        report = dataclasses.replace(report, known_failing=(known,))
    else:
        changed = {place: NASTY}
        skipped = dataclasses.replace(result, verdict=Verdict.SKIPPED)
        report = report_of(*(dataclasses.replace(each, **changed) for each in (result, skipped)))  # type: ignore[arg-type]
    page = html(report)
    assert "evil" in page
    assert set(re.findall(r"</?([a-z0-9]+)", page)) <= OWN_TAGS
    # A mention, a reference and a link need their sign and their word in one run of text.
    text = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", page, flags=re.DOTALL)
    text = re.sub(r"<span>([@#]|(?i:GH))</span>", "", text)
    assert not re.search(r"[@#]\w|(?i:\bGH-\d)", text)
    assert set(re.findall(r"[^\x20-\x7e\n]", page)) == set()


def test_address_in_prose_does_not_become_a_link() -> None:
    nasty = "at https://a.evil.org and www.evil.org, $m$"
    result = dataclasses.replace(result_of("a.one", Verdict.FAIL), guarantee=nasty)
    finding = Finding(Verdict.FAIL, nasty)
    text = to_markdown(report_of(dataclasses.replace(result, findings=(finding,))))
    assert text.count("evil") == 4
    # GitHub makes links of these alone, and formulas of pairs of dollars.
    assert not re.search(r"https?://|www\.\w|(?<!\\)\$", text)


def test_bar_in_a_name_does_not_split_a_cell() -> None:
    page = html(report_of(result_of("a.one", Verdict.PASS, target="a|b")))
    assert page.count("<td") == 6
    assert "<code>a|b</code>" in page


def test_code_with_backticks_stays_one_code_span() -> None:
    finding = Finding(Verdict.FAIL, "p", "`a``b`", "```")
    page = html(report_of(result_of("a.one", Verdict.FAIL, findings=(finding,))))
    assert "<code>`a``b`</code>" in page
    assert "<code>```</code>" in page


def test_summary_of_any_run_fits_into_a_comment() -> None:
    nasty = "|`*" * 5000
    findings = tuple(Finding(Verdict.FAIL, nasty, nasty, nasty, nasty) for _ in range(50))
    results = [
        dataclasses.replace(
            result_of(f"a{n}.b", Verdict.FAIL, findings=findings, target=f"t{n}{nasty}"),
            rerun=nasty,
        )
        for n in range(200)
    ]
    text = to_markdown(report_of(*results))
    assert len(text) <= CHARACTERS_MAX
    assert text.endswith("The rest is left out; it is in `report.html`.\n")
