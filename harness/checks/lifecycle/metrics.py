"""Metrics: a scrape reports exactly what clients have seen the server do."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB, WAITS
from harness.drive.receiver import StreamPlan
from harness.host.clock import poll_until
from harness.judge.promises import at_least, equal, floor
from harness.record.history import History, Observation, Stream
from harness.record.verdict import Finding
from harness.targets.target import Variant

STREAMS_MAX: Final = 2
# Script of a job -> how many are started, and the outcome that is counted.
ENDS: Final = {
    "echo a job that succeeds": (3, "succeeded"),
    "echo fails; exit 3": (2, "failed"),
    "echo is killed; kill -KILL $$": (1, "signaled"),
}
OUTCOMES: Final = ("succeeded", "failed", "signaled", "oom-killed")
# (rpc, status, reason) -> how many calls are refused for it.
REFUSALS: Final = {
    ("StartJob", "NOT_FOUND", "command_not_found"): 2,
    ("StartJob", "INVALID_ARGUMENT", "invalid_request"): 1,
    ("StartJob", "PERMISSION_DENIED", "not_permitted"): 3,
    ("QueryJob", "NOT_FOUND", "job_not_found"): 1,
    ("StreamLogs", "RESOURCE_EXHAUSTED", "capacity_reached"): 1,
}
# A stalled reader takes what fits into windows and buffers: seven mebibytes were measured.
ABSORBED_MAX_BYTES: Final = 32 * MIB
SETTLES_S: Final = 60.0
_HOST_TIMEOUT_S: Final = 60.0

_FREE_PORT: Final = (
    "python3 -c 'import socket; print(socket.create_server((\"127.0.0.1\", 0)).getsockname()[1])'"
)
_SCRAPE: Final = (
    "python3 -c 'import sys, urllib.request; "
    "print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())' "
    "http://127.0.0.1:{port}/metrics"
)
_SAMPLE: Final = re.compile(r"^(jobworker_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Scrape(Observation):
    """The server's own metrics at a moment at which none of them changed.

    Attributes:
        when: what the server was doing.
        at_s: seconds since the run began.
        values: by name and the labels' values, in the order of the labels' names:
            `jobworker_calls_total OK StartJob`.
    """

    when: str
    at_s: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ServerFacts(Observation):
    """What the harness knows about the server.

    Attributes:
        certificate_expires_s: since the epoch.
        stalled_job_bytes: what the job writes whose reader stalls.
    """

    certificate_expires_s: float
    stalled_job_bytes: int


def values_of(text: str) -> dict[str, float]:
    """Return the samples of the server's own metrics in Prometheus' text format."""
    values = {}
    for name, labels, value in _SAMPLE.findall(text):
        words = [each for _, each in sorted(_LABEL.findall(labels))]
        values[" ".join([name, *words])] = float(value)
    return values


def _record_scrape(stage: Stage, port: int, when: str) -> None:
    """Scrape until two scrapes are alike: a job's end is counted a moment after it is visible."""
    at_s = stage.recorder.now_s()
    script = _SCRAPE.format(port=port)
    last: dict[str, float] = {}

    def settled() -> dict[str, float] | None:
        nonlocal last
        before, last = (
            last,
            values_of(stage.host.run(script, _HOST_TIMEOUT_S).require("a scrape of the metrics")),
        )
        return last if last == before else None

    values = poll_until(settled, stage.patience(SETTLES_S), "metrics that do not change")
    stage.record(Scrape(when, at_s, values))


def run_metrics(stage: Stage) -> None:
    """Start jobs of each outcome, get refused, open streams, stall one; scrape in between."""
    port = int(stage.host.run(_FREE_PORT, _HOST_TIMEOUT_S).require("a free port"))
    size_bytes = stage.pick(full=64 * MIB, small=48 * MIB)
    files = stage.target.identities.files("server")
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    stage.record(ServerFacts(certificate.not_valid_after_utc.timestamp(), size_bytes))
    with (
        stage.fresh_server(Variant(metrics=f"127.0.0.1:{port}", max_streams=STREAMS_MAX)) as server,
        stage.client(server=server) as client,
        stage.client("user", server) as user,
        ThreadPoolExecutor(STREAMS_MAX) as pool,
    ):
        for script, (count, _) in ENDS.items():
            for _ in range(count):
                client.output(client.must_start("sh", ["-c", script]))
        for _ in range(2):
            client.start("/no/such/program")
        client.start("")
        for _ in range(3):
            user.start("true")
        client.query(client.unknown_id)

        job_id = client.must_start("sh", ["-c", f"echo ready; {WAITS}"])
        receivers = [client.receiver(job_id, label="open") for _ in range(STREAMS_MAX)]
        reading = [pool.submit(each.run) for each in receivers]
        for each in receivers:
            each.first_byte.wait(stage.join_timeout_s)
        client.stream(job_id, label="one too many")
        _record_scrape(stage, port, "busy")
        client.must_stop(job_id)
        for stream in reading:
            stream.result()
        _record_scrape(stage, port, "idle")

        job_id = client.must_start("sh", ["-c", f"head -c {size_bytes} /dev/zero; {WAITS}"])
        stalled = client.receiver(job_id, StreamPlan(bytes_per_s=1.0), label="stalled")
        reading = [pool.submit(stalled.run)]
        stalled.first_byte.wait(stage.join_timeout_s)
        _record_scrape(stage, port, "stalled")
        stalled.cancel()
        reading[0].result()
        client.must_stop(job_id)


def judge_metrics(history: History) -> Iterator[Finding]:
    """Each number is what the clients have seen."""
    scrapes = {scrape.when: scrape for scrape in history.all(Scrape)}
    yield floor("scrapes of the metrics", len(scrapes), 3)
    yield from _judge_busy(scrapes["busy"])
    yield from _judge_idle(history, scrapes["idle"])
    yield from _judge_stalled(history, scrapes["idle"], scrapes["stalled"])


def _judge_busy(busy: Scrape) -> Iterator[Finding]:
    by_script = sum(count for count, _ in ENDS.values())
    yield equal("streams that are open", _value(busy, "streams"), STREAMS_MAX)
    yield equal("the maximum of streams", _value(busy, "streams_max"), STREAMS_MAX)
    yield equal("jobs that run", _value(busy, "jobs running"), 1)
    yield equal("jobs that were started", _value(busy, "jobs_started_total"), by_script + 1)
    yield equal("bytes that readers who have all are behind", _value(busy, "stream_lag_bytes"), 0)


def _judge_idle(history: History, idle: Scrape) -> Iterator[Finding]:
    # Not the queries that succeed: what watches a stream's end makes some of its own.
    seen = Counter(
        f"{call.code} {call.rpc}"
        for call in history.calls()
        if call.ended_s <= idle.at_s and (call.rpc, call.code) != ("QueryJob", "OK")
    )
    ended = [stream for stream in history.streams() if stream.ended_s <= idle.at_s]
    seen += Counter(f"{stream.code} StreamLogs" for stream in ended)
    counted = _part(idle, "calls_total")
    counted.pop("OK QueryJob", None)
    yield equal("calls by status and rpc are counted", counted, dict(seen))
    want = {f"{code} {reason} {rpc}": n for (rpc, code, reason), n in REFUSALS.items()}
    yield equal("refusals are counted by their reasons", _part(idle, "refusals_total"), want)
    # The job that was stopped, beside those that ended by themselves.
    outcomes = {
        outcome: sum(n for n, how in ENDS.values() if how == outcome) + (outcome == "signaled")
        for outcome in OUTCOMES
    }
    yield equal("ends are counted by outcome", _part(idle, "jobs_ended_total"), outcomes)
    states = {
        "running": 0,
        "exited": outcomes["succeeded"] + outcomes["failed"],
        "signaled": outcomes["signaled"],
    }
    yield equal("jobs that are kept, by state", _part(idle, "jobs"), states)
    received_bytes = sum(stream.received_bytes for stream in ended)
    yield equal("bytes that were sent", _value(idle, "sent_bytes_total"), received_bytes)
    kept_bytes = sum(_output_by_job(ended).values())
    yield equal("bytes of output in memory", _value(idle, "output_memory_bytes"), kept_bytes)
    yield equal("open streams once all have ended", _value(idle, "streams"), 0)
    yield equal("bytes in messages once all streams ended", _value(idle, "in_flight_bytes"), 0)
    expires_s = history.the(ServerFacts).certificate_expires_s
    promise = "when the server's certificate expires"
    yield equal(promise, _value(idle, "certificate_expiry_timestamp_seconds server"), expires_s)


def _judge_stalled(history: History, idle: Scrape, stalled: Scrape) -> Iterator[Finding]:
    size_bytes = history.the(ServerFacts).stalled_job_bytes
    behind = _value(stalled, "stream_lag_bytes")
    sent = _value(stalled, "sent_bytes_total") - _value(idle, "sent_bytes_total")
    yield equal("what a stalled reader was sent and is behind add up", sent + behind, size_bytes)
    least = size_bytes - ABSORBED_MAX_BYTES
    yield at_least("bytes that a stalled reader is behind", behind, least)
    most = _value(stalled, "stream_lag_max_bytes")
    yield equal("the only reader is the one that is behind most", most, behind)


def _output_by_job(streams: list[Stream]) -> dict[str, int]:
    found: dict[str, int] = {}
    for stream in streams:
        found[stream.job_id] = max(found.get(stream.job_id, 0), stream.received_bytes)
    return found


def _value(scrape: Scrape, name: str) -> float:
    return scrape.values.get(f"jobworker_{name}", float("nan"))


def _part(scrape: Scrape, name: str) -> dict[str, float]:
    """Return the samples of a metric, by the values of its labels."""
    start = f"jobworker_{name} "
    return {key.removeprefix(start): n for key, n in scrape.values.items() if key.startswith(start)}


METRICS: Final = Check(
    "lifecycle.metrics",
    "A scrape of the metrics reports exactly what the server's clients have seen.",
    run_metrics,
    judge_metrics,
    needs=frozenset({Need.LAUNCH, Need.HOST, Need.METRICS, Need.STREAM_CAP, Need.PYTHON}),
    cites=("131",),
    time_limit_s=240,
    ours=True,
)

CHECKS: Final = (METRICS,)
