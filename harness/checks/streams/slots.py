"""Slots: a maximum of streams, refused at once beyond it, and freed when a client is gone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import server_count
from harness.drive.client import Client
from harness.drive.fault_proxy import FaultProxy, NetworkFault
from harness.drive.receiver import StreamPlan
from harness.drive.streamers import Reader, crowd
from harness.host.clock import came_true, measured_window
from harness.judge.promises import answered, at_most, equal, floor, holds
from harness.record.history import History, Outcome
from harness.record.verdict import Finding, Verdict
from harness.targets.target import Variant

REFUSED_AT_ONCE_S: Final = 3.0  # a call over TLS on a busy machine; a queue would wait for minutes


def run_capacity(stage: Stage) -> None:
    """A server for three streams, and a fourth."""
    with (
        stage.fresh_server(Variant(max_streams=3)) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        plan = StreamPlan(timeout_s=60)
        receivers = [client.receiver(job_id, plan, label=f"open {i}") for i in range(3)]
        with ThreadPoolExecutor(3) as pool:
            opened = [pool.submit(each.run) for each in receivers]
            joined = sum(
                each.first_byte.wait(stage.join_timeout_s) and each.received_bytes > 0
                for each in receivers
            )
            stage.fact("joined", joined)
            refused = StreamPlan(timeout_s=10, may_time_out=True)
            client.stream(job_id, refused, label="one too many")
            client.query(job_id, label="query meanwhile")
            client.start("true", label="start meanwhile")
            receivers[0].cancel()
            freed_s = came_true(lambda: _is_admitted(client, job_id, "freed"), 10)
            stage.fact("freed after", freed_s if freed_s is not None else -1)
            client.stop(job_id, label="stop meanwhile")
            for each in opened:
                each.result()


def _is_admitted(client: Client, job_id: str, label: str) -> bool:
    plan = StreamPlan(stop_after_bytes=1, timeout_s=10, may_time_out=True)
    stream = client.stream(job_id, plan, label=label)
    return stream.outcome is Outcome.OK


def judge_capacity(history: History) -> Iterator[Finding]:
    """Refused at once, and everything else goes on."""
    joined = floor("open streams", history.number("joined"), 3)
    yield joined
    if joined.verdict is not Verdict.PASS:
        return
    refused = history.stream("one too many")
    yield equal("a stream over the maximum is refused", refused.code, "RESOURCE_EXHAUSTED")
    yield holds(
        "the refusal says why", kept="max capacity reached" in refused.detail.lower(),
        got=refused.detail, want="... max capacity reached ...",
    )  # fmt: skip
    took_s = refused.ended_s - refused.started_s
    yield at_most("seconds until it is refused", took_s, REFUSED_AT_ONCE_S)
    for what in ("query", "start", "stop"):
        call = history.call(f"{what} meanwhile")
        yield answered(f"{what} is answered while all streams are taken", call)
    freed_s = history.number("freed after")
    yield holds(
        "a cancelled stream's slot is free again", kept=freed_s >= 0, got=freed_s, want="yes"
    )


# Of probes and of answers: a reader that is alive may be late by a second on a busy machine.
KEEPALIVE_S: Final = 3
# A probe and its answer, so long each, then the time that a busy machine takes to notice.
HALF_OPEN_S: Final = 20.0
KILLED_S: Final = 10.0
# Of the job and of its readers, before these vanish: some probes have come and gone by then.
SILENT_S: Final = 5.0


def run_slots(stage: Stage) -> None:
    """Readers that are killed, and readers whose network goes away, on a server for four."""
    files = stage.target.identities.files("user")
    variant = Variant(max_streams=4, keepalive_s=KEEPALIVE_S)
    with (
        stage.fresh_server(variant) as server,
        stage.client(server=server) as client,
        FaultProxy(server.address, NetworkFault()) as proxy,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 300"])
        for fate, address in (("killed", server.address), ("vanished", proxy.address)):
            readers = [Reader(f"{fate} {i}", job_id, "none", timeout_s=300) for i in range(4)]
            with crowd(address, files, readers, stage.recorder) as running:
                stage.fact(f"{fate} joined", running.wait_joined(stage.join_timeout_s))
                client.stream(
                    job_id,
                    StreamPlan(timeout_s=10, may_time_out=True),
                    label=f"full before {fate}",
                )
                if fate == "killed":
                    running.kill()
                else:
                    measured_window(SILENT_S)
                    proxy.blackhole()
                bound_s = KILLED_S if fate == "killed" else HALF_OPEN_S
                freed_s = came_true(lambda: _is_admitted(client, job_id, "freed"), bound_s)
                stage.fact(f"{fate} freed after", freed_s if freed_s is not None else -1)
        client.stop(job_id)


def judge_slots(history: History) -> Iterator[Finding]:
    """Free within the bound."""
    for fate, bound_s in (("killed", KILLED_S), ("vanished", HALF_OPEN_S)):
        joined = floor(f"streams of clients that are {fate}", history.number(f"{fate} joined"), 4)
        yield joined
        if joined.verdict is not Verdict.PASS:
            continue
        full = history.stream(f"full before {fate}").code
        yield equal("the server is full", full, "RESOURCE_EXHAUSTED")
        freed_s = history.number(f"{fate} freed after")
        yield holds(
            f"the slot of a client that is {fate} is freed (seconds)",
            kept=0 <= freed_s <= bound_s, got=freed_s, want=f"within {bound_s:g}",
        )  # fmt: skip


CYCLES: Final = 40
SETTLED_S: Final = 45.0  # gRPC's own pool keeps an idle thread for 20 s
# A pool keeps a thread that it started because the one before was still on its way out.
SPARE_THREADS: Final = 5
MISSES_MAX: Final = 2  # then it is clear, and each costs seconds


def run_cancel(stage: Stage) -> None:
    """Streams of a silent job, cancelled one after the other, on a server for two."""
    with (
        stage.fresh_server(Variant(max_streams=2)) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 300"])
        for _ in range(2):
            _soon_admitted(client, job_id)  # so that the pool has its threads
        before = server_count(stage, server, "threads")
        cycles = stage.pick(full=CYCLES, small=10)
        stage.fact("cycles", cycles)
        missed = 0
        for _ in range(cycles):
            missed += not _soon_admitted(client, job_id)
            if missed > MISSES_MAX:
                break
        stage.fact("not admitted", missed)
        settled_s = came_true(
            lambda: server_count(stage, server, "threads") <= before + SPARE_THREADS,
            stage.patience(SETTLED_S),
        )
        stage.fact("threads", [before, server_count(stage, server, "threads")])
        stage.fact("threads settled", settled_s is not None)
        client.stop(job_id)


def _soon_admitted(client: Client, job_id: str) -> bool:
    return came_true(lambda: _is_admitted(client, job_id, "cycle"), 5) is not None


def judge_cancel(history: History) -> Iterator[Finding]:
    """Always admitted, no thread left."""
    yield floor("cycles", history.number("cycles"), 10)
    yield equal("cancelled streams that kept their slot", history.number("not admitted"), 0)
    settled = history.fact("threads settled")
    threads = history.fact("threads")
    yield holds(
        "a cancelled stream of a silent job leaves no thread",
        kept=settled is True, got=threads,
        want=f"as many after as before, and {SPARE_THREADS} spare",
    )  # fmt: skip


CHECKS: Final = (
    Check(
        "streams.capacity",
        "A stream over the maximum is refused at once; start, stop and query go on.",
        run_capacity, judge_capacity, frozenset({Need.LAUNCH, Need.STREAM_CAP}),
        ("69", "R-STREAM-8"), 120,
    ),
    Check(
        "streams.slots",
        "A client that is killed frees its slot at once, one that vanishes does at keepalive.",
        run_slots, judge_slots, frozenset({Need.LAUNCH, Need.STREAM_CAP, Need.KEEPALIVE}),
        ("70", "R-STREAM-4", "R-STREAM-5"), 180,
    ),
    Check(
        "streams.cancel",
        "A cancelled stream of a silent job frees its slot and its thread at once.",
        run_cancel, judge_cancel, frozenset({Need.HOST, Need.LAUNCH, Need.STREAM_CAP}),
        ("71", "R-STREAM-4"), 240, alone=True,
    ),
)  # fmt: skip
