"""Calls that begin and never go on: headers without the message that must follow.

Each is a call that the server has accepted and cannot answer. As many are left open as a server may
reasonably admit, by a client without a role, who may call nothing at all, and by a user.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from harness.checks.abuse import GREET_TIMEOUT_S, STREAM_PATH
from harness.checks.bystander import NEEDS, abused, unharmed
from harness.checks.check import Check, Need, Stage
from harness.checks.common import UNKNOWN_ID
from harness.checks.identity import QUERY_PATH
from harness.client import Client
from harness.clock import came_true
from harness.history import History
from harness.http2 import Http2
from harness.identities import CASES
from harness.judge.promises import answered, floor, holds
from harness.targets.target import RunningServer
from harness.tls_line import TlsLine, client_context
from harness.verdict import Finding, UnmetError, Verdict

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
        stage.fact(f"answered: {caller}", _answered_after(client, caller, WAITED_S))
        _work(client, f"beside {caller}")
    # What was left open ends with its connections, which takes the server a moment.
    stage.fact(f"recovered: {caller}", _answered_after(client, caller, RECOVERED_S))
    _work(client, f"after {caller}")


def _answered_after(client: Client, caller: str, timeout_s: float) -> float:
    """Return after how many seconds a call is answered; -1 if it is not in time."""

    def is_answered() -> bool:
        # NOT_FOUND shows that the call got through.
        return client.query(UNKNOWN_ID, label=f"look at {caller}").call.code == "NOT_FOUND"

    took_s = came_true(is_answered, timeout_s)
    return -1 if took_s is None else took_s


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


def _work(client: Client, when: str) -> None:
    """Start, query and stop a job, each recorded whatever came of the others."""
    reply = client.start("sh", ["-c", "exec sleep 100"], label=f"start {when}")
    job_id = reply.message.job_id if reply.ok else UNKNOWN_ID
    client.query(job_id, label=f"query {when}")
    client.stop(job_id, label=f"stop {when}")


def judge_half_sent(history: History) -> Iterator[Finding]:
    """Others are answered beside them, soon, and they are gone with their connections."""
    callers = [fact.label.partition(": ")[2] for fact in history.facts("wanted: ")]
    yield floor("clients who left calls half-sent", len(callers), 1)
    for caller in callers:
        sent = history.number(f"half-sent: {caller}")
        yield floor(f"calls half-sent by {caller}", sent, history.number(f"wanted: {caller}"))
        answered_s = history.number(f"answered: {caller}")
        yield holds(
            f"an admin is answered beside the half-sent calls of: {caller} (seconds)",
            kept=0 <= answered_s <= ANSWERED_S[caller],
            got=answered_s if answered_s >= 0 else "never", want=f"within {ANSWERED_S[caller]:g}",
            tolerance=ANSWERED_WHY[caller],
        )  # fmt: skip
        for when in (f"beside {caller}", f"after {caller}"):
            for what in ("start", "query", "stop"):
                call = history.call(f"{what} {when}")
                yield answered(f"an admin's {what} is answered {_shown(when)}", call)
        recovered_s = history.number(f"recovered: {caller}")
        yield holds(
            f"calls are answered once they have gone: {caller} (seconds)", kept=recovered_s >= 0,
            got=recovered_s if recovered_s >= 0 else "never", want=f"within {RECOVERED_S:g}",
        )  # fmt: skip
    yield from unharmed(history)


def _shown(when: str) -> str:
    word, _, caller = when.partition(" ")
    return f"{word} the half-sent calls of: {caller}"


CHECKS: Final = (
    Check(
        "abuse.half-sent",
        "Two thousand calls that never send their message keep nobody else waiting for long.",
        run_half_sent, judge_half_sent, NEEDS, ("82", "R-STREAM-4"), 180,
    ),
)  # fmt: skip
