"""The four verdicts, and the one exception that stands for a fault of our own."""

from enum import StrEnum


class Verdict(StrEnum):
    """What a check may say. Their order is how much they weigh when they are merged."""

    PASS = "PASS"  # noqa: S105 - no password
    SKIPPED = "SKIPPED"
    FAIL = "FAIL"
    BROKEN = "BROKEN"


class BrokenError(Exception):
    """The harness, its virtual machine or this host failed: nothing can be said of the server."""
