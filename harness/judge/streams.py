"""Judges streams: every reader gets every byte, in order."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from harness.judge.promises import holds, timed_out
from harness.record.history import Outcome, Stream
from harness.record.verdict import Finding

# A handshake that takes so long was not refused.
CONNECT_S: Final = 5.0


def fault_of(stream: Stream, end_offset: int, start_offset: int | None = 0) -> str:
    """Return what is wrong with a stream that must have all bytes between two offsets, or ''.

    With None as its start, any start is right: another promise is about that.
    """
    if start_offset is not None and stream.received_bytes and stream.start_offset != start_offset:
        return f"{stream.label}: begins at offset {stream.start_offset}"
    if stream.wrong_at is not None:
        return f"{stream.label}: a wrong byte at offset {stream.wrong_at}"
    if stream.gap:
        return f"{stream.label}: {stream.gap}"
    if stream.outcome is not Outcome.OK:
        kind = "no end in time" if stream.outcome is Outcome.UNKNOWN else stream.code
        return f"{stream.label}: {kind} after {stream.received_bytes} bytes: {stream.detail}"
    received_to = stream.start_offset + stream.received_bytes
    if stream.code == "OK" and received_to != end_offset:
        return f"{stream.label}: ended at offset {received_to}"
    return ""


def all_exact(
    promise: str, streams: Sequence[Stream], end_offset: int, start_offset: int | None = 0
) -> Finding:
    """Promise that each stream is byte-exact, without a gap, from a start to an end."""
    faults = [fault for each in streams if (fault := fault_of(each, end_offset, start_offset))]
    got = f"{len(streams) - len(faults)} of {len(streams)}"
    if faults:
        got = f"{got}; {'; '.join(faults[:3])}"
    want = f"{len(streams)} of {len(streams)}, each to offset {end_offset}"
    finding = holds(promise, kept=bool(streams) and not faults, got=got, want=want)
    faulty = [each for each in streams if fault_of(each, end_offset, start_offset)]
    return if_cut_short(finding, faulty)


def if_cut_short(finding: Finding, faulty: Sequence[Stream]) -> Finding:
    """Return a finding whose FAIL may be the load's if all faulty streams were cut short by time.

    A wrong byte is wrong on any machine.
    """
    if not faulty or not all(_is_cut_short(each) for each in faulty):
        return finding
    waited_s = min(each.ended_s - each.started_s for each in faulty)
    return timed_out(finding, waited_s)


def _is_cut_short(stream: Stream) -> bool:
    """Return whether a deadline, or a reader that gave up, may have cut short a right stream.

    A connection that is not made in time ends as UNAVAILABLE; one that is refused does so at once.
    """
    waited_s = stream.ended_s - stream.started_s
    unconnected = stream.code == "UNAVAILABLE" and stream.first_byte_s is None
    unconnected = unconnected and waited_s >= CONNECT_S
    late = stream.unended or stream.outcome is Outcome.UNKNOWN or unconnected
    return late and stream.wrong_at is None and not stream.gap


def identical(promise: str, streams: Sequence[Stream]) -> Finding:
    """Promise that all streams received the same bytes."""
    digests = Counter(stream.sha256 for stream in streams)
    got = ", ".join(f"{count} x {digest[:12]}" for digest, count in digests.most_common(4))
    finding = holds(promise, kept=len(digests) == 1, got=got or "no stream", want="one SHA-256")
    usual = digests.most_common(1)
    return if_cut_short(finding, [each for each in streams if each.sha256 != usual[0][0]])


def most_at_once(streams: Sequence[Stream]) -> int:
    """Return the largest number of streams that were open at once, from first byte to end."""
    moments: list[tuple[float, int]] = []
    for stream in streams:
        if stream.first_byte_s is not None:
            moments += [(stream.first_byte_s, 1), (stream.ended_s, -1)]
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def by_job(streams: Sequence[Stream]) -> Iterator[tuple[str, list[Stream]]]:
    """Group streams by job, in the order of each job's first stream."""
    for job_id in dict.fromkeys(stream.job_id for stream in streams):
        yield job_id, [stream for stream in streams if stream.job_id == job_id]
