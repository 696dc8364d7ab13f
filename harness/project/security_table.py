"""The table of security cases in `docs/security.md`: case, expected, observed, mutant.

Each row names the check that judges the case; what was observed comes from a run's report.
`python -m harness security RUN --write` writes the table into the document, and `--hold` prints
where a run observed something else. A test compares the document with these rows, and requires that
each was observed and passed; it makes no run, so the observations are those of the last `--write`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.drive.identities import CASES, Case
from harness.record.results import CheckResult
from harness.record.verdict import BrokenError, Finding, Verdict

DOCUMENT: Final = Path("docs") / "security.md"
BEGIN: Final = "<!-- the table: made by `python -m harness security RUN --write` -->"
END: Final = "<!-- the table's end -->"
HEAD: Final = (
    "| case | what | expected | observed | judged by | a mutant that it catches |",
    "|---|---|---|---|---|---|",
)
OBSERVED_COLUMN: Final = 4
NOT_RUN: Final = "not run"
WITHIN: Final = "within the bound"
_OBSERVED_CHARACTERS: Final = 90
TARGET: Final = "local"


@dataclass(frozen=True, slots=True)
class Row:
    """One case.

    Attributes:
        case: its number in the catalogue, or a requirement's id.
        what: what the check or test does.
        expected: the required result.
        judge: the check, or the test (its path), that judges the case.
        promise: a regular expression that matches the promises of the findings that judge it;
            empty for a test.
        mutants: names of the mutants that exactly this row detects: the harness's if a check judges
            it, those of `tests/mutants/` if a test does.
        unproven: why no mutant exists.
    """

    case: str
    what: str
    expected: str
    judge: str
    promise: str = ""
    mutants: tuple[str, ...] = ()
    unproven: str = ""

    @property
    def is_test(self) -> bool:
        """Whether a test of this project judges it, not a check of any server."""
        return "/" in self.judge


ACCEPTED: Final = "a refusal would fail the check"
CLIENT: Final = "kept by the client, here Python's TLS"
NO_CONTROL: Final = "kept by gRPC; no control: the probe has not seen a server that fails it"

_TLS: Final = ("does not verify client certificates",)
_UNVERIFIED: Final = ("does not verify what client certificates and their keys are for",)
_OF_CERTIFICATE: Final = {
    "any key usage": _UNVERIFIED,
    "Ed25519 key": _UNVERIFIED,
    "elliptic curve": ("refuses keys on the curve P-256",),
    "elliptic curve P-384": ("accepts of all curves only P-256",),
    "RSA of 3072 bits": ("accepts RSA keys of two sizes only",),
    "RSA of 1024 bits": ("accepts RSA keys of 1024 bits",),
    "no key usage": ("accepts certificates without an extended key usage",),
    "no role": ("treats callers without a role as users",),
    "no role, and an admin's serial number": ("knows a role by the serial number",),
    "both roles": ("accepts a certificate with two roles",),
    "empty role": ("accepts a role with an empty or malformed text",),
    "empty role text": ("accepts a role with an empty or malformed text",),
    "role of the wrong type": ("accepts a role with an empty or malformed text",),
    "truncated role": ("accepts a role with an empty or malformed text",),
    "role with a byte after its text": ("accepts a role with bytes after its text",),
    "no expiry date": ("fails streams of certificates without an expiry date",),
    "admin in the common name, no role": ("treats callers without a role as users",),
}


def _row(case: Case) -> Row:
    accepted = case.expected == "OK"
    mutants = _OF_CERTIFICATE.get(case.name, () if accepted else _TLS)
    unproven = ACCEPTED if accepted and not mutants else ""
    return Row(
        str(case.number) if case.number else "-",
        f"client certificate: {case.name}",
        "accepted" if accepted else case.expected,
        "identity.certificate-rules" if case.is_optional else "identity.certificates",
        rf": {re.escape(case.name)}(?: \(case \d+\))?$",
        mutants,
        unproven,
    )


_CERTIFICATES: Final = tuple(map(_row, CASES))
_TESTS: Final = "tests/integration"

ROWS: Final = (
    Row("1", "no client certificate", "refused", "identity.strangers",
        "client without certificate", ("requires no client certificate",)),
    *_CERTIFICATES,
    Row("11", "plaintext to the TLS port", "refused", "identity.strangers",
        "client without TLS", unproven="kept by gRPC; a server without TLS would fail every check"),
    Row("12", "a server of another name", "refused by the client", "identity.strangers",
        "server of another name", unproven=CLIENT),
    Row("13", "a client that trusts another CA", "refused by the client", "identity.strangers",
        "server of an untrusted authority", unproven=CLIENT),
    Row("R-TLS-1", "this project's client, with a server of TLS 1.2 alone", "refused by the client",
        f"{_TESTS}/test_interop.py::test_our_client_speaks_only_tls_13",
        unproven="the same test sees a server of TLS 1.3 accepted"),
    Row("14", "TLS 1.0, 1.1, 1.2, by Python's TLS", "refused", "identity.versions",
        r"TLSv1(\.[12])? is refused", ("accepts TLS 1.2",)),
    Row("14", "TLS 1.0, 1.1, 1.2, by openssl", "refused", "identity.openssl",
        r"TLSv1(\.[12])? is refused", ("accepts TLS 1.2 with a CBC cipher",)),
    Row("14", "each cipher of TLS 1.2 alone, by openssl", "none accepted", "identity.openssl",
        "accepted ciphers of TLS 1.2", ("accepts TLS 1.2 with a CBC cipher",)),
    Row("15", "no ALPN, and ALPN of HTTP/1.1", "closed", "identity.strangers",
        "closed without an answer",
        unproven="kept by gRPC; a test shows that TLS alone accepts such a client"),
    Row("23", "each rpc, by an admin", "allowed", "identity.roles", "is allowed: admin$",
        unproven=ACCEPTED),
    Row("23", "query and stream, by a user", "allowed", "identity.roles", "is allowed: user$",
        ("refuses users StreamLogs",)),
    Row("23", "each rpc for admins, by a user", "PERMISSION_DENIED", "identity.roles",
        "is refused: user$", ("allows users every rpc", "allows users StartJob")),
    Row("23", "each rpc, by a certificate without a role, a purpose or a strong key", "refused",
        "identity.roles", "is refused: (?!user$)",
        ("allows callers without a role ListJobs",)),
    Row("23", "an rpc that does not exist", "UNIMPLEMENTED", "identity.roles",
        "an rpc that does not exist", ("returns NOT_FOUND for an unknown rpc",)),
    Row("23", "a new rpc that is missing from the permissions", "PERMISSION_DENIED for every role",
        f"{_TESTS}/test_audit.py::test_unlisted_rpc_is_refused_to_every_role",
        mutants=("an rpc missing from the permissions is allowed",)),
    Row("24", "a TLS session resumed after the certificate's end", "UNAUTHENTICATED",
        "identity.resumption", "is refused once the certificate has expired",
        ("checks a certificate's validity only in the handshake",)),
    Row("25", "a certificate that expires during a stream",
        "UNAUTHENTICATED, not before and within 10 s", "identity.expiry",
        "the stream ends when|from the certificate's end",
        ("does not end streams when their certificate expires",
         "ends streams a second before their certificate expires")),
    Row("25", "the same, of a client that reads nothing", "its slot is free within 10 s",
        "identity.stalled", "certificate is expired", ("does not cancel stalled streams",)),
    Row("26", "certificates renewed under a running server", "used; streams continue",
        "identity.rotation", "uses the new certificate|continues",
        ("does not reload renewed certificates",)),
    Row("26", "a renewed key that does not match", "the old pair stays", "identity.rotation",
        "mismatched key", ("does not reload renewed certificates",)),
    Row("27", "early data (0-RTT) allowed by a ticket, by openssl", "0 bytes",
        "identity.openssl", "bytes of early data",
        unproven="kept by gRPC; the check shows the probe openssl's server, which allows it"),
    Row("27", "renegotiation, by sslyze", "not offered", "identity.scanner", "renegotiation",
        unproven=NO_CONTROL),
    Row("28", "every version, every cipher, by sslyze", "TLS 1.3 with strong ciphers alone",
        "identity.scanner", "cipher suite", ("accepts TLS 1.2 without forward secrecy",)),
    Row("28", "compression, Heartbleed, CCS injection, by sslyze", "not found",
        "identity.scanner", "compression|Heartbleed|CCS", unproven=NO_CONTROL),
    Row("29", "a key that others can read", "no start; the fault is named", "identity.start",
        "does not start with a key that (its group|everyone)",
        ("starts with a key that its group can read",)),
    Row("29", "a key that does not match the certificate", "no start; the fault is named",
        "identity.start", "the key of another",
        ("starts with a key that does not match its certificate",)),
    Row("29", "a CA's certificate that everyone can write", "no start; the fault is named",
        "identity.start", "does not start with an authority",
        ("starts with an authority that everyone can write",)),
    Row("30", "the certificates of `make certs`",
        "RSA 4096, SHA-256, 365/365/45 days, usages, roles",
        "tests/certs/test_make_certs.py", unproven="the test reads the certificates themselves"),
    Row("R-AUTHZ-1", "a certificate that is put on the deny list",
        "UNAUTHENTICATED, in streams within 2 s (plus 3 s for a busy machine)", "identity.denied",
        "denied client is|status gives the reason|from the denial",
        ("does not end the streams of denied clients", "does not reload the deny list",
         "denies no client when its deny list is invalid")),
    Row("R-AUTHZ-1", "the same, of a client that reads nothing", "its slot is free, as above",
        "identity.stalled", "certificate is denied", ("does not cancel stalled streams",)),
    Row("R-AUTHZ-1", "the audit log: caller, rpc and status of every call", "one line each",
        f"{_TESTS}/test_audit.py::test_audit_line_reports_caller_subject_and_status",
        mutants=("the audit line omits a call's job",
                 "the audit line does not escape a client's text")),
    Row("43", "a secret in the server's environment", "absent from jobs", "lifecycle.inheritance",
        "server's secrets", ("gives jobs its own environment",)),
    Row("79", "more calls on a connection than announced", "reset", "abuse.streams",
        "over the maximum are refused|announces", ("allows any number of calls on a connection",)),
    Row("80", "10,000 idle connections", "other clients are served; nothing is left", "abuse.idle",
        "idle connections|meanwhile|of the server afterwards",
        ("leaks a descriptor for every fourth connection",)),
    Row("80", "no descriptor left", "reported; served again afterwards", "abuse.descriptors",
        "meanwhile succeeds|accepted again|start again",
        ("does not report that no descriptor is left",)),
    Row("81", "silent TCP, a handshake byte by byte", "closed in time", "abuse.handshakes",
        "does not finish its handshake", ("waits ten minutes for a handshake",)),
    Row("82", "10,000 calls that are reset", "nothing is left", "abuse.resets",
        "lost nothing|of the server afterwards", ("leaks a descriptor per stream",)),
    Row("82", "a flood of pings", "the connection is ended", "abuse.pings",
        "only sends pings", ("accepts any number of pings",)),
    Row("82", "a request of 8 MiB", "RESOURCE_EXHAUSTED", "abuse.oversized",
        "for its size", ("accepts requests of any size",)),
    Row("82", "metadata of 64 KiB", "refused", "abuse.oversized", "large metadata",
        ("accepts metadata of any size",)),
    Row("82", "a false length, endless headers, compressed headers that expand", "refused",
        "abuse.oversized", "false message length|headers", unproven=NO_CONTROL),
    Row("82", "2,000 calls without their message, by a client without a role",
        "an admin's start, query and stop are answered, within 5 s", "abuse.half-sent",
        "beside the calls half-sent by a client without a role",
        ("authenticates a call only after its message",)),
    Row("82", "the same, by a user", "the same, within 6 s", "abuse.half-sent",
        "beside the calls half-sent by a user", ("waits an hour for a call's message",)),
    Row("82", "streams whose client grants no window", "other clients are unharmed",
        "abuse.windows", "a reader beside|are free", ("sends output to one stream at a time",)),
)  # fmt: skip


def observed(row: Row, results: Sequence[CheckResult]) -> str:
    """Return what a run observed of a row, without what varies between runs."""
    if row.is_test:
        return "as expected, or the build fails"
    result = next((each for each in results if each.name == row.judge), None)
    if result is None:
        return NOT_RUN
    if result.verdict is Verdict.SKIPPED:
        return f"SKIPPED: {result.decisive[0].promise}"
    found = [each for each in result.findings if re.search(row.promise, each.promise)]
    if not found:
        raise BrokenError(f"{row.judge} has no finding on {row.promise!r} (case {row.case})")
    return "; ".join(dict.fromkeys(map(_observation, found)))


def _observation(finding: Finding) -> str:
    got = " ".join(finding.got.replace("|", "/").split())
    if finding.verdict is not Verdict.PASS:
        return f"{finding.verdict}: {got[:_OBSERVED_CHARACTERS]}"
    if finding.tolerance or (re.fullmatch(r"[\d.e+-]+", got) and not got.isdigit()):
        return WITHIN
    got = re.sub(r"^([A-Z]+_?[A-Z_]+): .*", r"\1", got)  # without a status's detail
    got = re.sub(r"^(refused|closed): \w+$", r"\1", got)  # the error depends on the TLS library
    return got[:_OBSERVED_CHARACTERS].strip()


def table(results: Sequence[CheckResult]) -> list[str]:
    """Return the table's lines."""
    return [*HEAD, *(_line(row, observed(row, results)) for row in ROWS)]


def _line(row: Row, seen: str) -> str:
    judge = f"`{row.judge.rpartition('::')[2] if row.is_test else row.judge}`"
    mutants = "; ".join(row.mutants) or f"none: {row.unproven}"
    return f"| {row.case} | {row.what} | {row.expected} | {seen} | {judge} | {mutants} |"


def documented(text: str) -> list[str]:
    """Return the table's lines in the document.

    Raises:
        BrokenError: the document has no table.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise BrokenError(f"{DOCUMENT} lacks the lines {BEGIN!r} and {END!r}")
    return text[begin + len(BEGIN) : end].strip().splitlines()


def with_table(text: str, lines: Sequence[str]) -> str:
    """Return the document with another table.

    Raises:
        BrokenError: the document has no place for a table.
    """
    documented(text)
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}"


def find_differences(documented_lines: Sequence[str], run_lines: Sequence[str]) -> list[str]:
    """Return the rows that a run observed otherwise than documented; not run or skipped are equal.

    A row that only one of them has is a difference.
    """
    unseen = (f"| {NOT_RUN} |", f"| {Verdict.SKIPPED}: ")
    of_rows = {_row_of(line): line for line in documented_lines}
    lines = [line for line in run_lines if not any(mark in line for mark in unseen)]
    untrue = [f"run:      {line}" for line in lines if of_rows.get(_row_of(line)) != line]
    rows = {_row_of(line) for line in run_lines}
    return untrue + [f"document: {line}" for row, line in of_rows.items() if row not in rows]


def _row_of(line: str) -> tuple[str, ...]:
    return tuple(line.split("|")[1:3])
