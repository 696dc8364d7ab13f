"""The report during a run: one line per check, and a summary at the end.

A terminal also shows the running checks below those lines. A file, a pipe or CI gets plain lines
only, without control codes and never wrapped.

Threads: any thread may call any method. A thread that prints holds `_printing`, including the
display's own: rich computes the cursor's position and moves it in two steps. Shared state: the
running checks and the number done, guarded by `_lock`. Lock order: `_printing` before `_lock`.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from harness.record.known_failing import KnownFailure
from harness.record.results import CheckResult, RunReport
from harness.record.verdict import Finding, Verdict
from harness.report.summary import (
    ORDER,
    SummaryRow,
    conclusion,
    counted,
    duration,
    reason,
    rows,
    skips_by_reason,
    times,
)
from harness.report.text import one_line, shown, visible

FINDINGS_MAX: Final = 5
FIELD_CHARACTERS_MAX: Final = 400
REASON_CHARACTERS_MAX: Final = 100
RUNNING_MAX: Final = 8
CAUSES_MAX: Final = 8
_NAME_WIDTH: Final = 40
_REFRESH_S: Final = 0.25
_STYLES: Final = {
    Verdict.PASS: "green",
    Verdict.SKIPPED: "yellow",
    Verdict.FAIL: "bold red",
    Verdict.BROKEN: "bold magenta",
}

type Cell = tuple[str, str]  # text, style


class Listed(Protocol):
    """The parts of a check that `check --list` prints."""

    @property
    def name(self) -> str:
        """`area.what`."""

    @property
    def guarantee(self) -> str:
        """The promise, as a sentence."""

    @property
    def needs(self) -> AbstractSet[str]:
        """Each completes the sentence 'needs ...'."""

    @property
    def cites(self) -> Sequence[str]:
        """Case numbers and requirement ids."""


def console_of_stdout() -> Console:
    """Return a console that is a terminal only if stdout is one, whatever CI's variables say."""
    return Console(force_terminal=sys.stdout.isatty(), highlight=False)


class Terminal:
    """Prints a run's progress.

    Args:
        console: the console to print to; None: standard output.
        total: the number of checks; 0: unknown.
        now_s: a monotonic clock.
        known: the checks that are known to fail; a line each is printed of them.
    """

    def __init__(
        self,
        console: Console | None = None,
        total: int = 0,
        now_s: Callable[[], float] = time.monotonic,
        known: Sequence[KnownFailure] = (),
    ) -> None:
        self._console = console or console_of_stdout()
        self._now_s = now_s
        self._total = total
        self._known = known
        self._printing = threading.Lock()
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], float] = {}
        self._done = 0
        self._started_s = now_s()
        self._expected_s = 0.0
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        """On a terminal, start to show the running checks."""
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._progress,
                auto_refresh=False,
                transient=True,
            )
            self._live.start()
            self._stopping.clear()
            self._thread = threading.Thread(
                target=self._refresh, args=(self._live,), name="progress", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing the running checks; restore the cursor."""
        self._stop()

    def _refresh(self, live: Live) -> None:
        while not self._stopping.wait(_REFRESH_S):
            with self._printing:
                live.refresh()

    def _stop(self) -> None:
        self._stopping.set()
        thread, self._thread = self._thread, None
        live, self._live = self._live, None
        if thread is not None:
            thread.join()
        if live is not None:
            with self._printing:
                live.stop()

    def begin(
        self, about: Mapping[str, str], total: int | None = None, expected_s: float = 0.0
    ) -> None:
        """Print what is needed to repeat the run; set the number of checks, and how long it takes.

        The duration 0 is unknown.
        """
        with self._lock:
            self._total = self._total if total is None else total
            self._started_s = self._now_s()
            self._expected_s = expected_s
        width = max(map(len, about), default=0)
        lines = [
            Text.assemble((f"{visible(name):<{width}}  ", "dim"), one_line(value, 2000))
            for name, value in about.items()
        ]
        self._print(*lines, Text())

    def note(self, text: str) -> None:
        """Print a remark."""
        self._print(Text(shown(text), "dim"))

    def left(self) -> str:
        """Return an estimate of the rest, as `, about 42 s left`; empty if none can be made."""
        with self._lock:
            left_s = self._started_s + self._expected_s - self._now_s()
            if not self._expected_s:
                return ""
        if left_s < 0:
            return f", {duration(-left_s)} longer than expected"
        return f", about {duration(left_s)} left"

    def started(self, target: str, name: str) -> None:
        """Record that a check started."""
        with self._lock:
            self._running[target, name] = self._now_s()

    def finished(self, result: CheckResult) -> None:
        """Print a check's line and, unless it passed, its findings."""
        with self._lock:
            self._running.pop((result.target, result.name), None)
            self._done += 1
        self._print(*_result_lines(result, result.listed_by(self._known)))

    def end(self, report: RunReport, directory: Path) -> None:
        """Print the summary of the run, and the path of report.html."""
        self._stop()
        lines = [*_causes(report), *_known(report)]
        lines += [Text(), *_table(rows(report)), *_skips(report), *_times(report), Text()]
        counts = report.counts()
        numbers = ", ".join(f"{counts[each]} {each}" for each in ORDER if counts[each])
        if known := len(report.known_failures()):
            numbers += f" ({known} FAIL known)"
        lines.append(
            Text.assemble(
                (f"{report.verdict}", _STYLES[report.verdict]),
                f"  {shown(conclusion(report))}",
            )
        )
        lines.append(Text(f"{numbers or 'no check'} in {duration(report.seconds)}"))
        lines.append(Text(f"report: {visible(str(directory / 'report.html'))}"))
        self._print(*lines)

    def _print(self, *lines: Text) -> None:
        with self._printing:
            _print(self._console, lines)

    def _progress(self) -> Text:
        """Return the running checks; called by the display's thread."""
        now_s = self._now_s()
        with self._lock:
            running = sorted(self._running.items(), key=lambda item: item[1])
            done, total, started_s = self._done, self._total, self._started_s
        of_total = f" of {total}" if total else ""
        head = f"{done}{of_total} done, {duration(now_s - started_s)}{self.left()}"
        text = Text(head, no_wrap=True)
        for (target, name), since_s in running[:RUNNING_MAX]:
            text.append(f"\n  {duration(now_s - since_s):>9}  ", "cyan")
            text.append(f"{visible(target)}  {visible(name)}")
        if len(running) > RUNNING_MAX:
            text.append(f"\n  and {len(running) - RUNNING_MAX} more")
        text.overflow = "ellipsis"
        return text


def _print(console: Console, lines: Sequence[Text]) -> None:
    """Print lines unwrapped; a terminal wraps them itself."""
    text = Text("\n").join(lines)
    # Such a console cannot show every character, but must not fail on any.
    if not console.encoding.startswith("utf"):
        plain = text.plain.encode(console.encoding, "backslashreplace").decode(console.encoding)
        text = Text(plain) if plain != text.plain else text
    console.print(text, soft_wrap=True)


def _result_lines(result: CheckResult, known: KnownFailure | None = None) -> list[Text]:
    line = Text.assemble(
        (f"{result.verdict:<7}", _STYLES[result.verdict]),
        f"  {visible(result.target)}  {visible(result.name):<{_NAME_WIDTH}}",
        f" {result.seconds:7.1f} s",
    )
    if result.verdict is Verdict.SKIPPED:
        line.append(f"  {one_line(reason(result), REASON_CHARACTERS_MAX)}", "dim")
    if known is not None and result.verdict is Verdict.FAIL:
        line.append(f"  known: {one_line(known.reason, REASON_CHARACTERS_MAX)}", "dim")
        return [line]
    if known is not None and result.verdict is Verdict.PASS:
        line.append("  known to fail, but it passed", "bold red")
    lines = [line]
    if result.verdict in {Verdict.FAIL, Verdict.BROKEN}:
        for finding in result.decisive[:FINDINGS_MAX]:
            lines += _finding_lines(finding)
        left_out = len(result.decisive) - FINDINGS_MAX
        lines += [Text(f"    and {left_out} more")] if left_out > 0 else []
        if result.rerun:
            lines.append(Text.assemble("    ", ("rerun: ", "bold"), one_line(result.rerun, 2000)))
    return lines


def _finding_lines(finding: Finding) -> list[Text]:
    lines = [Text(_indented(finding.promise, 4))]
    for name in ("got", "want", "tolerance"):
        value = getattr(finding, name)
        if value:
            lines.append(
                Text.assemble((f"      {name:<9}  ", "dim"), _indented(value, 17).lstrip())
            )
    return lines


def _indented(text: str, columns: int) -> str:
    """Return a text, truncated, with each line indented."""
    margin = " " * columns
    return "\n".join(margin + line for line in shown(text, FIELD_CHARACTERS_MAX).splitlines())


def _causes(report: RunReport) -> list[Text]:
    causes = [cause for cause in report.causes() if not cause.known]
    lines = [Text(), Text("Causes, the most fundamental first", "bold")] if causes else []
    for cause in causes[:CAUSES_MAX]:
        result = cause.result
        lines.append(
            Text.assemble(
                (f"  {result.verdict:<6}", _STYLES[result.verdict]),
                f"  {visible(result.target)}  {visible(result.name)}",
            )
        )
        if result.decisive:
            lines.append(
                Text(f"    {one_line(result.decisive[0].sentence(), FIELD_CHARACTERS_MAX)}")
            )
        if cause.hides:
            what = counted(cause.hides, "check")
            lines.append(Text(f"    {what} could not be judged because of it"))
    left_out = len(causes) - CAUSES_MAX
    return lines + ([Text(f"  and {left_out} more")] if left_out > 0 else [])


def _known(report: RunReport) -> list[Text]:
    """Return what became of the checks that are known to fail."""
    known = [cause for cause in report.causes() if cause.known]
    lines = [Text(), Text("Known failures", "bold")] if known else []
    for cause in known:
        hides = f" ({counted(cause.hides, 'check')} not judged)" if cause.hides else ""
        name = f"{visible(cause.result.target)}  {visible(cause.result.name)}"
        lines.append(Text(f"  {name}  {one_line(cause.known, REASON_CHARACTERS_MAX)}{hides}"))
    passed, unconfirmed = report.unexpected_passes(), report.unconfirmed()
    if passed:
        title = "UNEXPECTED PASSES: known to fail; remove them from the file"
        lines += [Text(), Text(title, "bold red")]
        lines += [Text(f"    {visible(each.target)}  {visible(each.name)}") for each in passed]
    if unconfirmed:
        title = "KNOWN FAILURES NOT JUDGED: these entries neither failed nor passed"
        lines += [Text(), Text(title, "bold magenta")]
        lines += [Text(f"    {visible(str(each))}") for each in unconfirmed]
    return lines


def _table(found: Sequence[SummaryRow]) -> list[Text]:
    """Return the counts by target and area; aligned here, since rich's tables wrap lines."""
    if not found:
        return []
    header: list[Cell] = [(name, "bold") for name in ("target", "area", *ORDER, "seconds")]
    table = [header]
    for row in found:
        cells: list[Cell] = [(visible(row.target), ""), (visible(row.area), "")]
        for verdict in ORDER:
            number = row.counts[verdict]
            cells.append((str(number), _STYLES[verdict] if number else "dim"))
        table.append([*cells, (f"{row.seconds:.1f}", "")])
    widths = [max(len(row[column][0]) for row in table) for column in range(len(header))]
    lines = []
    for cells in table:
        line = Text()
        for column, (text, style) in enumerate(cells):
            left = column < 2  # noqa: PLR2004 - names to the left, numbers to the right
            line.append(f"{text:<{widths[column]}}" if left else f"{text:>{widths[column]}}", style)
            line.append("  ")
        line.rstrip()
        lines.append(line)
    return lines


def _skips(report: RunReport) -> list[Text]:
    lines: list[Text] = []
    grouped = skips_by_reason(report)
    if grouped:
        lines += [Text(), Text("Skipped", "bold")]
    for why, results in grouped.items():
        lines.append(Text(f"  {one_line(why, FIELD_CHARACTERS_MAX)}", "yellow"))
        lines += [Text(f"    {visible(each.target)}  {visible(each.name)}") for each in results]
    unexpected = report.unexpected_skips()
    if unexpected:
        what = counted(len(unexpected), "check")
        lines += [
            Text(),
            Text(f"UNEXPECTED SKIPS: {what} skipped without being allowed to", "bold magenta"),
        ]
        lines += [
            Text(f"    {visible(each.target)}  {visible(each.name)}", "magenta")
            for each in unexpected
        ]
    return lines


def _times(report: RunReport) -> list[Text]:
    steps = times(report)
    width = max((len(visible(step.name)) for step in steps), default=0)
    lines = [Text(), Text("Times", "bold")] if steps else []
    for step in steps:
        budget = f"{duration(step.seconds):>12}, budget {duration(step.budget_s)}"
        line = Text(f"  {visible(step.name):<{width}}{budget}")
        if step.is_over:
            line.append("  WARNING: over its budget", "bold yellow")
        lines.append(line)
    return lines


def render_list(checks: Sequence[Listed], console: Console | None = None) -> None:
    """Print the guarantee of every check, grouped by area."""
    areas: dict[str, list[Listed]] = {}
    for check in checks:
        areas.setdefault(check.name.partition(".")[0], []).append(check)
    lines: list[Text] = []
    for area, members in areas.items():
        lines.append(Text.assemble((area, "bold"), (f"  {counted(len(members), 'check')}", "dim")))
        for check in members:
            lines += [Text(f"  {check.name}", "cyan"), Text(f"      {check.guarantee}")]
            if check.needs:
                lines.append(Text(f"      needs {'; '.join(sorted(check.needs))}", "dim"))
            if check.cites:
                lines.append(Text(f"      cites {', '.join(check.cites)}", "dim"))
        lines.append(Text())
    lines.append(Text(f"{counted(len(checks), 'check')} in {counted(len(areas), 'area')}"))
    _print(console or console_of_stdout(), lines)
