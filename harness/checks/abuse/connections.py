"""Abuse of connections: too many, too slow, silent, or not reading."""

import contextlib
import resource
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from harness.checks.abuse.concurrent_victim import NEEDS, judge_victim, run_abuse
from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB, WriterStep, start_writer
from harness.checks.raw_calls import ANSWER_TIMEOUT_S, GREET_TIMEOUT_S, open_http2, stream_call
from harness.drive.client import Client
from harness.drive.net.http2 import PING, RawHttp2, frame
from harness.drive.net.tls_client import (
    CONNECT_TIMEOUT_S,
    TlsConnection,
    client_context,
    host_and_port,
)
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import answered, assumed, equal, floor, in_time, one_of, resting_on
from harness.judge.streams import all_exact
from harness.record.foundations import OUTPUT
from harness.record.history import History, Observation
from harness.record.verdict import BrokenError, Finding
from harness.targets.target import RunningServer, Variant

SILENT: Final = 30
DRIPPING: Final = 20
HANDSHAKE_S: Final = 2.0
# gRPC's own handshake timeout, where the server has no flag for it.
DEFAULT_HANDSHAKE_S: Final = 120.0
LATE_S: Final = 8.0  # for the timers of a busy server, and ours


@dataclass(frozen=True, slots=True)
class UnfinishedHandshakes(Observation):
    """Connections that never finished their TLS handshake.

    Attributes:
        opened: how many.
        bound_s: within how many seconds the server must close them.
        closed_after_s: when it had closed all; None: not in time.
    """

    opened: int
    bound_s: float
    closed_after_s: float | None


def run_handshakes(stage: Stage) -> None:
    """Open connections that send nothing, and ones that send their first message byte by byte."""
    settable = stage.target_has(Need.HANDSHAKE_TIMEOUT)
    variant = Variant(handshake_timeout_s=HANDSHAKE_S) if settable else Variant()
    bound_s = LATE_S + (HANDSHAKE_S if settable else DEFAULT_HANDSHAKE_S)
    hello = _client_hello()
    with run_abuse(stage, variant) as server, ExitStack() as stack:
        silent = [stack.enter_context(_connect(server)) for _ in range(SILENT)]
        dripping = [stack.enter_context(_connect(server)) for _ in range(DRIPPING)]
        drops = iter(hello)

        def all_closed() -> bool:
            drop = bytes([next(drops)])
            return not [each for each in silent if not _is_closed(each, b"")] + [
                each for each in dripping if not _is_closed(each, drop)
            ]

        # Each look sends one more byte, of some five thousand.
        closed_after_s = seconds_until(all_closed, bound_s)
    stage.record(UnfinishedHandshakes(len(silent) + len(dripping), bound_s, closed_after_s))


def _client_hello() -> bytes:
    """Return a TLS client's first message, longer than the looks can send in time."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols([f"protocol-{number}" for number in range(400)])
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def _connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(host_and_port(server.address), CONNECT_TIMEOUT_S)


def _is_closed(connection: socket.socket, drop: bytes) -> bool:
    """Send a drop, and return whether the other side has closed the connection."""
    connection.setblocking(False)
    try:
        if drop:
            connection.send(drop)
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def judge_handshakes(history: History) -> Iterator[Finding]:
    """Each connection is closed in time, and the victim is unharmed."""
    seen = history.the(UnfinishedHandshakes)
    yield floor("silent and slow connections", seen.opened, SILENT + DRIPPING)
    promise = "a connection that does not finish its handshake is closed"
    yield in_time(promise, seen.closed_after_s, seen.bound_s)
    yield from judge_victim(history)


HANDSHAKES: Final = Check(
    "abuse.handshakes",
    "A connection that is silent or slow during its TLS handshake is closed in time.",
    run_handshakes, judge_handshakes, NEEDS, ("81",), 240,
    ours=True,
)  # fmt: skip


IDLE: Final = 10_000
# Where the server's room cannot be set, and in a guest: ten thousand cost the server 0.8 GB, the
# harness 0.3 GB, and the emulator's user network a descriptor each.
IDLE_DEFAULT: Final = 1000
IDLE_SMALL: Final = 30
# Our server reserves descriptors for so many streams plus 8192; no stream is opened.
ROOM_STREAMS: Final = 12_000
HANDSHAKES_AT_ONCE: Final = 8
OTHER_DESCRIPTORS: Final = 1000  # of the checks that run at the same time
PING_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class IdleConnections(Observation):
    """Connections that exchanged settings and then sent nothing, while other clients worked.

    Attributes:
        wanted: how many were attempted.
        refusal: how the first refused one failed; empty: none was refused.
        alive: how many answered a ping at the end.
        job_output: of a job that ran meanwhile.
    """

    wanted: int
    refusal: str
    alive: int
    job_output: str


def run_idle(stage: Stage) -> None:
    """Open idle connections as a valid client; run a job and connect a new client beside them."""
    settable = stage.target_has(Need.STREAM_CAP) and not stage.target_has(Need.GUEST)
    wanted = stage.pick(full=IDLE if settable else IDLE_DEFAULT, small=IDLE_SMALL)
    variant = Variant(max_streams=ROOM_STREAMS) if settable else Variant()
    _raise_descriptor_limit(wanted + OTHER_DESCRIPTORS)
    with (
        run_abuse(stage, variant) as server,
        stage.client(server=server) as client,
        ExitStack() as stack,
    ):
        idle, refusal = _open_idle(stage, server, wanted, stack)
        job_id = client.must_start("echo", ["meanwhile"], label="start meanwhile")
        output = client.output(job_id)
        with stage.client("user", server=server) as newcomer:
            newcomer.query(job_id, label="newcomer meanwhile")
        stage.record(IdleConnections(wanted, refusal, _count_alive(idle), output))


def _open_idle(
    stage: Stage, server: RunningServer, count: int, stack: ExitStack
) -> tuple[list[RawHttp2], str]:
    """Open connections until one is refused; return them, and how that one failed.

    All resume the session of the first: the check is about open connections, not handshakes.
    """
    context = client_context(stage.target.identities.files("user"))
    opened: list[RawHttp2] = []
    refusals: list[str] = []
    session: ssl.SSLSession | None = None

    def connect(_: int) -> ssl.SSLSession | None:
        if refusals:
            return None
        try:
            connection = stack.enter_context(
                TlsConnection(server.address, context, session=session)
            )
        except OSError as error:
            refusals.append(f"{type(error).__name__}: {error}")
            return None
        http2 = RawHttp2(connection)
        if http2.greet(GREET_TIMEOUT_S):
            opened.append(http2)
        else:
            refusals.append(f"no settings came: {http2.outcome}")
        return connection.session

    session = connect(0)
    with ThreadPoolExecutor(HANDSHAKES_AT_ONCE) as pool:
        list(pool.map(connect, range(1, count)))
    return opened, f"after {len(opened)}: {refusals[0]}" if refusals else ""


def _count_alive(idle: list[RawHttp2]) -> int:
    """Return how many connections answer a ping."""
    ping = frame(PING, 0, 0, b"jobworkr")
    pinged = [http2 for http2 in idle if http2.send(ping, PING_TIMEOUT_S)]
    return sum(http2.wait_frames(PING, 1, PING_TIMEOUT_S) for http2 in pinged)


def _raise_descriptor_limit(descriptors: int) -> None:
    """Raise this process's soft limit of open descriptors.

    Raises:
        BrokenError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= descriptors:
        return
    if hard != resource.RLIM_INFINITY and hard < descriptors:
        raise BrokenError(
            f"the harness needs {descriptors} descriptors, and its hard limit is {hard}; raise it "
            "(ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))


def judge_idle(history: History) -> Iterator[Finding]:
    """The connections stay open, and other clients are served meanwhile."""
    seen = history.the(IdleConnections)
    yield resting_on(equal("a job runs meanwhile", seen.job_output, "meanwhile\n"), *OUTPUT)
    yield answered("a new client is answered meanwhile", history.call("newcomer meanwhile"))
    yield from judge_victim(history)
    yield assumed("no connection was refused", true=not seen.refusal, got=seen.refusal or "none")
    least = max(seen.wanted, IDLE_SMALL)
    yield floor("idle connections that answer a ping at the end", seen.alive, least)


IDLE_CONNECTIONS: Final = Check(
    "abuse.idle",
    "Ten thousand idle connections do not keep other clients from working, and leave nothing.",
    run_idle, judge_idle, NEEDS, ("80",), 240, alone=True,
)  # fmt: skip


STALLED: Final = 18
STREAMS: Final = STALLED + 2  # and the victim, and one that reads
LOG_BYTES: Final = 8 * MIB
FREED_S: Final = 10.0
# A look that began within a bound may end after it: it connects, or reads, for so long at most.
LAST_LOOK_S: Final = 10.0
LAST_LOOK_WHY: Final = f"{LAST_LOOK_S:g}: the last look may outlast the bound"


@dataclass(frozen=True, slots=True)
class StalledReaders(Observation):
    """Streams whose client granted no window.

    Attributes:
        log_bytes: how much output each requested.
        started: whether all had started.
        filled: whether one more took the last slot; None: the server's cap cannot be set.
        freed_after_s: from their disconnection until a slot was free; None: not in time.
    """

    log_bytes: int
    started: bool
    filled: bool | None
    freed_after_s: float | None


def run_windows(stage: Stage) -> None:
    """Request a long output many times without granting a byte of window, until no slot is free."""
    settable = stage.target_has(Need.STREAM_CAP)
    variant = Variant(max_streams=STREAMS) if settable else Variant()
    files = stage.target.identities.files("user")
    with (
        run_abuse(stage, variant, pool_threads=2 * STREAMS) as server,
        stage.client(server=server) as client,
    ):
        writer = start_writer(stage, client, [WriterStep(LOG_BYTES, write_bytes=MIB)])
        client.stream(writer.job_id, StreamPlan(timeout_s=60), label="written")
        request = stream_call(stage.dialect, writer.job_id)
        filled: bool | None = None
        with open_http2(server.address, files, window_bytes=0) as http2:
            calls = [http2.open(*request) for _ in range(STALLED)]
            started = http2.wait_begun(calls, ANSWER_TIMEOUT_S)
            plan = StreamPlan(pattern=writer.pattern, timeout_s=10, may_time_out=True)
            client.stream(writer.job_id, plan, label="reader beside them")
            if settable:
                last = http2.open(*request)
                filled = http2.wait_begun([last], ANSWER_TIMEOUT_S)
                client.stream(writer.job_id, plan, label="one too many")
        freed_after_s = seconds_until(lambda: _reads(client, writer.job_id), FREED_S)
        stage.record(StalledReaders(writer.total_bytes, started, filled, freed_after_s))


def _reads(client: Client, job_id: str) -> bool:
    plan = StreamPlan(stop_after_bytes=1, timeout_s=10, may_time_out=True)
    return client.stream(job_id, plan, label="after them").received_bytes > 0


def judge_windows(history: History) -> Iterator[Finding]:
    """Each holds one slot, harms no other reader, and frees the slot."""
    seen = history.the(StalledReaders)
    reader = history.stream("reader beside them")
    exact = all_exact("a reader beside them receives everything", [reader], seen.log_bytes)
    yield resting_on(exact, *OUTPUT)
    if seen.filled:
        code = history.stream("one too many").code
        yield equal("each stalled stream holds a slot", code, "RESOURCE_EXHAUSTED")
    freed = in_time(
        "their slots are free after they disconnected", seen.freed_after_s,
        FREED_S + LAST_LOOK_S, LAST_LOOK_WHY,
    )  # fmt: skip
    yield resting_on(freed, *OUTPUT)
    yield from judge_victim(history)
    # The server decides these, so they are last: no fault before them is excused by them.
    yield assumed("the stalled streams had started", true=seen.started, got=seen.started)
    if seen.filled is not None:
        yield assumed("every slot of the server was taken", true=seen.filled, got=seen.filled)


WINDOWS: Final = Check(
    "abuse.windows",
    "Clients that grant no window for their streams hold their slots, and nothing else.",
    run_windows, judge_windows, NEEDS, ("68", "82", "R-STREAM-3"), 180,
)  # fmt: skip


DESCRIPTORS: Final = 200
TOO_MANY: Final = 400
RECOVERED_S: Final = 20.0
TYPED: Final = ("OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE")


@dataclass(frozen=True, slots=True)
class DescriptorExhaustion(Observation):
    """A server that ran out of descriptors.

    Attributes:
        exhausted: whether it stopped accepting new clients.
        recovered_after_s: from the end of the excess connections until it accepted one; None: not
            in time.
    """

    exhausted: bool
    recovered_after_s: float | None


def run_descriptors(stage: Stage) -> None:
    """Open more connections than the server may have descriptors, then close all of them."""
    with (
        run_abuse(stage, descriptors=DESCRIPTORS) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("true")
        with ExitStack() as stack:
            for _ in range(TOO_MANY):
                with contextlib.suppress(OSError):
                    stack.enter_context(_connect(server))
            exhausted_s = seconds_until(lambda: not _accepts(stage, server), RECOVERED_S)
            client.start("true", label="start meanwhile")
            client.query(job_id, label="query meanwhile")
        recovered_s = seconds_until(lambda: _accepts(stage, server), RECOVERED_S)
        stage.record(DescriptorExhaustion(exhausted_s is not None, recovered_s))
        # Closed connections in the server's backlog still take a descriptor each, for a moment.
        seconds_until(lambda: client.start("true", label="start afterwards").ok, RECOVERED_S)


def _accepts(stage: Stage, server: RunningServer) -> bool:
    """Return whether a new connection finishes its handshake within a second."""
    context = client_context(stage.target.identities.files("user"))
    try:
        with TlsConnection(server.address, context, timeout_s=1.0):
            return True
    except OSError:
        return False


def judge_descriptors(history: History) -> Iterator[Finding]:
    """New clients wait, connected ones get a typed status, and the server recovers."""
    seen = history.the(DescriptorExhaustion)
    yield assumed("the server ran out of descriptors", true=seen.exhausted, got=seen.exhausted)
    for what in ("start", "query"):
        call = history.call(f"{what} meanwhile")
        yield one_of(f"a {what} meanwhile succeeds or reports what is lacking", call.code, TYPED)
    promise = "new clients are accepted again once descriptors are free"
    bound_s = RECOVERED_S + LAST_LOOK_S
    yield in_time(promise, seen.recovered_after_s, bound_s, LAST_LOOK_WHY)
    yield answered("jobs start again", history.calls("start afterwards")[-1])
    yield from judge_victim(history)


NO_DESCRIPTOR: Final = Check(
    "abuse.descriptors",
    "A server without a free descriptor reports that, and recovers when descriptors are free.",
    run_descriptors, judge_descriptors, NEEDS | {Need.LAUNCH}, ("80",), 180,
    ours=True,
)  # fmt: skip
