"""Files that a running server reloads: renewed certificates, and the deny list."""

import dataclasses
import ssl
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.expiry import REFUSED
from harness.checks.identity.host_files import OWN_FILES, HostFiles, make_host_files
from harness.checks.raw_calls import CALL_TIMEOUT_S
from harness.drive.certificates import Authority, serial_number, server_spec
from harness.drive.identities import client_spec
from harness.drive.net.tls_client import host_and_port
from harness.drive.receiver import StreamPlan
from harness.judge.promises import answered, assumed, at_most_s, equal
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from harness.targets.target import RunningServer, Variant


@dataclass(frozen=True, slots=True)
class CertificateRenewal(Observation):
    """Serial numbers of a server's certificates: in its files, and as shown to new clients.

    Attributes:
        joined: whether a stream had started before the renewal.
        first_file: of the first certificate.
        renewed_file: of the renewed one.
        shown_first: before the renewal.
        shown_renewed: after it.
        shown_mismatched: after the key was replaced by one of another certificate.
        exposed_file: of a third certificate, whose key others can read at first.
        shown_exposed: after that pair replaced the mismatched one.
        shown_corrected: after a chmod of its key, and no other change.
    """

    joined: bool
    first_file: str
    renewed_file: str
    shown_first: str
    shown_renewed: str
    shown_mismatched: str
    exposed_file: str
    shown_exposed: str
    shown_corrected: str


def run_rotation(stage: Stage) -> None:
    """Renew a running server's files, then make them invalid, while a stream is open."""
    identities = stage.target.identities
    with (
        make_host_files(stage) as files,
        stage.fresh_server(files=files.certificates) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        receiver = client.receiver(job_id, StreamPlan(keep_bytes=100, timeout_s=90), label="old")
        streaming = pool.submit(receiver.run)
        joined = receiver.first_byte.wait(stage.join_timeout_s)
        shown_first = shown_serial(server.address)
        renewed = identities.sign("renewed", server_spec())
        files.put_pair(renewed)
        shown_renewed = shown_serial(server.address)
        # The key of another certificate, as after a renewal that failed halfway.
        files.put("server.key", identities.files("admin").key.read_text())
        shown_mismatched = shown_serial(server.address)
        exposed = identities.sign("exposed", server_spec())
        files.put_pair(exposed, key_mode="644")
        shown_exposed = shown_serial(server.address)
        files.chmod("server.key", "600")
        stage.record(
            CertificateRenewal(
                joined=joined,
                first_file=serial_number(identities.files("server")),
                renewed_file=serial_number(renewed),
                shown_first=shown_first,
                shown_renewed=shown_renewed,
                shown_mismatched=shown_mismatched,
                exposed_file=serial_number(exposed),
                shown_exposed=shown_exposed,
                shown_corrected=shown_serial(server.address),
            )
        )
        _change_authorities(stage, files, server, job_id)
        with stage.client(server=server) as another:
            another.query(job_id, label="new connection")
            another.stop(job_id, label="stop")
        streaming.result()


def _change_authorities(stage: Stage, files: HostFiles, server: RunningServer, job_id: str) -> None:
    """Trust another authority beside the first, then no longer; connect as its client each time."""
    ours = stage.target.identities.files("admin").ca
    other = Authority("another authority", number=1)
    with tempfile.TemporaryDirectory() as directory:
        spec = client_spec(stage.target.identities.scheme, "admin")
        pair = other.write(Path(directory), "newcomer", spec)
        both = ours.read_text() + pair.ca.read_text()
        newcomer = dataclasses.replace(pair, ca=ours)  # the server's certificate is not renewed
        for when, text in (("added", both), ("removed", ours.read_text())):
            files.put("ca.crt", text)
            with stage.client_of(newcomer, server) as client:
                client.query(job_id, label=f"authority {when}")


def shown_serial(address: str) -> str:
    """Return the serial number of the certificate that a server shows in a new handshake."""
    pem = ssl.get_server_certificate(host_and_port(address), timeout=CALL_TIMEOUT_S)
    return serial_number(pem)


def judge_rotation(history: History) -> Iterator[Finding]:
    """New handshakes use the renewed files, invalid files change nothing, streams continue."""
    seen = history.the(CertificateRenewal)
    files = (seen.first_file, seen.renewed_file, seen.exposed_file)
    names = dict(zip(files, ("the first", "the renewed", "the exposed"), strict=True))
    yield assumed("the stream had started", true=seen.joined, got="nothing")
    yield assumed("the files differ", true=len(names) == len(files), got=files)
    for shown, promise, want in (
        (seen.shown_first, "the server starts with its first certificate", "the first"),
        (
            seen.shown_renewed,
            "a handshake after the renewal uses the new certificate",
            "the renewed",
        ),
        (seen.shown_mismatched, "a mismatched key changes nothing", "the renewed"),
        (seen.shown_exposed, "a key that others can read changes nothing", "the renewed"),
        (
            seen.shown_corrected,
            "a refused certificate is used once its key's mode is corrected",
            "the exposed",
        ),
    ):
        yield equal(promise, names.get(shown, shown), want)
    added, removed = (history.call(f"authority {when}") for when in ("added", "removed"))
    yield answered("an authority that is added to the file is trusted", added)
    yield answered("one that is removed from it no longer is", removed, *REFUSED)
    yield answered("new connections are accepted", history.call("new connection"))
    stream = history.stream("old")
    got = f"{stream.code} {stream.text!r}"
    yield equal("a stream from before the renewal continues to its job's end", got, "OK 'ready\\n'")


ROTATION: Final = Check(
    "identity.rotation",
    "Renewed certificates are used without a restart, and running streams continue.",
    run_rotation, judge_rotation, OWN_FILES, ("26", "97"),
    ours=True,
)  # fmt: skip


DENIED_PROMISED_S: Final = 2.0  # docs/security.md
DENIED_LATE_S: Final = 3.0
DENIED_WHY: Final = f"{DENIED_PROMISED_S:g} s promised, {DENIED_LATE_S:g} s for a busy machine"
DENIED_WAIT_S: Final = 15.0  # to measure how late the end was
INVALID_LINE: Final = "not a serial number\n"


@dataclass(frozen=True, slots=True)
class DeniedStream(Observation):
    """A stream whose client was put on the deny list.

    Attributes:
        joined: whether it had started before.
        ended_after_s: from the denial to its end; None: not in time.
    """

    joined: bool
    ended_after_s: float | None


def run_denied(stage: Stage) -> None:
    """Deny a user who has a stream, beside an invalid line; leave only that; then no line."""
    identities = stage.target.identities
    serial = serial_number(identities.files("user"))
    with make_host_files(stage) as files:
        files.put("denied", f"# only this server\n{serial_number(identities.files('server'))}\n")
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
            joined = receiver.first_byte.wait(stage.join_timeout_s)
            files.put("denied", f"{INVALID_LINE}{_as_openssl(serial)}  # stolen laptop\n")
            denied_at_s = time.monotonic()
            ended = receiver.ended.wait(stage.patience(DENIED_WAIT_S))
            after_s = time.monotonic() - denied_at_s
            stage.record(DeniedStream(joined, after_s if ended else None))
            receiver.cancel()
            streaming.result()
            user.query(job_id, label="while denied")
            admin.query(job_id, label="an admin meanwhile")
            files.put("denied", INVALID_LINE)
            user.query(job_id, label="while the list is invalid")
            files.put("denied", "# empty\n")
            user.query(job_id, label="afterwards")
            admin.stop(job_id)


def _as_openssl(serial: str) -> str:
    """Return a serial number as `openssl x509 -noout -serial` prints it: in whole bytes."""
    return f"serial={'0' * (len(serial) % 2)}{serial.upper()}"


def judge_denied(history: History) -> Iterator[Finding]:
    """The denied client is refused, in new calls and in its stream; other clients are not."""
    seen = history.the(DeniedStream)
    yield assumed("the stream had started", true=seen.joined, got="nothing")
    yield answered("a client that is not on the list is admitted", history.call("before"))
    yield equal("a denied client's stream ends", seen.ended_after_s is not None, want=True)
    if seen.ended_after_s is not None:
        bound_s = DENIED_PROMISED_S + DENIED_LATE_S
        yield at_most_s(
            "seconds from the denial to the stream's end", seen.ended_after_s, bound_s, DENIED_WHY
        )
        stream = history.stream("denied")
        yield equal("the stream has the job's output until then", stream.text, "ready\n")
        yield equal("the stream's status gives the reason", stream.code, "UNAUTHENTICATED")
    for label in ("while denied", "while the list is invalid"):
        yield answered(
            f"a denied client is refused {label}", history.call(label), "UNAUTHENTICATED"
        )
    yield answered("other clients are not refused", history.call("an admin meanwhile"))
    yield answered("a client removed from the list is admitted again", history.call("afterwards"))


DENY_LIST: Final = Check(
    "identity.denied",
    "A certificate on the deny list is refused at its next call, and in streams within 2 s.",
    run_denied, judge_denied, OWN_FILES | {Need.DENY_LIST}, ("R-AUTHZ-1", "96"),
)  # fmt: skip
