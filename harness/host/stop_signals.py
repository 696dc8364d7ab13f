"""SIGINT, SIGTERM, SIGHUP and SIGQUIT end a program: contexts are left, so that nothing remains.

A signal that was ignored when the program started stays ignored, as SIGHUP by nohup, and SIGINT and
SIGQUIT by sh with &. The exit code is 128 + N. A second signal other than SIGHUP, which terminals
and shells may both send, ends the program at once.
"""

import os
import signal
from types import FrameType
from typing import Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Stopping:
    def __init__(self) -> None:
        self._begun = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self._begun:
            self._begun = True
            raise SystemExit(128 + number)
        if number != signal.SIGHUP:
            os._exit(128 + number)


def exit_on_stop_signals() -> None:
    """Handle the signals; call it on the main thread, once."""
    stopping = _Stopping()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stopping)
