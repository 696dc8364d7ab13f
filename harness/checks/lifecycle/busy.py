"""More calls at once than the server has threads for: those beyond the maximum are refused."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import WAITS
from harness.drive.client import Client, Reply
from harness.drive.receiver import StreamPlan
from harness.judge.promises import answered, at_most_s, equal, floor, holds
from harness.record.history import History
from harness.record.terms import Terms, terms_of
from harness.record.verdict import Finding
from harness.targets.target import Variant

REFUSED: Final = "RESOURCE_EXHAUSTED"
CALLERS: Final = 16  # of a server that has one thread for them
ROUNDS_MAX: Final = 50
WAITING_S: Final = 4.0  # of a stop: longer than the calls beside it take
AT_ONCE_S: Final = 5.0  # connected and refused, on a busy machine
# Each rpc but the stream: a call with little work; the others' job is unknown.
CALLS: Final[dict[str, Callable[[Client, str], Reply]]] = {
    "StartJob": lambda client, label: client.start("true", label=label),
    "StopJob": lambda client, label: client.stop(client.unknown_id, label=label),
    "QueryJob": lambda client, label: client.query(client.unknown_id, label=label),
    "ListJobs": lambda client, label: client.list_page(page_size=1, label=label),
    "DeleteJob": lambda client, label: client.delete(client.unknown_id, label=label),
}
OTHERS: Final = tuple(rpc for rpc in CALLS if rpc != "StopJob")
SUCCEEDING: Final = frozenset({"StartJob", "ListJobs"})


def _admitted(rpc: str, terms: Terms) -> set[str]:
    """Return the statuses of a call that is admitted."""
    return {"OK"} if rpc in SUCCEEDING else set(terms.unknown_job)


def run_busy(stage: Stage) -> None:
    """Call each rpc from many threads at once, until one call is admitted and one is not."""
    with (
        stage.fresh_server(Variant(unary_threads=1)) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        for rpc, call in CALLS.items():
            admitted = _admitted(rpc, stage.dialect.terms)
            seen: set[str] = set()
            for _ in range(ROUNDS_MAX):
                # All end, so that none still has the only thread when the next rpc's are made.
                replies = [pool.submit(call, client, rpc) for _ in range(CALLERS)]
                seen |= {reply.result().call.code for reply in replies}
                if seen & admitted and seen - admitted:
                    break


def judge_busy(history: History) -> Iterator[Finding]:
    """Each call is admitted, or refused with the reason; and some are refused."""
    for rpc in CALLS:
        calls = history.calls(rpc)
        codes, admitted = {call.code for call in calls}, _admitted(rpc, terms_of(history))
        kept = REFUSED in codes and bool(codes & admitted) and codes <= {*admitted, REFUSED}
        promise = f"of {CALLERS} calls of {rpc} at once, those beyond the maximum are refused"
        want = f"{' or '.join(sorted(admitted))}; {REFUSED}"
        yield holds(promise, kept=kept, got=sorted(codes), want=want)
        refused = [call for call in calls if call.code == REFUSED]
        silent = sum(not call.detail for call in refused)
        yield equal(f"refusals of {rpc} without a reason", silent, 0)
        slowest_s = max((call.ended_s - call.started_s for call in refused), default=0.0)
        yield at_most_s(f"seconds of the slowest refusal of {rpc}", slowest_s, AT_ONCE_S)


BUSY: Final = Check(
    "lifecycle.busy",
    "Calls beyond the maximum are refused at once as RESOURCE_EXHAUSTED, with the reason.",
    run_busy,
    judge_busy,
    needs=frozenset({Need.LAUNCH, Need.UNARY_THREADS, Need.LISTING, Need.DELETION, Need.NATIVE}),
    cites=("105",),
    ours=True,
)


def run_waiting_stop(stage: Stage) -> None:
    """Make other calls, and another stop, while a stop has the only thread for stops."""
    with (
        stage.fresh_server(Variant(unary_threads=1)) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        job_id = client.must_start("sh", ["-c", f"trap 'echo stop' TERM; echo ready; {WAITS}"])
        client.stream(job_id, StreamPlan(stop_after_bytes=1), label="ready")
        waiting = pool.submit(client.stop, job_id, label="waiting stop", grace_s=WAITING_S)
        # The job gets its SIGTERM once the stop was admitted.
        plan = StreamPlan(stop_after_bytes=len("ready\nstop\n"))
        client.stream(job_id, plan, label="admitted")
        client.stop(client.unknown_id, label="second stop")
        for rpc in OTHERS:
            CALLS[rpc](client, rpc)
        waiting.result()


def judge_waiting_stop(history: History) -> Iterator[Finding]:
    """The stop waits; another one is refused, and all other calls are admitted."""
    waiting = history.call("waiting stop")
    yield answered("a stop that waits for its job succeeds", waiting)
    others = [history.call(rpc) for rpc in OTHERS]
    refused = history.call("second stop")
    yield answered("a stop beyond the maximum that wait is refused", refused, REFUSED)
    for rpc, call in zip(OTHERS, others, strict=True):
        promise = f"a call of {rpc} is admitted while a stop waits"
        yield answered(promise, call, *_admitted(rpc, terms_of(history)))
    late_s = max(call.ended_s for call in others) - waiting.started_s
    yield at_most_s("seconds until the last of them ended", late_s, WAITING_S, "that of the stop")
    yield floor("seconds of the stop", waiting.ended_s - waiting.started_s, WAITING_S)


WAITING_STOP: Final = Check(
    "lifecycle.waiting-stop",
    "Stops that wait have a maximum of their own: all other calls are admitted meanwhile.",
    run_waiting_stop,
    judge_waiting_stop,
    needs=BUSY.needs | {Need.GRACE},
    cites=("105",),
    ours=True,
)

CHECKS: Final = (BUSY, WAITING_STOP)
