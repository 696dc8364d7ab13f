"""The size of a stream's messages: what gRPC's clients accept without being configured."""

from collections.abc import Iterator
from typing import Final

from harness.checks.check import Check, Stage
from harness.checks.common import KIB, MIB
from harness.judge.promises import at_most, equal, repeating
from harness.record.foundations import COMPLETE
from harness.record.history import History
from harness.record.verdict import Finding, Verdict

OUTPUT_BYTES: Final = 12 * MIB
# gRPC's default for received messages; what is in one besides output is a few bytes.
ACCEPTED_BYTES: Final = 4 * MIB - KIB
ACCEPTED_WHY: Final = "gRPC's default of 4 MiB for a received message"


def run_messages(stage: Stage) -> None:
    """Let a job write much, and read it once it has ended."""
    with stage.client() as client:
        job_id = client.must_start("head", ["-c", str(OUTPUT_BYTES), "/dev/zero"])
        for label in ("live", "replay"):
            client.stream(job_id, label=label)


def judge_messages(history: History) -> Iterator[Finding]:
    """All of it arrives, in messages that every client can receive."""
    for label in ("live", "replay"):
        stream = history.stream(label)
        got_bytes = stream.received_bytes
        finding = equal(f"bytes of a large output ({label})", got_bytes, OUTPUT_BYTES)
        yield repeating(finding, COMPLETE)
        promise = f"bytes of output in the largest message ({label})"
        largest = at_most(promise, stream.largest_message_bytes, ACCEPTED_BYTES, ACCEPTED_WHY)
        # What did not arrive had no message.
        if got_bytes == OUTPUT_BYTES or largest.verdict is Verdict.FAIL:
            yield largest


MESSAGES: Final = Check(
    "streams.messages",
    "No message is larger than what gRPC's clients accept by default.",
    run_messages,
    judge_messages,
    cites=("R-STREAM-9",),
)

CHECKS: Final = (MESSAGES,)
