"""The progress of a run, printed to a file and to a terminal."""

import io
import re
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from harness.record.verdict import Finding, Verdict
from harness.report.terminal import Terminal, console_of_stdout, render_list
from tests.harness.report.cases import report_of, result_of

NASTY = "\x1b]0;owned\x07\x1b[2J\r[bold]<b> :smile: \udc80"


def plain() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=False, width=40), file


def test_output_to_a_file_is_one_plain_line_per_check() -> None:
    console, file = plain()
    with Terminal(console) as terminal:
        terminal.begin({"seed": "4711", "kernel": "Linux 6.12"}, total=2)
        terminal.note("local: the target lacks cgroups")
        terminal.started("local", "streams.binary")
        terminal.finished(result_of("streams.binary", Verdict.PASS, seconds=1.26))
        terminal.finished(result_of("limits.cpu", Verdict.SKIPPED, promise="lacks cgroups"))
    assert file.getvalue().splitlines() == [
        "seed    4711",
        "kernel  Linux 6.12",
        "",
        "local: the target lacks cgroups",
        "PASS     local  streams.binary                               1.3 s",
        "SKIPPED  local  limits.cpu                                   1.0 s  lacks cgroups",
    ]


def test_failure_has_promise_got_want_tolerance_and_rerun_command() -> None:
    console, file = plain()
    findings = (
        Finding(Verdict.PASS, "kept"),
        Finding(Verdict.FAIL, "share of a processor", "0.81", "0.5", "±10%"),
        *(Finding(Verdict.FAIL, f"reader-{n} got everything", "two\nlines") for n in range(6)),
    )
    Terminal(console).finished(result_of("limits.cpu", Verdict.FAIL, findings=findings))
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("FAIL     local  limits.cpu")
    assert lines[1:8] == [
        "    share of a processor",
        "      got        0.81",
        "      want       0.5",
        "      tolerance  ±10%",
        "    reader-0 got everything",
        "      got        two",
        "                 lines",
    ]
    assert lines[-2:] == ["    and 2 more", "    rerun: harness run --only limits.cpu"]


def test_long_lines_are_not_wrapped_and_control_characters_are_escaped() -> None:
    console, file = plain()
    terminal = Terminal(console)
    terminal.finished(
        result_of("a.one", Verdict.BROKEN, promise=NASTY + "x" * 300, target=f"t{NASTY}")
    )
    terminal.note(NASTY)
    terminal.begin({NASTY: NASTY})
    text = file.getvalue()
    assert re.findall(r"[^\n\t -~]", text) == []
    assert r"    \x1b]0;owned\x07\x1b[2J\r[bold]<b> :smile: \udc80" + "x" * 300 + "\n" in text


def test_ascii_console_gets_escapes() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Terminal(Console(file=file, force_terminal=False)).note("±10% 漢")
    file.flush()
    assert raw.getvalue() == b"\\xb110% \\u6f22\n"


def test_summary_has_counts_every_skip_and_the_skips_not_allowed() -> None:
    console, file = plain()
    report = report_of(
        result_of("streams.one", Verdict.PASS),
        result_of("limits.one", Verdict.SKIPPED, promise="lacks cgroups"),
        result_of("limits.two", Verdict.SKIPPED, promise="lacks cgroups"),
        skips_allowed=("local:limits.one",),
    )
    Terminal(console).end(report, Path("/run/42"))
    assert file.getvalue().splitlines() == [
        "",
        "target  area     FAIL  BROKEN  SKIPPED  PASS  seconds",
        "local   streams     0       0        0     1      1.0",
        "local   limits      0       0        2     0      2.0",
        "",
        "Skipped",
        "  lacks cgroups",
        "    local  limits.one",
        "    local  limits.two",
        "",
        "UNEXPECTED SKIPS: 1 check skipped without being allowed to",
        "    local  limits.two",
        "",
        "BROKEN  Inconclusive: 1 check skipped without being allowed to.",
        "2 SKIPPED, 1 PASS in 12 s",
        "report: /run/42/report.html",
    ]


def test_run_of_skips_ends_broken() -> None:
    console, file = plain()
    Terminal(console).end(report_of(result_of("a.one", Verdict.SKIPPED)), Path("/run"))
    assert "\nBROKEN  Inconclusive: no check passed" in file.getvalue()


class SlowFile(io.StringIO):
    """Waits in each write, so that another thread would interleave."""

    def write(self, text: str) -> int:
        threading.Event().wait(0.001)
        return super().write(text)


def test_lines_of_concurrent_threads_do_not_interleave() -> None:
    file = SlowFile()
    console = Console(file=file, force_terminal=False)
    names = [[f"area.check-{thread}-{n}" for n in range(10)] for thread in range(8)]

    def work(terminal: Terminal, mine: list[str]) -> None:
        for name in mine:
            terminal.started("local", name)
            terminal.finished(result_of(name, Verdict.FAIL, promise=f"promise of {name}"))

    with Terminal(console) as terminal:
        threads = [threading.Thread(target=work, args=(terminal, mine)) for mine in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    printed = re.findall(
        r"FAIL     local  (\S+) +1\.0 s\n    promise of \1\n    rerun: .*--only \1\n",
        file.getvalue(),
    )
    assert sorted(printed) == sorted(name for mine in names for name in mine)
    assert file.getvalue().count("\n") == 3 * 80


class Screen(io.StringIO):
    """A terminal that sets an event when an expected text is written to it."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self._wanted = wanted
        self.seen = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._wanted in text:
            self.seen.set()
        return written


def test_terminal_shows_running_checks_with_durations_and_the_number_done() -> None:
    screen = Screen("streams.slow")
    console = Console(
        file=screen, force_terminal=True, width=60, color_system="standard", legacy_windows=False
    )
    clock_s = 100.0
    with Terminal(console, total=3, now_s=lambda: clock_s) as terminal:
        terminal.started("local", "streams.quick")
        terminal.finished(result_of("streams.quick", Verdict.PASS))
        terminal.started("local", "streams.slow")
        clock_s = 112.0
        assert screen.seen.wait(10)
        screen.seen.clear()
        assert screen.seen.wait(10)
        terminal.end(report_of(result_of("streams.quick", Verdict.PASS)), Path("/run"))
    text = screen.getvalue()
    without_colours = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "1 of 3 done, 12 s" in without_colours
    assert "       12 s  local  streams.slow" in without_colours
    assert "\x1b[32mPASS   \x1b[0m" in text
    # The running checks are erased before the summary, and the cursor is restored.
    assert "streams.slow" not in text[text.rindex("target") :]
    assert "\x1b[?25h" in text


def test_terminal_cursor_is_restored_when_the_run_raises() -> None:
    screen = Screen("")
    terminal = Terminal(Console(file=screen, force_terminal=True, width=60))

    def break_off() -> None:
        with terminal:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")


def test_pipe_is_not_a_terminal_whatever_ci_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    with Terminal() as terminal:
        terminal.finished(result_of("a.one", Verdict.PASS))
    assert not console_of_stdout().is_terminal
    assert "\x1b" not in file.getvalue()


class _Need(StrEnum):
    PYTHON = "python3 on its machine"
    CGROUPS = "a cgroup v2 for each job"


class _Check(NamedTuple):
    name: str
    guarantee: str
    needs: frozenset[_Need] = frozenset()
    cites: tuple[str, ...] = ()


def test_list_has_every_guarantee_by_area() -> None:
    console, file = plain()
    checks = [
        _Check("streams.binary", "Output is carried as it was written."),
        _Check("limits.cpu", "A job keeps to its quota.", frozenset(_Need), ("4.1", "R9")),
        _Check("streams.replay", "Late streamers get everything."),
    ]
    render_list(checks, console)
    assert file.getvalue().splitlines() == [
        "streams  2 checks",
        "  streams.binary",
        "      Output is carried as it was written.",
        "  streams.replay",
        "      Late streamers get everything.",
        "",
        "limits  1 check",
        "  limits.cpu",
        "      A job keeps to its quota.",
        "      needs a cgroup v2 for each job; python3 on its machine",
        "      cites 4.1, R9",
        "",
        "3 checks in 2 areas",
    ]
