"""Connections put to what they were not made for: too many, too slow, silent, or not reading."""

import contextlib
import resource
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

from harness.checks.abuse.concurrent_victim import NEEDS, abused, unharmed
from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB, start_writer
from harness.checks.raw_calls import ANSWER_TIMEOUT_S, GREET_TIMEOUT_S, STREAM_PATH
from harness.drive.client import Client
from harness.drive.net.http2 import PING, Http2, RawHttp2, frame
from harness.drive.net.tls_client import CONNECT_TIMEOUT_S, TlsLine, client_context, host_and_port
from harness.drive.receiver import StreamPlan
from harness.host.clock import came_true
from harness.judge.promises import answered, assumed, equal, floor, holds, one_of
from harness.judge.streams import all_exact
from harness.record.history import History
from harness.record.verdict import BrokenError, Finding
from harness.targets.target import RunningServer, Variant
from jobworker.v1 import jobworker_pb2 as pb

SILENT: Final = 30
DRIPPING: Final = 20
HANDSHAKE_S: Final = 2.0
# gRPC gives up a handshake after 120 s when it is told nothing.
UNTOLD_HANDSHAKE_S: Final = 120.0
LATE_S: Final = 8.0  # timers of a busy server, and ours


def run_handshakes(stage: Stage) -> None:
    """Connections that say nothing, and ones whose first message comes byte by byte."""
    settable = stage.target_has(Need.HANDSHAKE_TIMEOUT)
    variant = Variant(handshake_timeout_s=HANDSHAKE_S) if settable else Variant()
    bound_s = LATE_S + (HANDSHAKE_S if settable else UNTOLD_HANDSHAKE_S)
    hello = _client_hello()
    with abused(stage, variant) as server, ExitStack() as stack:
        silent = [stack.enter_context(_connected(server)) for _ in range(SILENT)]
        dripping = [stack.enter_context(_connected(server)) for _ in range(DRIPPING)]
        stage.fact("connected", len(silent) + len(dripping))
        stage.fact("bound", bound_s)
        drops = iter(hello)

        def all_closed() -> bool:
            drop = bytes([next(drops)])
            return not [each for each in silent if not _is_closed(each, b"")] + [
                each for each in dripping if not _is_closed(each, drop)
            ]

        # Each look sends one more byte, of some five hundred.
        took_s = came_true(all_closed, bound_s)
        stage.fact("closed after", -1 if took_s is None else took_s)


def _client_hello() -> bytes:
    """Return a TLS client's first message, made longer than any look takes to send it."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols([f"protocol-{number}" for number in range(400)])
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def _connected(server: RunningServer) -> socket.socket:
    return socket.create_connection(host_and_port(server.address), CONNECT_TIMEOUT_S)


def _is_closed(connection: socket.socket, drop: bytes) -> bool:
    """Send a drop, and tell whether the other side has hung up."""
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
    """Each is given up in its time, and meanwhile hurts nobody."""
    yield floor("silent and slow connections", history.number("connected"), SILENT + DRIPPING)
    closed_s, bound_s = history.number("closed after"), history.number("bound")
    yield holds(
        "a connection that does not finish its handshake is closed (seconds)",
        kept=0 <= closed_s <= bound_s, got=closed_s if closed_s >= 0 else "never",
        want=f"within {bound_s:g}",
    )  # fmt: skip
    yield from unharmed(history)


IDLE: Final = 10_000
# Where nobody has told the server to make room for more, and in a guest: ten thousand take the
# server 0.8 GB and the harness 0.3, and of its emulator's network a descriptor each.
IDLE_UNTOLD: Final = 1000
IDLE_SMALL: Final = 30
# Our server makes room for so many streams and 8192 descriptors more; none of them is opened.
ROOM_STREAMS: Final = 12_000
HANDSHAKES_AT_ONCE: Final = 8
OTHER_DESCRIPTORS: Final = 1000  # of the checks beside this one
PING_TIMEOUT_S: Final = 10.0


def run_idle(stage: Stage) -> None:
    """Connections of a good client who greets and then says nothing more, while others work."""
    settable = stage.target_has(Need.STREAM_CAP) and not stage.target_has(Need.GUEST)
    count = stage.pick(full=IDLE if settable else IDLE_UNTOLD, small=IDLE_SMALL)
    variant = Variant(max_streams=ROOM_STREAMS) if settable else Variant()
    _make_room(count + OTHER_DESCRIPTORS)
    stage.fact("wanted", count)
    with (
        abused(stage, variant) as server,
        stage.client(server=server) as client,
        ExitStack() as stack,
    ):
        idle = _idle_connections(stage, server, count, stack)
        job_id = client.must_start("echo", ["meanwhile"], label="start meanwhile")
        stage.fact("output meanwhile", client.output(job_id))
        with stage.client("user", server=server) as newcomer:
            newcomer.query(job_id, label="newcomer meanwhile")
        stage.fact("idle", _alive(idle))


def _idle_connections(
    stage: Stage, server: RunningServer, count: int, stack: ExitStack
) -> list[RawHttp2]:
    """Greet on many connections, until one is refused.

    All resume the session of the first: it is their lasting that is judged, not their handshakes.
    """
    context = client_context(stage.target.identities.files("user"))
    greeted: list[RawHttp2] = []
    refusals: list[str] = []
    session: ssl.SSLSession | None = None

    def connect(_: int) -> ssl.SSLSession | None:
        if refusals:
            return None
        try:
            line = stack.enter_context(TlsLine(server.address, context, session=session))
        except OSError as error:
            refusals.append(f"{type(error).__name__}: {error}")
            return None
        http2 = RawHttp2(line)
        if http2.greet(GREET_TIMEOUT_S):
            greeted.append(http2)
        else:
            refusals.append(http2.ended or "no greeting came")
        return line.session

    session = connect(0)
    with ThreadPoolExecutor(HANDSHAKES_AT_ONCE) as pool:
        list(pool.map(connect, range(1, count)))
    for refusal in refusals[:1]:
        stage.fact("refused", f"after {len(greeted)}: {refusal}")
    return greeted


def _alive(idle: list[RawHttp2]) -> int:
    """Return how many connections still answer a ping."""
    ping = frame(PING, 0, 0, b"jobworkr")
    asked = [http2 for http2 in idle if http2.send(ping, PING_TIMEOUT_S)]
    return sum(http2.wait_frames(PING, 1, PING_TIMEOUT_S) for http2 in asked)


def _make_room(descriptors: int) -> None:
    """Let this process have so many descriptors.

    Raises:
        BrokenError: it may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= descriptors:
        return
    if hard != resource.RLIM_INFINITY and hard < descriptors:
        raise BrokenError(
            f"the harness may have {hard} descriptors, and takes {descriptors}; raise the hard "
            "limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))


def judge_idle(history: History) -> Iterator[Finding]:
    """They cost a descriptor each, for as long as they last."""
    refused = "".join(str(fact.value) for fact in history.facts("refused"))
    yield assumed("no connection was refused", true=not refused, got=refused or "none was")
    idle, wanted = history.number("idle"), history.number("wanted")
    yield floor("idle connections that still answer at the end", idle, max(wanted, IDLE_SMALL))
    yield equal("jobs run meanwhile", history.fact("output meanwhile"), "meanwhile\n")
    yield answered("a new client is answered meanwhile", history.call("newcomer meanwhile"))
    yield from unharmed(history)


STALLED: Final = 18
STREAMS: Final = STALLED + 2  # and the bystander, and one that reads
LOG_BYTES: Final = 8 * MIB
FREED_S: Final = 10.0


def run_windows(stage: Stage) -> None:
    """Clients who ask for a long stream and allow not a byte of it, until no slot is left."""
    settable = stage.target_has(Need.STREAM_CAP)
    variant = Variant(max_streams=STREAMS) if settable else Variant()
    context = client_context(stage.target.identities.files("user"))
    with (
        abused(stage, variant, pool_threads=2 * STREAMS) as server,
        stage.client(server=server) as client,
    ):
        writer = start_writer(stage, client, [{"bytes": LOG_BYTES, "write": MIB}])
        stage.fact("log", writer.total_bytes)
        client.stream(writer.job_id, StreamPlan(timeout_s=60), label="written")
        request = pb.StreamLogsRequest(job_id=writer.job_id).SerializeToString()
        with TlsLine(server.address, context) as line:
            http2 = Http2(line, window_bytes=0)
            http2.greet(GREET_TIMEOUT_S)
            calls = [http2.open(STREAM_PATH, request) for _ in range(STALLED)]
            stage.fact("stalled", http2.wait_begun(calls, ANSWER_TIMEOUT_S))
            plan = StreamPlan(pattern=writer.pattern, timeout_s=10, may_time_out=True)
            client.stream(writer.job_id, plan, label="reader beside them")
            if settable:
                last = http2.open(STREAM_PATH, request)
                stage.fact("full", http2.wait_begun([last], ANSWER_TIMEOUT_S))
                client.stream(writer.job_id, plan, label="one too many")
        freed_s = came_true(lambda: _reads(client, writer.job_id), FREED_S)
        stage.fact("freed after", -1 if freed_s is None else freed_s)


def _reads(client: Client, job_id: str) -> bool:
    plan = StreamPlan(stop_after_bytes=1, timeout_s=10, may_time_out=True)
    return client.stream(job_id, plan, label="after them").received_bytes > 0


def judge_windows(history: History) -> Iterator[Finding]:
    """They hold what is theirs, hurt nobody, and give it back."""
    stalled = history.fact("stalled")
    yield assumed("the streams that allow no byte had begun", true=stalled is True, got=stalled)
    total = int(history.number("log"))
    reader = history.stream("reader beside them")
    yield all_exact("a reader beside them gets everything", [reader], total)
    for stream in history.streams("one too many"):
        full = history.fact("full")
        yield assumed("as many had begun as the server may have", true=full is True, got=full)
        if full is True:
            yield equal("each of them holds a slot", stream.code, "RESOURCE_EXHAUSTED")
    freed_s = history.number("freed after")
    yield holds(
        "their slots are free when they have hung up (seconds)", kept=freed_s >= 0,
        got=freed_s if freed_s >= 0 else "never", want=f"within {FREED_S:g}",
    )  # fmt: skip
    yield from unharmed(history)


DESCRIPTORS: Final = 200
TOO_MANY: Final = 400
RECOVERED_S: Final = 20.0
TYPED: Final = ("OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE")


def run_descriptors(stage: Stage) -> None:
    """More connections than the server may have descriptors, and then none of them."""
    with (
        abused(stage, descriptors=DESCRIPTORS) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("true")
        with ExitStack() as stack:
            for _ in range(TOO_MANY):
                with contextlib.suppress(OSError):
                    stack.enter_context(_connected(server))
            exhausted_s = came_true(lambda: not _lets_in(stage, server), RECOVERED_S)
            stage.fact("exhausted", exhausted_s is not None)
            client.start("true", label="start meanwhile")
            client.query(job_id, label="query meanwhile")
        recovered_s = came_true(lambda: _lets_in(stage, server), RECOVERED_S)
        stage.fact("recovered after", -1 if recovered_s is None else recovered_s)
        # Dead connections that are still in the backlog take a descriptor each, for a moment.
        came_true(lambda: client.start("true", label="start afterwards").ok, RECOVERED_S)


def _lets_in(stage: Stage, server: RunningServer) -> bool:
    """Tell whether a new connection comes to a handshake within a moment."""
    context = client_context(stage.target.identities.files("user"))
    try:
        with TlsLine(server.address, context, timeout_s=1.0):
            return True
    except OSError:
        return False


def judge_descriptors(history: History) -> Iterator[Finding]:
    """Nobody new gets in, those inside are told what is wrong, and all is well afterwards."""
    exhausted = history.fact("exhausted")
    yield assumed("the server ran out of descriptors", true=exhausted is True, got=exhausted)
    for what in ("start", "query"):
        call = history.call(f"{what} meanwhile")
        yield one_of(f"a {what} meanwhile succeeds or says what is lacking", call.code, TYPED)
    recovered_s = history.number("recovered after")
    yield holds(
        "new clients are let in again once there is room (seconds)", kept=recovered_s >= 0,
        got=recovered_s if recovered_s >= 0 else "never", want=f"within {RECOVERED_S:g}",
    )  # fmt: skip
    yield answered("jobs start again", history.calls("start afterwards")[-1])
    yield from unharmed(history)


CHECKS: Final = (
    Check(
        "abuse.handshakes",
        "A connection that is silent or slow before it is secure is closed in its time.",
        run_handshakes, judge_handshakes, NEEDS, ("81",), 240,
    ),
    Check(
        "abuse.idle",
        "Ten thousand connections that do nothing keep nobody from working, and leave nothing.",
        run_idle, judge_idle, NEEDS, ("80",), 240, alone=True,
    ),
    Check(
        "abuse.windows",
        "Clients that allow no byte of their streams hold their slots, and nothing else.",
        run_windows, judge_windows, NEEDS, ("68", "82", "R-STREAM-3"), 180,
    ),
    Check(
        "abuse.descriptors",
        "A server without a free descriptor says so, and is as good as new when it has some.",
        run_descriptors, judge_descriptors, NEEDS | {Need.LAUNCH}, ("80",), 180,
    ),
)  # fmt: skip
