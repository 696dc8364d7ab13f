"""Calls that begin and never go on: headers without the message that must follow.

Each is a call that the server has accepted and cannot answer. As many are left open as a server may
reasonably admit, by a client without a role, who may call nothing at all, and by a user.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from harness.checks.abuse.concurrent_victim import NEEDS, abused, unharmed
from harness.checks.check import Check, Need, Stage
from harness.checks.common import UNKNOWN_ID
from harness.checks.raw_calls import GREET_TIMEOUT_S, QUERY_PATH, STREAM_PATH
from harness.drive.client import Client
from harness.drive.identities import CASES
from harness.drive.net.http2 import Http2
from harness.drive.net.tls_client import TlsLine, client_context
from harness.host.clock import came_true
from harness.judge.promises import floor, holds
from harness.record.history import History
from harness.record.verdict import Finding, UnmetError, Verdict
from harness.targets.target import RunningServer

HALF_SENT: Final = 2000  # more than our server has threads for calls
HALF_SENT_SMALL: Final = 100
CONNECTIONS_MAX: Final = 40
A_CONNECTION: Final = 500  # where the server announces no maximum, or a larger one
WAITED_S: Final = 20.0  # to tell how late the answer is
RECOVERED_S: Final = 10.0
# Who may call nothing can be refused by the headers alone. Whoever may call is waited for, which
# holds a thread a call; whether that comes to an end is what is judged.
ANSWERED_S: Final = {"no role": 5.0, "user": 6.0}
ANSWERED_WHY: Final = {
    "no role": "a busy machine takes its time to refuse 2,000 calls",
    "user": "a crowd's messages are waited for, 1 s, since a network may be slow; then as above",
}
# Threads that a pool keeps: a leak would leave one a call, of both clients.
POOL_THREADS: Final = 1500
NO_ROLE: Final = next(case.file_name for case in CASES if case.name == "no role")
CALLERS: Final = {"no role": NO_ROLE, "user": "user"}
PATHS: Final = (QUERY_PATH, STREAM_PATH)


def run_half_sent(stage: Stage) -> None:
    """Half-sent calls, and an admin who works beside them and after them."""
    with (
        abused(stage, pool_threads=POOL_THREADS) as server,
        stage.client(server=server) as client,
    ):
        for caller, file_name in CALLERS.items():
            if caller == "user" or stage.target_has(Need.IDENTITIES):
                _beside(stage, server, client, caller, file_name)


def _beside(
    stage: Stage, server: RunningServer, client: Client, caller: str, file_name: str
) -> None:
    wanted = stage.pick(full=HALF_SENT, small=HALF_SENT_SMALL)
    with ExitStack() as stack:
        stage.fact(f"half-sent: {caller}", _half_send(stage, server, file_name, wanted, stack))
        stage.fact(f"wanted: {caller}", wanted)
        stage.fact(f"answered: {caller}", _worked_after(client, f"beside {caller}", WAITED_S))
    # What was left open ends with its connections, which takes the server a moment.
    stage.fact(f"recovered: {caller}", _worked_after(client, f"after {caller}", RECOVERED_S))


def _worked_after(client: Client, when: str, timeout_s: float) -> float:
    """Start, query and stop a job, each again until it is done; return the seconds of all three.

    Calls that are refused come again, since a server may be full of the others for a while, and
    just before is not. -1: one was not done in time.
    """
    job_id = UNKNOWN_ID

    def start() -> bool:
        nonlocal job_id
        reply = client.start("sh", ["-c", "exec sleep 100"], label=f"start {when}")
        job_id = reply.message.job_id if reply.ok else UNKNOWN_ID
        return reply.ok

    def query() -> bool:
        return client.query(job_id, label=f"query {when}").ok

    def stop() -> bool:
        return client.stop(job_id, label=f"stop {when}").ok

    took_s = 0.0
    for step in (start, query, stop):
        step_s = came_true(step, timeout_s)
        if step_s is None:
            return -1
        took_s += step_s
    return took_s


def _half_send(
    stage: Stage, server: RunningServer, file_name: str, wanted: int, stack: ExitStack
) -> int:
    """Begin calls on a few connections, which stay; return how many were sent.

    Raises:
        UnmetError: the server does not take a connection.
    """
    context = client_context(stage.target.identities.files(file_name))
    sent = 0
    for _ in range(CONNECTIONS_MAX):
        if sent >= wanted:
            break
        try:
            line = stack.enter_context(TlsLine(server.address, context))
        except OSError as error:
            got = f"{type(error).__name__}: {error}"
            raise UnmetError(Finding(Verdict.FAIL, "new connections are taken", got)) from error
        http2 = Http2(line)
        http2.greet(GREET_TIMEOUT_S)
        count = min(http2.streams_allowed or A_CONNECTION, A_CONNECTION, wanted - sent)
        calls = [http2.open_half(PATHS[number % len(PATHS)]) for number in range(count)]
        sent += len(calls) if http2.flush(GREET_TIMEOUT_S) else 0
    return sent


def judge_half_sent(history: History) -> Iterator[Finding]:
    """Others are answered beside them, soon, and they are gone with their connections."""
    callers = [fact.label.partition(": ")[2] for fact in history.facts("wanted: ")]
    yield floor("clients who left calls half-sent", len(callers), 1)
    for caller in callers:
        sent = history.number(f"half-sent: {caller}")
        yield floor(f"calls half-sent by {caller}", sent, history.number(f"wanted: {caller}"))
        for when, fact, bound_s, why in (
            ("beside", "answered", ANSWERED_S[caller], ANSWERED_WHY[caller]),
            ("after", "recovered", RECOVERED_S, "the end of connections takes its time"),
        ):
            took_s = history.number(f"{fact}: {caller}")
            yield holds(
                f"an admin starts, queries and stops a job {when} the half-sent calls of: {caller} "
                "(seconds)",
                kept=0 <= took_s <= bound_s, got=_last_words(history, f"{when} {caller}", took_s),
                want=f"within {bound_s:g}", tolerance=why,
            )  # fmt: skip
    yield from unharmed(history)


def _last_words(history: History, when: str, took_s: float) -> float | str:
    if took_s >= 0:
        return took_s
    last = [call for call in history.calls() if call.label.endswith(when)][-1]
    return f"never; at last {last.rpc}: {last.code} {last.detail}".strip()


CHECKS: Final = (
    Check(
        "abuse.half-sent",
        "Two thousand calls that never send their message keep nobody else waiting for long.",
        run_half_sent, judge_half_sent, NEEDS, ("82", "R-STREAM-4"), 180,
        alone=True,  # a server that others use is full for a while
    ),
)  # fmt: skip
