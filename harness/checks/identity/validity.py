"""Identity over time: certificates that expire, are renewed or denied while the server runs."""

import datetime as dt
import ssl
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from cryptography import x509

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.access import CALL_TIMEOUT_S, call_over
from harness.checks.identity.host_files import host_files
from harness.checks.raw_calls import QUERY_PATH, UNKNOWN_QUERY
from harness.drive.identities import (
    USER,
    Authority,
    CertFiles,
    Wanted,
    serial_number,
    server_wanted,
)
from harness.drive.net.http2 import Http2
from harness.drive.net.tls_client import TlsLine, client_context
from harness.drive.receiver import StreamPlan
from harness.host.clock import came_true
from harness.judge.promises import (
    answered,
    assumed,
    at_least,
    at_most,
    equal,
    floor,
    one_of,
)
from harness.record.history import History, Stream
from harness.record.verdict import Finding, UnsupportedError
from harness.targets.target import Variant

# Long enough for a handshake and a call, on a slow machine too.
SHORT_LIFE_S: Final = 3.0
CUT_S: Final = 1.0  # X.509 cuts a certificate's end to a whole second
GONE_WITHIN_S: Final = 20.0
ENDS_WITHIN_S: Final = 10.0
ENDS_WHY: Final = "the certificate's own end is exact; a busy machine tells it late"
EARLY_S: Final = 0.5
EARLY_WHY: Final = "two clocks of one machine, looked at one after the other"
BEGINS_WITHIN_S: Final = 1.0  # what must be left of it when the stream is asked for
REFUSED: Final = ("UNAUTHENTICATED", "UNAVAILABLE")


def expiring(stage: Stage, directory: str) -> CertFiles:
    """Return a user's certificate that is good for a moment only."""
    life = dt.timedelta(seconds=stage.patience(SHORT_LIFE_S) + CUT_S)
    wanted = Wanted(roles=(USER,), common_name="expiring", ends=life)
    return Authority.load(stage.target.identities.directory).write(
        Path(directory), "expiring", wanted
    )


def end_of(files: CertFiles) -> float:
    """Return the moment at which a certificate ends, as seconds since 1970."""
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    return certificate.not_valid_after_utc.timestamp()


def _ticket(address: str, context: ssl.SSLContext) -> tuple[str, ssl.SSLSession | None]:
    """Make a call by a full handshake; return its status and the ticket that came with it."""
    with TlsLine(address, context) as line:
        code = Http2(line).call(QUERY_PATH, UNKNOWN_QUERY, CALL_TIMEOUT_S)
        return code, line.session


def _resume(
    address: str, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[str, bool]:
    """Make a call with a ticket; return its status, and whether the ticket was taken."""
    try:
        with TlsLine(address, context, session=session) as line:
            return Http2(line).call(QUERY_PATH, UNKNOWN_QUERY, CALL_TIMEOUT_S), line.resumed
    except OSError as error:
        return f"refused: {type(error).__name__}", False


def run_resumption(stage: Stage) -> None:
    """A ticket of a certificate that was good, used while it is and when it is not."""
    address = stage.server.address
    with tempfile.TemporaryDirectory() as directory:
        files = expiring(stage, directory)
        ends_at_s = end_of(files)
        context = client_context(files)
        code, session = _ticket(address, context)
        stage.fact("full handshake", code)
        if session is None or not session.has_ticket:
            raise UnsupportedError("TLS session tickets (it gives none)")
        code, resumed = _resume(address, context, session)
        stage.fact("resumed in time", [code, resumed])
        if not resumed:
            raise UnsupportedError("resumption of TLS sessions (it gives tickets, and takes none)")
        # Another context has no ticket to show: its handshake is a full one.
        fresh = client_context(files)
        gone_s = came_true(
            # Not before: a call may fail for something else.
            lambda: time.time() > ends_at_s and call_over(address, fresh) != "NOT_FOUND",
            stage.patience(GONE_WITHIN_S),
        )
        stage.fact("full handshake refused after", -1 if gone_s is None else gone_s)
        code, resumed = _resume(address, context, session)
        stage.fact("resumed after the end", [code, resumed])


def judge_resumption(history: History) -> Iterator[Finding]:
    """In time it works, afterwards it does not, ticket or not."""
    code = history.fact("full handshake")
    yield assumed("the certificate is good at first", true=code == "NOT_FOUND", got=code)
    in_time = history.fact("resumed in time")
    yield assumed(
        "a session is resumed while the certificate is good",
        true=in_time == ["NOT_FOUND", True], got=in_time,
    )  # fmt: skip
    gone_s = history.number("full handshake refused after")
    yield floor("a full handshake is refused in the end", gone_s, 0)
    value = history.fact("resumed after the end")
    code = value[0] if isinstance(value, list) else value
    how = "a resumed session" if isinstance(value, list) and value[1] else "a ticket"
    # A server that no longer takes the ticket refuses in the handshake, and that is as good.
    yield one_of(f"{how} is refused once the certificate has expired", _plain(code), REFUSED)


def _plain(code: object) -> str:
    text = str(code)
    return "UNAVAILABLE" if text.startswith(("refused", "closed")) else text


def run_expiry(stage: Stage) -> None:
    """A stream of a silent job, whose reader's certificate expires meanwhile."""
    with tempfile.TemporaryDirectory() as directory, stage.client() as admin:
        job_id = admin.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        files = expiring(stage, directory)
        ends_at_s = end_of(files)
        with stage.client_of(files) as client:
            bound_s = stage.patience(SHORT_LIFE_S) + CUT_S + 1.5 * ENDS_WITHIN_S
            plan = StreamPlan(keep_bytes=100, timeout_s=bound_s, may_time_out=True)
            stage.fact("seconds left at its start", ends_at_s - time.time())
            client.stream(job_id, plan, label="expiring")
            stage.fact("seconds after its end", time.time() - ends_at_s)
            client.query(job_id, label="expired")
        admin.query(job_id, label="an admin")
        admin.stop(job_id)


def judge_expiry(history: History) -> Iterator[Finding]:
    """The stream lives to the certificate's end; the connection is worth nothing then."""
    left_s = history.number("seconds left at its start")
    yield floor("seconds that the certificate is good for", left_s, BEGINS_WITHIN_S)
    stream: Stream = history.stream("expiring")
    late_s = history.number("seconds after its end")
    if stream.first_byte_s is None and stream.code in REFUSED and late_s >= -EARLY_S:
        # The handshake came too late for it; what is refused then says nothing of streams.
        yield assumed("the stream begins before the certificate's end", true=False, got=stream.code)
        return
    yield equal("until then it gets what there is", stream.text, "ready\n")
    yield equal("its stream ends as its certificate does", stream.code, "UNAUTHENTICATED")
    yield at_least(
        "seconds from the certificate's end to the stream's: not before it", late_s, -EARLY_S,
        EARLY_WHY,
    )  # fmt: skip
    yield at_most(
        "seconds from the certificate's end to the stream's", late_s, ENDS_WITHIN_S, ENDS_WHY
    )
    yield answered("the same connection is refused then", history.call("expired"), *REFUSED)
    yield answered("others go on", history.call("an admin"))


def run_rotation(stage: Stage) -> None:
    """New files under a running server, then bad ones, then good ones again."""
    identities = stage.target.identities
    with (
        host_files(stage) as files,
        stage.fresh_server(files=files.certificates) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        receiver = client.receiver(job_id, StreamPlan(keep_bytes=100, timeout_s=90), label="old")
        streaming = pool.submit(receiver.run)
        stage.fact("joined", receiver.first_byte.wait(stage.join_timeout_s))
        stage.fact("first", _serial(server.address))
        stage.fact("first file", serial_number(identities.files("server")))
        renewed = identities.sign("renewed", server_wanted())
        files.put_pair(renewed)
        stage.fact("renewed", _serial(server.address))
        stage.fact("renewed file", serial_number(renewed))
        # The key of another certificate: a renewal that went wrong halfway.
        files.put("server.key", identities.files("admin").key.read_text())
        stage.fact("mismatched", _serial(server.address))
        with stage.client(server=server) as another:
            another.query(job_id, label="new connection")
            another.stop(job_id, label="stop")
        streaming.result()


def _serial(address: str) -> str:
    """Return the serial number of the certificate that a new handshake is shown."""
    host, _, port = address.rpartition(":")
    pem = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=CALL_TIMEOUT_S)
    return serial_number(pem)


def judge_rotation(history: History) -> Iterator[Finding]:
    """New handshakes use the new files, running streams live on, bad files change nothing."""
    first, renewed = (str(history.fact(label)) for label in ("first file", "renewed file"))
    yield assumed("the stream had begun", true=history.fact("joined") is True, got="nothing")
    yield assumed("the files differ", true=first != renewed, got=renewed, want=f"not {first}")
    names = {first: "the first", renewed: "the renewed"}
    for label, promise, want in (
        ("first", "the server begins with its files", "the first"),
        ("renewed", "a handshake after the renewal uses the new certificate", "the renewed"),
        ("mismatched", "a key that does not fit changes nothing", "the renewed"),
    ):
        shown = str(history.fact(label))
        yield equal(promise, names.get(shown, shown), want)
    yield answered("new connections work", history.call("new connection"))
    stream = history.stream("old")
    got = f"{stream.code} {stream.text!r}"
    yield equal("a stream from before the renewal lives on to its job's end", got, "OK 'ready\\n'")


DENIED_PROMISED_S: Final = 2.0  # docs/security.md
DENIED_LATE_S: Final = 3.0
DENIED_WHY: Final = f"{DENIED_PROMISED_S:g} s are promised, {DENIED_LATE_S:g} are a busy machine's"
DENIED_LOOK_S: Final = 15.0  # how long it is waited for, to tell how late it was


def run_denied(stage: Stage) -> None:
    """A user who is put on the list while it streams, and taken off again."""
    identities = stage.target.identities
    serial = serial_number(identities.files("user"))
    with host_files(stage) as files:
        files.put("denied", f"# nobody yet\n{serial_number(identities.files('server'))}\n")
        variant = Variant(deny_serials=files.path("denied"))
        with (
            stage.fresh_server(variant) as server,
            stage.client(server=server) as admin,
            stage.client("user", server=server) as user,
            ThreadPoolExecutor(1) as pool,
        ):
            job_id = admin.must_start("sh", ["-c", "echo ready; exec sleep 100"])
            user.query(job_id, label="before")
            receiver = user.receiver(
                job_id, StreamPlan(keep_bytes=100, timeout_s=60, may_time_out=True), label="denied"
            )
            streaming = pool.submit(receiver.run)
            stage.fact("joined", receiver.first_byte.wait(stage.join_timeout_s))
            files.put("denied", f"{serial}  # whose laptop was stolen\n")
            denied_at_s = time.monotonic()
            stage.fact("ended", receiver.ended.wait(stage.patience(DENIED_LOOK_S)))
            stage.fact("seconds from the denial to its end", time.monotonic() - denied_at_s)
            receiver.cancel()
            streaming.result()
            user.query(job_id, label="while denied")
            admin.query(job_id, label="an admin meanwhile")
            files.put("denied", "this is no serial number\n")
            user.query(job_id, label="while the list is bad")
            files.put("denied", "# nobody\n")
            user.query(job_id, label="afterwards")
            admin.stop(job_id)


def judge_denied(history: History) -> Iterator[Finding]:
    """Refused at once and inside streams, and only that one."""
    yield assumed("the stream had begun", true=history.fact("joined") is True, got="nothing")
    yield answered("who is not on the list is let in", history.call("before"))
    ended = history.fact("ended") is True
    yield equal("a denied caller's stream ends", ended, want=True)
    if ended:
        late_s = history.number("seconds from the denial to its end")
        bound_s = DENIED_PROMISED_S + DENIED_LATE_S
        yield at_most("seconds from the denial to the stream's end", late_s, bound_s, DENIED_WHY)
        stream = history.stream("denied")
        yield equal("until then it got what there was", stream.text, "ready\n")
        yield equal("the stream says why", stream.code, "UNAUTHENTICATED")
    for label in ("while denied", "while the list is bad"):
        yield answered(
            f"a denied caller is refused {label}", history.call(label), "UNAUTHENTICATED"
        )
    yield answered("others are not", history.call("an admin meanwhile"))
    yield answered("who is taken off the list is let in again", history.call("afterwards"))


OWN_FILES: Final = frozenset({Need.LAUNCH, Need.HOST, Need.IDENTITIES, Need.NATIVE})

CHECKS: Final = (
    Check(
        "identity.resumption",
        "A TLS session is worth nothing once its client's certificate has expired.",
        run_resumption, judge_resumption, frozenset({Need.IDENTITIES}), ("24",),
    ),
    Check(
        "identity.expiry",
        "A stream ends when its client's certificate expires, and not before.",
        run_expiry, judge_expiry, frozenset({Need.IDENTITIES}), ("25",),
    ),
    Check(
        "identity.rotation",
        "Renewed certificates are used without a restart, and running streams live on.",
        run_rotation, judge_rotation, OWN_FILES, ("26",),
    ),
    Check(
        "identity.denied",
        "A certificate on the deny list is refused at its next call, and in streams within 2 s.",
        run_denied, judge_denied, OWN_FILES | {Need.DENY_LIST}, ("R-AUTHZ-1",),
    ),
)  # fmt: skip
