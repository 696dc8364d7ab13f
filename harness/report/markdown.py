"""The summary for a pull request: summary.md, in GitHub's Markdown, short enough for a comment.

Text from servers is in code spans: there, GitHub renders no markup, no mention of a user and no
link. Other text is escaped. What does not fit is left out, and the summary says so.
"""

import re
from collections.abc import Iterator
from typing import Final

from harness.record.results import Cause, CheckResult, RunReport
from harness.record.verdict import Finding, Verdict
from harness.report.summary import ORDER, conclusion, counted, duration, rows, skips_by_reason
from harness.report.text import one_line

# A comment on GitHub has at most 65,536 characters.
CHARACTERS_MAX: Final = 60_000
CAUSES_MAX: Final = 15
FINDINGS_MAX: Final = 3
LISTED_MAX: Final = 30
_FIELD_CHARACTERS_MAX: Final = 300
_COMMAND_CHARACTERS_MAX: Final = 2000
_MARKUP: Final = re.compile(r"[\\`*_{}\[\]<>|~&$]|^[-+]|(?<=[Ww])\.")
_REFERENCE: Final = re.compile(r"[@#]|\bGH(?=-\d)", re.IGNORECASE)
_LEFT_OUT: Final = "The rest is left out; it is in `report.html`.\n"


def to_markdown(report: RunReport) -> str:
    """Return a run's summary."""
    text = ""
    for block in _blocks(report):
        if len(text) + len(block) + len(_LEFT_OUT) > CHARACTERS_MAX:
            return text + _LEFT_OUT
        text += f"{block}\n"
    return text.rstrip("\n") + "\n"


def _blocks(report: RunReport) -> Iterator[str]:
    yield f"## Job worker: {report.verdict}\n"
    yield f"{_prose(conclusion(report), 2000)}\n"
    yield from _table(report)
    causes = [cause for cause in report.causes() if not cause.known]
    if causes:
        yield "### Causes, the most fundamental first\n"
    for cause in causes[:CAUSES_MAX]:
        yield _cause(cause)
    if len(causes) > CAUSES_MAX:
        yield f"and {counted(len(causes) - CAUSES_MAX, 'cause')} more: see `report.html`\n"
    passed = _names(report.unexpected_passes())
    title = "Passed, though known to fail: remove them from the file"
    yield from _listed(title, passed, folded=False)
    unconfirmed = [_code(str(entry)) for entry in report.unconfirmed()]
    yield from _listed("Known to fail, but not judged", unconfirmed, folded=False)
    unexpected = _names(report.unexpected_skips())
    yield from _listed("Skipped without being allowed to", unexpected, folded=False)
    known = [
        f"{_name(cause.result)}: {_code(cause.known)}" for cause in report.causes() if cause.known
    ]
    yield from _listed("Known failures", known)
    yield from _listed("Reasons of skips", _skips(report))
    yield _repeat(report)


def _table(report: RunReport) -> Iterator[str]:
    """Yield the number of checks by target, area and verdict."""
    found = rows(report)
    if not found:
        return
    lines = [
        f"| target | area | {' | '.join(ORDER)} |",
        f"|---|---|{'--:|' * len(ORDER)}",
    ]
    for row in found[:LISTED_MAX]:
        counts = " | ".join(_count(row.counts[each], each) for each in ORDER)
        lines.append(f"| {_cell(row.target)} | {_cell(row.area)} | {counts} |")
    if len(found) > LISTED_MAX:
        lines.append(f"| and {counted(len(found) - LISTED_MAX, 'row')} more | | | | | |")
    yield "\n".join(lines) + "\n"


def _count(number: int, verdict: Verdict) -> str:
    return f"**{number}**" if number and verdict in {Verdict.FAIL, Verdict.BROKEN} else str(number)


def _cause(cause: Cause) -> str:
    result = cause.result
    lines = [f"**{result.verdict}** {_name(result)}: {_prose(result.guarantee)}", ""]
    lines += [f"- {_finding(finding)}" for finding in result.decisive[:FINDINGS_MAX]]
    left_out = len(result.decisive) - FINDINGS_MAX
    lines += [f"- and {counted(left_out, 'finding')} more"] if left_out > 0 else []
    if cause.hides:
        lines.append(f"- {counted(cause.hides, 'check')} could not be judged because of it")
    if result.rerun:
        lines += ["", *_block(result.rerun)]
    return "\n".join(lines) + "\n"


def _finding(finding: Finding) -> str:
    parts = [_prose(finding.promise)]
    for name in ("got", "want", "tolerance"):
        value = getattr(finding, name)
        parts += [f"{name} {_code(value)}"] if value else []
    return ", ".join(parts)


def _listed(title: str, items: list[str], *, folded: bool = True) -> Iterator[str]:
    """Yield a section that lists items; what needs no attention is folded."""
    if not items:
        return
    lines = [f"- {item}" for item in items[:LISTED_MAX]]
    lines += [f"- and {len(items) - LISTED_MAX} more"] if len(items) > LISTED_MAX else []
    head, foot = ([f"### {title}", ""], [])
    if folded:
        head = [f"<details><summary>{title} ({len(items)})</summary>", ""]
        foot = ["", "</details>"]
    yield "\n".join([*head, *lines, *foot, ""])


def _names(results: list[CheckResult]) -> list[str]:
    return [_name(result) for result in results]


def _name(result: CheckResult) -> str:
    return f"{_code(result.name)} ({_code(result.target)})"


def _skips(report: RunReport) -> list[str]:
    return [
        f"{_code(why)}: {counted(len(results), 'check')}"
        for why, results in skips_by_reason(report).items()
    ]


def _repeat(report: RunReport) -> str:
    command = report.about.get("command", "")
    facts = [f"{name} {_code(report.about[name])}" for name in ("seed", "commit", "kernel")
             if name in report.about]  # fmt: skip
    lines = ["### How to repeat this run", "", *(_block(command) if command else [])]
    lines += ["", f"{', '.join([*facts, f'took {duration(report.seconds)}'])}.", ""]
    return "\n".join(lines)


def _prose(text: str, characters_max: int = _FIELD_CHARACTERS_MAX) -> str:
    """Return a text without effect on the page: no markup, no link, no mention, no reference."""
    text = _MARKUP.sub(r"\\\g<0>", one_line(text, characters_max)).replace("://", r":\/\/")
    return _REFERENCE.sub(r"<span>\g<0></span>", text)


def _cell(text: str) -> str:
    """Return a code span for a cell of a table, which a bar would end even in a code span."""
    return _code(text).replace("|", r"\|")


def _code(text: str) -> str:
    """Return a code span."""
    text = one_line(text, _FIELD_CHARACTERS_MAX) or "-"
    fence = _fence(text, "`")
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _block(command: str) -> list[str]:
    """Return the lines of a code block."""
    text = one_line(command, _COMMAND_CHARACTERS_MAX)
    fence = _fence(text, "```")
    return [f"{fence}sh", text, fence]


def _fence(text: str, shortest: str) -> str:
    """Return backticks, more than any run of them in a text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(len(shortest), longest + 1)
