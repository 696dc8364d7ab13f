"""Signals as servers report them."""

import pytest

from harness.dialects.signals import signal_number


@pytest.mark.parametrize(
    ("reported", "number"),
    [
        (9, 9), ("9", 9), ("SIGKILL", 9), ("term", 15), ("killed", 9), ("signal: killed", 9),
        ("signal: aborted (core dumped)", 6), ("user defined signal 1", 10),
        ("signal: user defined signal 2", 12), ("signal 34", 34), ("signal: signal 34", 34),
        ("terminated by signal 7", 7), ("ended by user defined signal 1", 10),
        ("stopped (signal)", 19), ("SIG_SIGKILL", 9), ("SIGNAL_KILL", 9), ("SIGNAL_9", 9),
        ("ended by SIGTERM, as was requested", 15), ("exit: signal: killed", 9),
        ("signal: segmentation fault (core dumped)", 11), ("wait: signal: quit.", 3),
    ],
)  # fmt: skip
def test_a_signal_is_known_by_number_name_and_description(reported: object, number: int) -> None:
    assert signal_number(reported) == number


@pytest.mark.parametrize(
    "reported",
    [
        None, 0, -1, "", "-1", "exit status 1", "exited: 3", "stopped by user", "failed: io error",
        "did not quit", "signal: io error", "SIGNAL_NONE", 2**40, "9" * 5000, "signal " + "9" * 20,
    ],
)  # fmt: skip
def test_what_names_no_signal_is_none(reported: object) -> None:
    assert signal_number(reported) == 0
