"""`processes.run`: time limits, Ctrl-C, and no process left behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest

from harness.host.clock import poll_until
from harness.host.processes import run, start_bound
from harness.host.stop_signals import STOP_SIGNALS
from harness.record.verdict import BrokenError


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def written_pid(path: Path) -> int | None:
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith("\n") else None


def test_run_returns_output_errors_and_exit_code() -> None:
    done = run(["sh", "-c", "cat; echo bad >&2; exit 3"], 30, text_in="good")
    assert (done.exit_code, done.stdout, done.stderr) == (3, "good", "bad\n")


def test_a_bound_program_outlives_the_thread_that_started_it() -> None:
    """A lasting thread starts it: the kernel kills it when the thread that started it ends."""
    started = []

    def start() -> None:
        with Path(os.devnull).open("wb") as log:
            started.append((threading.get_native_id(), start_bound(["cat"], log, stdin=PIPE)))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    [(thread_id, process)] = started
    with process:
        ended = Path(f"/proc/self/task/{thread_id}")
        poll_until(lambda: None if ended.exists() else True, 20, "the kernel's end of the thread")
        # A signal would have been sent by now; a program that has one reads nothing more.
        assert process.stdin
        process.stdin.close()
        assert process.wait(20) == 0


def test_one_thread_starts_all_bound_programs_also_if_several_are_the_first() -> None:
    script = (
        "import concurrent.futures, os, threading\n"
        "both = threading.Barrier(2)\n"
        "class Slow(concurrent.futures.ThreadPoolExecutor):\n"
        "    def __init__(self, *a, **k):\n"
        "        if threading.current_thread() is not threading.main_thread():\n"
        "            both.wait(20)\n"
        "        super().__init__(*a, **k)\n"
        "concurrent.futures.ThreadPoolExecutor = Slow\n"
        "from harness.host.processes import start_bound\n"
        "def start():\n"
        "    with open(os.devnull, 'wb') as log:\n"
        "        print(start_bound(['sleep', '1'], log).wait(20))\n"
        "starters = [threading.Thread(target=start) for _ in range(2)]\n"
        "for each in starters: each.start()\n"
        "for each in starters: each.join()\n"
    )
    assert run([sys.executable, "-c", script], 60).require("starting two") == "0\n0\n"


STARTS_A_BOUND_PROGRAM = (
    "import os, sys\n"
    "from harness.host.processes import start_bound\n"
    "with open(os.devnull, 'wb') as log:\n"
    "    print(start_bound(['sh', '-c', sys.argv[1]], log).pid, flush=True)\n"
    "sys.stdin.read()\n"
)


def test_a_bound_program_is_killed_with_the_process_that_started_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", STARTS_A_BOUND_PROGRAM, f"echo $$ >{ready}; exec sleep 100"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE) as harness:
        assert harness.stdout
        pid = int(harness.stdout.readline())
        assert poll_until(lambda: written_pid(ready), 20, "the bound program") == pid
        harness.kill()
    poll_until(lambda: has_ended(pid) or None, 20, "the end of the bound program")


def test_a_bound_program_whose_starter_was_killed_first_does_not_run(tmp_path: Path) -> None:
    """The kernel sends no signal for a parent that has ended before it was asked for."""
    ran, held, slow = (tmp_path / name for name in ("ran", "held", "setpriv"))
    os.mkfifo(held)
    slow.write_text(f'#!/bin/sh\nread _ <{held}\nexec {shutil.which("setpriv")} "$@"\n')
    slow.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", STARTS_A_BOUND_PROGRAM, f"echo >{ran}"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, env=environment) as harness:
        assert harness.stdout
        pid = int(harness.stdout.readline())
        harness.kill()
    held.write_text("go\n")
    poll_until(lambda: has_ended(pid) or None, 20, "the end of the bound program")
    assert not ran.exists()


def test_missing_program_is_broken() -> None:
    with pytest.raises(BrokenError, match="no-such-program is not installed"):
        run(["no-such-program"], 30)


def test_timeout_kills_the_process_tree_and_keeps_its_errors(tmp_path: Path) -> None:
    script = f"echo why >&2; sh -c 'sleep 100 & echo $! > {tmp_path}/child; wait'; echo over"
    with pytest.raises(BrokenError, match=r"timed out after 1\.5 s\nwhy"):
        run(["sh", "-c", script], 1.5)
    child = written_pid(tmp_path / "child")
    assert child is not None
    poll_until(lambda: has_ended(child) or None, 10, "the end of the grandchild")


def test_timeout_does_not_wait_for_a_process_that_left_the_session(tmp_path: Path) -> None:
    script = f"setsid -f sh -c 'echo $$ > {tmp_path}/stray; exec sleep 100'; exec sleep 100"
    started_s = time.monotonic()
    with pytest.raises(BrokenError, match=r"timed out after 1\.5 s"):
        run(["sh", "-c", script], 1.5)
    assert time.monotonic() - started_s < 30
    stray = poll_until(lambda: written_pid(tmp_path / "stray"), 10, "the stray's pid")
    os.kill(stray, signal.SIGKILL)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle Ctrl-C, which a shell without job control ignores in background processes, and more.

    The other signals interrupt in the same way, as they do in each of our programs.
    """
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_process_tree(tmp_path: Path) -> None:
    pid_file = tmp_path / "child"

    def interrupt() -> None:
        poll_until(lambda: written_pid(pid_file), 30, "the child's pid")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", f"sleep 100 & echo $! > {pid_file}; wait"], 60)
    thread.join()
    child = written_pid(pid_file)
    assert child is not None
    poll_until(lambda: has_ended(child) or None, 10, "the end of the child")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_during_the_start_ends_the_program(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self.pid)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run(["sleep", "100"], 60)
    [child] = started
    poll_until(lambda: has_ended(child) or None, 10, "the end of the child")
    assert signal.getsignal(number) == before
