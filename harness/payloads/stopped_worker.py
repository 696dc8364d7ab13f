"""A worker that a stop of its job reaches: the argument is how it takes the stop, and its name.

It writes "NAME ready PID" and waits; for each SIGTERM it writes "NAME term".
  handles   after the first one it works on for a while, writes "NAME last words" and exits
  session   the same, in a session of its own
  paused    the same, and it stops itself by SIGSTOP before: it must be continued
  ignores   it ignores SIGTERM
"""

import os
import signal
import sys
import time

WORKS_ON_S = 0.7
ENDS_AFTER_S = 300  # without a stop: the harness has gone


def say(name: str, text: str) -> None:
    """Write one line, in one write: the lines of several workers never mix."""
    os.write(1, f"{name} {text}\n".encode())


def wait_term(timeout_s: float) -> bool:
    """Wait for a SIGTERM, which is blocked; return whether one came in time."""
    return signal.sigtimedwait({signal.SIGTERM}, max(0.0, timeout_s)) is not None


def run(kind: str) -> None:
    """Wait for the stop, and take it as the kind says."""
    if kind == "ignores":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if kind == "session":
        os.setsid()
    say(kind, f"ready {os.getpid()}")
    if kind == "paused":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "ignores" or not wait_term(ENDS_AFTER_S):
        time.sleep(ENDS_AFTER_S)
        return
    say(kind, "term")
    ends_at_s = time.monotonic() + WORKS_ON_S
    while wait_term(ends_at_s - time.monotonic()):
        say(kind, "term")
    say(kind, "last words")


if __name__ == "__main__":
    run(sys.argv[1])
