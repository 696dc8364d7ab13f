"""What a program leaves behind is found, reported, killed, and fails the run."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.host.clock import poll_until

GUARD = (sys.executable, "-m", "harness.host.leftovers")
# The same, for what is certain not to end by itself.
IMPATIENT = (
    sys.executable, "-c",
    ("import sys; from harness.host.leftovers import run_guarded as run; "
    "sys.exit(run(sys.argv[2:], tolerate=sys.argv[1] == 'tolerate', settle_s=0.2))"),
)  # fmt: skip
# A daemon in its own session, whose parent has ended, and which ignores SIGTERM.
STRAY = "trap '' TERM; echo $$ > {}; while :; do sleep 0.2; done"


def planted(path: Path, rest: str = "") -> list[str]:
    """Return a program that leaves a process behind, once that has written its id."""
    script = f'setsid -f sh -c "$0"; until [ -s {path} ]; do sleep 0.05; done; {rest}'
    return ["sh", "-c", script, STRAY.format(path)]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("guard", "rest", "exit_code"),
    [
        ((*GUARD, "--tolerate"), "exit 0", 0),
        ((*IMPATIENT, "fail"), "exit 0", 1),
        ((*IMPATIENT, "fail"), "exit 7", 7),
        ((*IMPATIENT, "fail"), "kill -9 $$", 137),
        ((*IMPATIENT, "tolerate"), "exit 7", 7),
    ],
)
def test_a_process_left_behind_is_reported_and_killed_and_fails_the_run(
    guard: tuple[str, ...], rest: str, exit_code: int, tmp_path: Path
) -> None:
    done = run(*guard, *planted(tmp_path / "stray", rest))
    pid = int((tmp_path / "stray").read_text())
    assert f"process {pid}: \"sh -c trap '' TERM;" in done.stderr
    assert not psutil.pid_exists(pid)
    assert done.returncode == exit_code


def test_a_program_that_leaves_nothing_passes_with_its_output_and_exit_code() -> None:
    done = run(*GUARD, "sh", "-c", "echo out; setsid -f true; (sleep 0.3 &); exit 3")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "", 3)


def test_a_signal_ends_the_program_and_then_what_it_left(tmp_path: Path) -> None:
    words = planted(
        tmp_path / "stray", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    )
    with subprocess.Popen(
        [*IMPATIENT, "fail", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as guard:
        assert guard.stdout
        assert guard.stdout.readline() == b"ready\n"
        guard.send_signal(signal.SIGTERM)
        _, errors = guard.communicate(timeout=100)
    pid = int((tmp_path / "stray").read_text())
    assert f"process {pid}:".encode() in errors
    assert guard.returncode == 9
    poll_until(lambda: None if psutil.pid_exists(pid) else True, 20, "the stray's end")


def test_a_signal_that_comes_as_the_program_ends_leaves_its_exit_code() -> None:
    script = (
        "import os, signal, subprocess\n"
        "from harness.host import leftovers\n"
        "program = subprocess.Popen(['sh', '-c', 'exit 5'])\n"
        "os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)\n"
        "leftovers._pass_signals_to(program)\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "print(leftovers._wait(program))\n"
    )
    done = run(sys.executable, "-c", script)
    assert (done.stdout, done.stderr) == ("5\n", "")


def test_every_long_command_of_make_has_the_guard() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for target in ("test", "selftest", "mutants", "mutation-score"):
        recipe = makefile.partition(f"\n{target}: ")[2].partition("\n\n")[0]
        assert "@$(GUARD)" in recipe, target
