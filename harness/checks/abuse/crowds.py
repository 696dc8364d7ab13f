"""Crowds of calls that take long: abandoned stops, stops that wait, streams. None starves others.

Each server has few threads, so that a small crowd could take all of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.lifecycle.stopping import IGNORES_TERM
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import Deadline, measured_window, seconds_until
from harness.judge.promises import answered, at_most_s, equal, floor, in_time
from harness.record.history import Call, History, Observation, Outcome, Stream
from harness.record.verdict import Finding
from harness.targets.target import Variant

FEW_THREADS: Final = Variant(max_streams=4, unary_threads=8)
NEEDS: Final = frozenset(
    {Need.LAUNCH, Need.STREAM_CAP, Need.UNARY_THREADS, Need.GRACE, Need.NATIVE}
) | {Need.OFFSETS}  # for `no_follow`
CROWD: Final = 24  # more than all threads together
ANSWERED_S: Final = 5.0
ANSWERED_WHY: Final = "a call takes milliseconds, more on a busy machine"
LONG_GRACE_S: Final = 60.0
GIVES_UP_S: Final = 1.0


def _start_resisting(client: Client) -> str:
    """Start a job that ends only when it is killed, and return its id."""
    job_id = client.must_start("sh", ["-c", IGNORES_TERM])
    client.stream(job_id, StreamPlan(stop_after_bytes=1), label="ready")
    return job_id


def _call_each_kind(client: Client, job_id: str, when: str) -> None:
    """Make one call of each kind but a stop."""
    client.start("true", label=f"start {when}")
    client.query(job_id, label=f"query {when}")
    plan = StreamPlan(no_follow=True, timeout_s=ANSWERED_S, may_time_out=True)
    client.stream(job_id, plan, label=f"stream {when}")


def _judge_answers(calls: list[Call], when: str) -> Iterator[Finding]:
    for call in calls:
        yield answered(f"{call.rpc} is answered {when}", call)
        took_s = call.ended_s - call.started_s
        yield at_most_s(f"seconds until {call.rpc} is answered", took_s, ANSWERED_S, ANSWERED_WHY)


# -- stops whose clients are gone -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AbandonedStops(Observation):
    """Stops whose clients gave up waiting.

    Attributes:
        abandoned: how many.
        freed_after_s: how long after that another stop was admitted; None: not in time.
    """

    abandoned: int
    freed_after_s: float | None


def run_abandoned_stops(stage: Stage) -> None:
    """Stop a job that takes a minute, from clients that give up after a second; then call."""
    with (
        stage.fresh_server(FEW_THREADS) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(CROWD) as pool,
    ):
        job_id, other = _start_resisting(client), client.must_start("sleep", ["300"])

        def stop(number: int) -> Call:
            label = f"abandoned {number}"
            reply = client.stop(job_id, label=label, grace_s=LONG_GRACE_S, timeout_s=GIVES_UP_S)
            return reply.call

        calls = list(pool.map(stop, range(CROWD)))
        gave_up = sum(call.outcome is Outcome.UNKNOWN for call in calls)
        freed_s = seconds_until(lambda: client.stop(other, grace_s=0).ok, ANSWERED_S)
        stage.record(AbandonedStops(gave_up, freed_s))
        _call_each_kind(client, other, "afterwards")
        client.stop(job_id, label="end", grace_s=0)


def judge_abandoned_stops(history: History) -> Iterator[Finding]:
    """Calls of every kind are answered at once."""
    stops = history.the(AbandonedStops)
    yield floor("stops whose clients gave up", stops.abandoned, 1)
    promise = "a stop is admitted after abandoned stops"
    yield in_time(promise, stops.freed_after_s, ANSWERED_S, ANSWERED_WHY)
    calls = [history.call(f"{kind} afterwards") for kind in ("start", "query")]
    yield from _judge_answers(calls, "after abandoned stops")
    stream = history.stream("stream afterwards")
    yield equal("a stream is admitted after abandoned stops", stream.code, "OK")


ABANDONED_STOPS: Final = Check(
    "abuse.abandoned-stops",
    "A stop whose client is gone frees its thread at once: calls of every kind are answered.",
    run_abandoned_stops,
    judge_abandoned_stops,
    needs=NEEDS,
    cites=("105",),
    time_limit_s=180,
)

# -- stops that wait, and streams -----------------------------------------------------------------

CROWD_GRACE_S: Final = 3.0
STREAMS: Final = 4
ROUNDS_MIN: Final = 3
REFUSED: Final = "RESOURCE_EXHAUSTED"
PRESS_S: Final = 0.05  # between two attempts of one client of the crowd


@dataclass(frozen=True, slots=True)
class CallsBesideCrowd(Observation):
    """Calls that were made while a crowd waited.

    Attributes:
        crowd: "stops" or "streams".
        rounds: how many times one call of each other kind was made.
        codes: of these calls, by rpc: how many ended with which status.
        slowest_s: how long the slowest took.
        crowd_codes: how many calls of the crowd ended with which status.
    """

    crowd: str
    rounds: int
    codes: Mapping[str, Mapping[str, int]]
    slowest_s: float
    crowd_codes: Mapping[str, int]


def _observe(
    stage: Stage, crowd: str, calls: list[Call | Stream], rounds: int, crowd_codes: Counter[str]
) -> None:
    codes: dict[str, Counter[str]] = {}
    for call in calls:
        rpc = call.rpc if isinstance(call, Call) else "StreamLogs"
        codes.setdefault(rpc, Counter())[call.code] += 1
    slowest_s = max((call.ended_s - call.started_s for call in calls), default=0.0)
    stage.record(CallsBesideCrowd(crowd, rounds, codes, slowest_s, crowd_codes))


def _beside_stops(stage: Stage, client: Client) -> None:
    """Make calls for as long as a crowd of stops waits for one job."""
    job_id = _start_resisting(client)
    calls: list[Call | Stream] = []
    rounds = 0
    plan = StreamPlan(no_follow=True, timeout_s=ANSWERED_S, may_time_out=True)
    with ThreadPoolExecutor(CROWD) as pool:
        stops = [pool.submit(_press, client, job_id) for _ in range(CROWD)]
        while not all(stop.done() for stop in stops):
            calls += [
                client.query(job_id, label="beside stops").call,
                client.start("true", label="beside stops").call,
                client.stream(job_id, plan, label="beside stops"),
            ]
            rounds += 1
            wait(stops, timeout=0.1)
        codes = Counter(code for stop in stops for code in stop.result())
    _observe(stage, "stops", calls, rounds, codes)


def _press(client: Client, job_id: str) -> list[str]:
    """Stop a job until that is not refused for lack of room; return the statuses.

    A thread that becomes free is so taken by the crowd again.
    """
    codes: list[str] = []
    deadline = Deadline(ANSWERED_S + CROWD_GRACE_S)
    while not codes or (codes[-1] == REFUSED and not deadline.passed()):
        codes.append(client.stop(job_id, label="crowd", grace_s=CROWD_GRACE_S).call.code)
        measured_window(PRESS_S)
    return codes


def _beside_streams(stage: Stage, client: Client) -> None:
    """Make calls while a crowd of streams is open, or refused."""
    job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 300"])
    plan = StreamPlan(timeout_s=120, may_time_out=True)
    receivers = [client.receiver(job_id, plan, label="crowd") for _ in range(CROWD)]
    calls: list[Call | Stream] = []
    with ThreadPoolExecutor(CROWD) as pool:
        streams = [pool.submit(receiver.run) for receiver in receivers]
        seconds_until(
            lambda: all(each.first_byte.is_set() for each in receivers), stage.join_timeout_s
        )
        for _ in range(ROUNDS_MIN):
            brief = client.must_start("sleep", ["300"])
            calls += [
                client.query(job_id, label="beside streams").call,
                client.start("true", label="beside streams").call,
                client.stop(brief, label="beside streams").call,
            ]
        for receiver in receivers:
            receiver.cancel()
        codes = Counter(stream.result().code for stream in streams)
    client.stop(job_id)
    _observe(stage, "streams", calls, ROUNDS_MIN, codes)


def run_crowds(stage: Stage) -> None:
    """Make calls beside a crowd of stops, then beside a crowd of streams."""
    with stage.fresh_server(FEW_THREADS) as server, stage.client(server=server) as client:
        _beside_stops(stage, client)
        _beside_streams(stage, client)


def judge_crowds(history: History) -> Iterator[Finding]:
    """All other calls are answered; those of the crowd succeed or are refused."""
    seen = {each.crowd: each for each in history.all(CallsBesideCrowd)}
    for crowd, beside in seen.items():
        for rpc, codes in beside.codes.items():
            yield equal(f"{rpc} beside a crowd of {crowd}", list(codes), ["OK"])
        promise = f"seconds of the slowest call beside a crowd of {crowd}"
        yield at_most_s(promise, beside.slowest_s, ANSWERED_S, ANSWERED_WHY)
    yield floor("crowds", len(seen), 2)
    if set(seen) != {"stops", "streams"}:
        return
    odd = set(seen["stops"].crowd_codes) - {"OK", REFUSED}
    yield equal("a stop in a crowd succeeds, or is refused for lack of room", odd, set())
    streams = seen["streams"].crowd_codes
    odd = set(streams) - {"CANCELLED", REFUSED}
    yield equal("a stream in a crowd is open, or is refused for lack of room", odd, set())
    for crowd, beside in seen.items():
        yield floor(f"rounds of calls beside the {crowd}", beside.rounds, ROUNDS_MIN)
    yield floor("streams that were open beside the calls", streams.get("CANCELLED", 0), STREAMS)


CROWDS: Final = Check(
    "abuse.crowds",
    "Neither a crowd of stops nor one of streams keeps calls of other kinds waiting.",
    run_crowds,
    judge_crowds,
    needs=NEEDS,
    cites=("105",),
    time_limit_s=180,
)

CHECKS: Final = (ABANDONED_STOPS, CROWDS)
