"""Stream slots: at most so many streams, refusal at once beyond it, and slots that are freed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import server_counts
from harness.drive.client import Client
from harness.drive.fault_proxy import FaultProxy, NetworkFault
from harness.drive.receiver import StreamPlan
from harness.drive.streamers import ConcurrentReaders, Reader
from harness.host.clock import measured_window, seconds_until
from harness.judge.promises import (
    answered,
    assumed,
    at_most_s,
    equal,
    floor,
    holds,
    in_time,
    timed_out,
)
from harness.record.history import History, Observation, Outcome
from harness.record.scopes import separately
from harness.record.verdict import Finding, Verdict
from harness.targets.target import Variant

LAUNCHED_WITH_CAP: Final = frozenset({Need.LAUNCH, Need.STREAM_CAP})
REFUSED: Final = StreamPlan(timeout_s=10, may_time_out=True)
FREED_S: Final = 10.0


def _is_admitted(client: Client, job_id: str, label: str) -> bool:
    plan = StreamPlan(stop_after_bytes=1, timeout_s=10, may_time_out=True)
    stream = client.stream(job_id, plan, label=label)
    return stream.outcome is Outcome.OK


# -- a server that is full ------------------------------------------------------------------------

STREAMS_MAX: Final = 3
REFUSED_AT_ONCE_S: Final = 3.0  # a call over TLS on a busy machine; a queue would take minutes


@dataclass(frozen=True, slots=True)
class FullServer(Observation):
    """A server with as many streams as it admits.

    Attributes:
        joined: how many streams had their first byte.
        freed_after_s: how long after one was cancelled another was admitted; None: not in time.
    """

    joined: int
    freed_after_s: float | None


def run_capacity(stage: Stage) -> None:
    """Open as many streams as a server admits, and one more; then cancel one."""
    with (
        stage.fresh_server(Variant(max_streams=STREAMS_MAX)) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        plan = StreamPlan(timeout_s=60)
        receivers = [client.receiver(job_id, plan, label=f"open {i}") for i in range(STREAMS_MAX)]
        with ThreadPoolExecutor(STREAMS_MAX) as pool:
            opened = [pool.submit(each.run) for each in receivers]
            joined = sum(
                each.first_byte.wait(stage.join_timeout_s) and each.received_bytes > 0
                for each in receivers
            )
            client.stream(job_id, REFUSED, label="one too many")
            client.query(job_id, label="query meanwhile")
            client.start("true", label="start meanwhile")
            receivers[0].cancel()
            freed_s = seconds_until(lambda: _is_admitted(client, job_id, "freed"), FREED_S)
            stage.record(FullServer(joined, freed_s))
            client.stop(job_id, label="stop meanwhile")
            for each in opened:
                each.result()


def judge_capacity(history: History) -> Iterator[Finding]:
    """One stream too many is refused at once, and everything else continues."""
    seen = history.the(FullServer)
    joined = floor("open streams", seen.joined, STREAMS_MAX)
    yield joined
    if joined.verdict is not Verdict.PASS:
        return
    refused = history.stream("one too many")
    yield equal("a stream over the maximum is refused", refused.code, "RESOURCE_EXHAUSTED")
    kept, want = "max capacity reached" in refused.detail.lower(), "... max capacity reached ..."
    yield holds("the refusal gives the reason", kept=kept, got=refused.detail, want=want)
    took_s = refused.ended_s - refused.started_s
    yield at_most_s("seconds until it is refused", took_s, REFUSED_AT_ONCE_S)
    for what in ("query", "start", "stop"):
        call = history.call(f"{what} meanwhile")
        yield answered(f"{what} is answered while all streams are taken", call)
    freed_s = seen.freed_after_s
    yield in_time("a cancelled stream's slot is free again", freed_s, FREED_S)


CAPACITY: Final = Check(
    "streams.capacity",
    "A stream over the maximum is refused at once; start, stop and query continue.",
    run_capacity,
    judge_capacity,
    needs=LAUNCHED_WITH_CAP,
    cites=("69", "R-STREAM-8"),
)

# -- clients that are gone ------------------------------------------------------------------------

GONE_READERS: Final = 4
# Between probes, and from a probe to its answer: a live reader on a busy machine may answer a
# second late.
KEEPALIVE_S: Final = 3
# Within which the slots of a client must be free. A vanished client is noticed after a probe and a
# missing answer, KEEPALIVE_S each; the rest is for a busy machine.
FREED_WITHIN_S: Final = {"killed": 10.0, "vanished": 20.0}
# Silence of the job and its readers before these vanish: the server has sent probes by then.
SILENT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class SlotsOfGoneClients(Observation):
    """How a server noticed that all of its clients were gone.

    Attributes:
        fate: "killed", or "vanished": their network became a blackhole.
        joined: how many streams had their first byte.
        freed_after_s: how long until another stream was admitted; None: not in time.
    """

    fate: str
    joined: int
    freed_after_s: float | None


def run_slots(stage: Stage) -> None:
    """Fill a server with readers, and kill them; then with others, and drop their packets."""
    files = stage.target.identities.files("user")
    with (
        stage.fresh_server(Variant(max_streams=GONE_READERS, keepalive_s=KEEPALIVE_S)) as server,
        stage.client(server=server) as client,
        FaultProxy(server.address, NetworkFault()) as proxy,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 300"])
        for fate, bound_s in FREED_WITHIN_S.items():
            address = server.address if fate == "killed" else proxy.address
            readers = [
                Reader(f"{fate} {i}", job_id, "none", timeout_s=300) for i in range(GONE_READERS)
            ]
            with ConcurrentReaders(
                address, files, readers, stage.recorder, dialect=stage.dialect
            ) as running:
                joined = running.wait_joined(stage.join_timeout_s)
                client.stream(job_id, REFUSED, label=f"full before {fate}")
                if fate == "killed":
                    running.kill()
                else:
                    measured_window(SILENT_S)
                    proxy.blackhole()
                freed_s = seconds_until(lambda: _is_admitted(client, job_id, "freed"), bound_s)
                stage.record(SlotsOfGoneClients(fate, joined, freed_s))
        client.stop(job_id)


def judge_slots(history: History) -> Iterator[Finding]:
    """The slots of clients that are gone are free within the bound."""
    observed = history.all(SlotsOfGoneClients)
    fates = [seen.fate for seen in observed]
    both = fates == list(FREED_WITHIN_S)
    yield assumed("clients were killed, and clients vanished", true=both, got=fates)
    yield from separately(_judge_slot(seen, history) for seen in observed)


def _judge_slot(seen: SlotsOfGoneClients, history: History) -> Iterator[Finding]:
    yield floor(f"streams of clients that are {seen.fate}", seen.joined, GONE_READERS)
    full = history.stream(f"full before {seen.fate}").code
    yield equal("the server is full", full, "RESOURCE_EXHAUSTED")
    freed_s, bound_s = seen.freed_after_s, FREED_WITHIN_S[seen.fate]
    yield in_time(f"the slot of a client that is {seen.fate} is freed", freed_s, bound_s)


SLOTS: Final = Check(
    "streams.slots",
    "The slot of a killed client is freed at once, that of a vanished one by keepalive.",
    run_slots,
    judge_slots,
    needs=LAUNCHED_WITH_CAP | {Need.KEEPALIVE},
    cites=("70", "R-STREAM-4", "R-STREAM-5"),
    time_limit_s=180,
)

# -- cancelled streams ----------------------------------------------------------------------------

CYCLES: Final = 40
ADMITTED_S: Final = 5.0
SETTLED_S: Final = 45.0  # gRPC's own pool keeps an idle thread for 20 s
# A pool keeps a thread that it started while the previous one was still ending.
SPARE_THREADS: Final = 5
MISSES_MAX: Final = 2  # more would show nothing new, and each takes seconds


@dataclass(frozen=True, slots=True)
class CancelledStreams(Observation):
    """Streams that were cancelled one after the other.

    Attributes:
        cycles: how many were to be opened and cancelled.
        not_admitted: how many were not admitted in time after the previous one was cancelled.
        threads_before, threads_after: of the server.
        settled: whether the threads were down to `threads_before` and some spare ones in time.
    """

    cycles: int
    not_admitted: int
    threads_before: int
    threads_after: int
    settled: bool


def run_cancel(stage: Stage) -> None:
    """Open and cancel streams of a silent job, one after the other, on a server for two."""
    with (
        stage.fresh_server(Variant(max_streams=2)) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 300"])
        for _ in range(2):
            _is_admitted_soon(client, job_id)  # so that the pool has started its threads
        before = server_counts(stage, server).threads
        cycles = stage.pick(full=CYCLES, small=10)
        not_admitted = 0
        for _ in range(cycles):
            not_admitted += not _is_admitted_soon(client, job_id)
            if not_admitted > MISSES_MAX:
                break
        settled_s = seconds_until(
            lambda: server_counts(stage, server).threads <= before + SPARE_THREADS,
            stage.patience(SETTLED_S),
        )
        after = server_counts(stage, server).threads
        settled = settled_s is not None
        stage.record(CancelledStreams(cycles, not_admitted, before, after, settled))
        client.must_stop(job_id)


def _is_admitted_soon(client: Client, job_id: str) -> bool:
    return seconds_until(lambda: _is_admitted(client, job_id, "cycle"), ADMITTED_S) is not None


def judge_cancel(history: History) -> Iterator[Finding]:
    """Every stream was admitted, and no thread is left."""
    seen = history.the(CancelledStreams)
    yield floor("cycles", seen.cycles, 10)
    kept_slots = equal("cancelled streams that kept their slot", seen.not_admitted, 0)
    yield timed_out(kept_slots, ADMITTED_S)
    left = holds(
        "a cancelled stream of a silent job leaves no thread",
        kept=seen.settled,
        got=f"{seen.threads_after} threads",
        want=f"at most {seen.threads_before} as before, and {SPARE_THREADS} spare",
    )
    yield timed_out(left, SETTLED_S)


CANCEL: Final = Check(
    "streams.cancel",
    "A cancelled stream of a silent job frees its slot and its thread at once.",
    run_cancel,
    judge_cancel,
    needs=LAUNCHED_WITH_CAP | {Need.HOST},
    cites=("71", "R-STREAM-4"),
    time_limit_s=240,
    alone=True,
)

CHECKS: Final = (CAPACITY, SLOTS, CANCEL)
