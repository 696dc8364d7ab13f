"""Calls that begin and never continue: headers without the message that must follow.

Each is a call that the server has accepted and cannot answer. As many are left open as a server may
reasonably admit: by a client without a role, which may call no rpc at all, and by a user.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from harness.checks.abuse.concurrent_victim import NEEDS, judge_victim, run_abuse
from harness.checks.check import Check, Need, Stage
from harness.checks.raw_calls import GREET_TIMEOUT_S, open_http2
from harness.drive.client import Client, Reply
from harness.drive.identities import CASES
from harness.host.clock import seconds_until
from harness.judge.promises import floor, in_time
from harness.record.history import History, Observation
from harness.record.terms import terms_of
from harness.record.verdict import Finding
from harness.targets.target import RunningServer

HALF_SENT: Final = 2000  # more than our server has threads for calls
HALF_SENT_SMALL: Final = 100
CONNECTIONS_MAX: Final = 40
CALLS_PER_CONNECTION: Final = 500  # where the server announces no maximum, or a larger one
WAIT_S: Final = 20.0  # to measure how late the answer is
RECOVERED_S: Final = 10.0
RECOVERED_WHY: Final = "the server notices the end of connections after a moment"
# A caller without a role can be refused by the headers alone. The server waits for the message of
# one that may call, which holds a thread per call; the check judges that this wait is bounded.
ANSWERED_S: Final = {"no role": 5.0, "user": 6.0}
ANSWERED_WHY: Final = {
    "no role": "a busy machine takes its time to refuse 2,000 calls",
    "user": "the server waits 1 s for the messages, as a network may be slow; then as above",
}
# Threads that a pool keeps: a leak would leave one per call, of both clients.
POOL_THREADS: Final = 1500
NO_ROLE: Final = next(case.file_name for case in CASES if case.name == "no role")
CALLERS: Final = {"no role": NO_ROLE, "user": "user"}
CALLER_WORDS: Final = {"no role": "a client without a role", "user": "a user"}
RPCS: Final = ("QueryJob", "StreamLogs")


@dataclass(frozen=True, slots=True)
class AdminWork:
    """How an admin started, queried and stopped a job.

    Attributes:
        took_s: seconds for all three; None: one did not succeed in time.
        failure: the last answer to that one.
    """

    took_s: float | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class HalfSentCalls(Observation):
    """Calls that one caller left half-sent, and an admin's work beside and after them."""

    caller: str
    wanted: int
    sent: int
    beside: AdminWork
    after: AdminWork


def run_half_sent(stage: Stage) -> None:
    """Leave calls half-sent; let an admin work beside them and after them."""
    with (
        run_abuse(stage, pool_threads=POOL_THREADS) as server,
        stage.client(server=server) as client,
    ):
        has = {need for need in (Need.IDENTITIES, Need.ROLES) if stage.target_has(need)}
        for caller in CALLERS:
            if caller == "user" or {Need.IDENTITIES, Need.ROLES} <= has:
                _leave_half_sent(stage, server, client, caller)


def _leave_half_sent(stage: Stage, server: RunningServer, client: Client, caller: str) -> None:
    wanted = stage.pick(full=HALF_SENT, small=HALF_SENT_SMALL)
    with ExitStack() as stack:
        sent = _half_send(stage, server, CALLERS[caller], wanted, stack)
        beside = _work(stage, client, f"beside {caller}", WAIT_S)
    # The calls end with their connections, which the server notices after a moment.
    after = _work(stage, client, f"after {caller}", RECOVERED_S)
    stage.record(HalfSentCalls(caller, wanted, sent, beside, after))


def _work(stage: Stage, client: Client, when: str, timeout_s: float) -> AdminWork:
    """Start, query and stop a job.

    Each call is repeated until it succeeds, since a server may refuse calls while it is full.
    """
    job_id = unknown_id = stage.dialect.terms.unknown_id

    def start() -> Reply:
        nonlocal job_id
        reply = client.start("sh", ["-c", "exec sleep 100"], label=f"start {when}")
        job_id = reply.message.job_id if reply.ok else unknown_id
        return reply

    def query() -> Reply:
        return client.query(job_id, label=f"query {when}")

    def stop() -> Reply:
        return client.stop(job_id, label=f"stop {when}")

    took_s = 0.0
    for step in (start, query, stop):
        step_s, failure = _repeat_until_ok(step, timeout_s)
        if step_s is None:
            return AdminWork(None, failure)
        took_s += step_s
    return AdminWork(took_s)


def _repeat_until_ok(call: Callable[[], Reply], timeout_s: float) -> tuple[float | None, str]:
    """Repeat a call; return after how many seconds it succeeded (None: never), and its failure."""
    failure = ""

    def succeeds() -> bool:
        nonlocal failure
        reply = call()
        failure = f"{reply.call.rpc}: {reply.call.code} {reply.call.detail}".strip()
        return reply.ok

    return seconds_until(succeeds, timeout_s), failure


def _half_send(
    stage: Stage, server: RunningServer, file_name: str, wanted: int, stack: ExitStack
) -> int:
    """Begin calls on a few connections, which stay open; return how many were sent.

    Raises:
        UnmetError: the server does not accept a connection.
    """
    files = stage.target.identities.files(file_name)
    sent = 0
    for _ in range(CONNECTIONS_MAX):
        if sent >= wanted:
            break
        http2 = stack.enter_context(open_http2(server.address, files))
        allowed = http2.streams_allowed or CALLS_PER_CONNECTION
        count = min(allowed, CALLS_PER_CONNECTION, wanted - sent)
        paths = [stage.dialect.transport.path(rpc) for rpc in RPCS]
        calls = [http2.open_half(paths[number % len(paths)]) for number in range(count)]
        sent += len(calls) if http2.flush(GREET_TIMEOUT_S) else 0
    return sent


def judge_half_sent(history: History) -> Iterator[Finding]:
    """Other clients are answered soon, beside the calls and after them."""
    crowds, terms = history.all(HalfSentCalls), terms_of(history)
    # Of another kind, a job's first moments may be deaf to SIGTERM.
    grace_s = 0.0 if terms.own else terms.stop_grace_s
    for crowd in crowds:
        bound_s, why = ANSWERED_S[crowd.caller], ANSWERED_WHY[crowd.caller]
        yield _in_time(crowd, "beside", crowd.beside, bound_s + grace_s, why)
        yield _in_time(crowd, "after", crowd.after, RECOVERED_S + grace_s, RECOVERED_WHY)
    yield from judge_victim(history)
    yield floor("clients that left calls half-sent", len(crowds), 1)
    for crowd in crowds:
        yield floor(f"calls half-sent by {CALLER_WORDS[crowd.caller]}", crowd.sent, crowd.wanted)


def _in_time(crowd: HalfSentCalls, when: str, work: AdminWork, bound_s: float, why: str) -> Finding:
    promise = (
        f"an admin starts, queries and stops a job {when} the calls half-sent by "
        f"{CALLER_WORDS[crowd.caller]}"
    )
    never = f"never; the last answer to {work.failure}"
    return in_time(promise, work.took_s, bound_s, why, never=never)


HALF_SENT_CALLS: Final = Check(
    "abuse.half-sent",
    "Two thousand calls that never send their message delay other clients only briefly.",
    run_half_sent, judge_half_sent, NEEDS, ("82", "R-STREAM-4"), 180,
    alone=True,  # the shared server is full for a while
)  # fmt: skip
