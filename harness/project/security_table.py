"""The table of security cases in `docs/security.md`: case, expected, observed, mutant.

The rows stand here, each with the check that judges it; what was observed comes from a run's
report. `python -m harness security RUN --write` puts the table into the document, and `--hold` says
where a run saw other than the document does. A test holds the document against these rows, and sees
that each was observed and passed; it makes no run, so that what was observed is as old as the last
`--write`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.drive.identities import CASES
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
        what: what is tried.
        expected: what must come of it.
        judge: the check, or the test (its path), that judges it.
        promise: what the findings' promises have in them that judge it (a regular expression);
            empty for a test.
        mutants: names of servers broken on purpose that this very row notices: of the harness's
            where a check judges it, of the tests' own (`tests/mutants/`) where a test does.
        unproven: why there is none.
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
        """Whether a test of the project's judges it, not a check of any server."""
        return "/" in self.judge


LET_IN: Final = "a refusal would show by itself"
CLIENT: Final = "the client's, here Python's TLS"
NO_CONTROL: Final = "gRPC's own, and no control: the probe was never shown a server that has it"

_TLS: Final = ("looks at nobody's certificate",)
_OF_CERTIFICATE: Final = {
    "elliptic curve": ("refuses elliptic curves",),
    "RSA of 1024 bits": ("takes weak keys",),
    "no key usage": ("takes certificates that are for nothing",),
    "no role": ("makes everybody without a role a user",),
    "both roles": ("takes the first of two roles",),
    "empty role": ("takes a role without a text",),
    "empty text": ("takes a role without a text",),
    "role that is no text": ("takes a role without a text",),
    "role cut short": ("takes a role without a text",),
    "without an end": ("breaks the streams of certificates that have no end",),
    "admin in the name, no role": ("makes everybody without a role a user",),
}
_CERTIFICATES: Final = tuple(
    Row(
        str(case.number) if case.number else "-",
        f"a client's certificate: {case.name}",
        "let in" if case.expected == "OK" else case.expected,
        "identity.certificates",
        rf": {re.escape(case.name)}(?: \(case \d+\))?$",
        _OF_CERTIFICATE.get(case.name, () if case.expected == "OK" else _TLS),
        LET_IN if case.expected == "OK" and case.name not in _OF_CERTIFICATE else "",
    )
    for case in CASES
)
_TESTS: Final = "tests/integration"

ROWS: Final = (
    Row("1", "no client certificate", "refused", "identity.strangers",
        "stranger with no certificate", ("asks nobody for a certificate",)),
    *_CERTIFICATES,
    Row("11", "plaintext to the TLS port", "refused", "identity.strangers",
        "stranger with no TLS", unproven="gRPC's own; a server without TLS would fail every check"),
    Row("12", "a server of another name", "the client refuses", "identity.strangers",
        "taken for another", unproven=CLIENT),
    Row("13", "a client that trusts another CA", "the client refuses", "identity.strangers",
        "authority that is not trusted", unproven=CLIENT),
    Row("R-TLS-1", "our client, and a server that speaks TLS 1.2 alone", "the client refuses",
        f"{_TESTS}/test_interop.py::test_our_client_speaks_tls_13_alone",
        unproven="the same test sees a server of TLS 1.3 accepted"),
    Row("14", "TLS 1.0, 1.1, 1.2, by Python's TLS", "refused", "identity.versions",
        r"TLSv1(\.[12])? is refused", ("speaks TLS 1.2",)),
    Row("14", "TLS 1.0, 1.1, 1.2, by openssl", "refused", "identity.openssl",
        r"TLSv1(\.[12])? is refused", ("speaks TLS 1.2 with an old cipher",)),
    Row("14", "each cipher of TLS 1.2 alone, by openssl", "none taken", "identity.openssl",
        "ciphers of TLS 1.2 that are taken", ("speaks TLS 1.2 with an old cipher",)),
    Row("15", "no ALPN, and ALPN of HTTP/1.1", "hung up", "identity.strangers",
        "gets no answer", unproven="gRPC's own; a server that answers is seen to"),
    Row("23", "each rpc, by an admin", "let in", "identity.roles", "may (?!not).*: admin$",
        unproven=LET_IN),
    Row("23", "query and stream, by a user", "let in", "identity.roles", "may (?!not).*: user$",
        ("refuses users their streams",)),
    Row("23", "each rpc for admins, by a user", "PERMISSION_DENIED", "identity.roles",
        "may not .*: user$", ("lets users do everything", "lets users start jobs")),
    Row("23", "each rpc, by who has no role, no purpose or a weak key", "refused",
        "identity.roles", "may not .*: (?!user$)",
        ("lets everybody without a role list the jobs",)),
    Row("23", "an rpc that does not exist", "UNIMPLEMENTED", "identity.roles",
        "an rpc that does not exist", ("says NOT_FOUND of an rpc that does not exist",)),
    Row("23", "an rpc that is added tomorrow", "PERMISSION_DENIED to everybody",
        f"{_TESTS}/test_audit.py::test_an_rpc_added_tomorrow_is_refused_to_everybody_until_it_is_listed",
        mutants=("an rpc that nobody listed is open",)),
    Row("24", "a TLS session resumed after the certificate's end", "UNAUTHENTICATED",
        "identity.resumption", "is refused once the certificate has expired",
        ("leaves a certificate's dates to the handshake",)),
    Row("25", "a certificate that expires inside a stream",
        "UNAUTHENTICATED, not before and within 10 s", "identity.expiry",
        "its stream ends as|from the certificate's end",
        ("lets streams outlive their certificate",
         "ends streams a second before their certificate")),
    Row("25", "the same, of a client who reads nothing", "its slot is free within 10 s",
        "identity.stalled", "certificate is expired",
        ("waits for clients who read nothing, whatever becomes of them",)),
    Row("26", "certificates renewed under a running server", "used; streams live on",
        "identity.rotation", "uses the new certificate|lives on", ("reads its certificates once",)),
    Row("26", "a renewed key that does not fit", "the old pair stays", "identity.rotation",
        "does not fit", ("reads its certificates once",)),
    Row("27", "early data (0-RTT): what a ticket allows, by openssl", "0 bytes",
        "identity.openssl", "bytes of early data",
        unproven="gRPC's own; openssl's server, which allows it, is seen to"),
    Row("27", "renegotiation, by sslyze", "not there", "identity.scanner", "renegotiation",
        unproven=NO_CONTROL),
    Row("28", "every version, every cipher, by sslyze", "TLS 1.3, strong ciphers alone",
        "identity.scanner", "cipher suite", ("speaks TLS 1.2 without forward secrecy",)),
    Row("28", "compression, Heartbleed, CCS injection, by sslyze", "not there",
        "identity.scanner", "compression|Heartbleed|CCS", unproven=NO_CONTROL),
    Row("29", "a key that others may read", "no start, and why", "identity.start",
        "does not start with a key that (its group|everybody)",
        ("starts with a key that its group may read",)),
    Row("29", "a key that is not the certificate's", "no start, and why", "identity.start",
        "with the key of another", ("uses a key that is not its certificate's",)),
    Row("29", "a CA's certificate that everybody may replace", "no start, and why",
        "identity.start", "does not start with an authority",
        ("starts with an authority that everybody may replace",)),
    Row("30", "what `make certs` makes", "RSA 4096, SHA-256, 365/365/45 days, usages, roles",
        "tests/certs/test_make_certs.py", unproven="it reads what was made"),
    Row("R-AUTHZ-1", "a certificate that is put on the deny list",
        "UNAUTHENTICATED, in streams within 2 s (and 3 of a busy machine's)", "identity.denied",
        "denied caller is|stream says why|from the denial",
        ("lets the streams of the denied go on", "reads its deny list once",
         "lets everybody in when its deny list is bad")),
    Row("R-AUTHZ-1", "the same, of a client who reads nothing", "its slot is free, as above",
        "identity.stalled", "certificate is denied",
        ("waits for clients who read nothing, whatever becomes of them",)),
    Row("R-AUTHZ-1", "the audit: who, what, result, of every call", "one line each",
        f"{_TESTS}/test_audit.py::test_each_call_leaves_one_line_that_says_who_what_and_how_it_ended",
        mutants=("the audit forgets what a call was about",
                 "the audit quotes what a client says as it is")),
    Row("43", "a secret in the server's environment", "no job sees it", "lifecycle.inheritance",
        "server's secrets", ("gives jobs its own environment",)),
    Row("79", "more calls on a connection than announced", "reset", "abuse.streams",
        "they are refused|announces", ("allows any number of calls on a connection",)),
    Row("80", "10,000 idle connections", "work goes on, nothing is left", "abuse.idle",
        "idle connections|meanwhile|of the server afterwards",
        ("leaves a descriptor open for one connection in four",)),
    Row("80", "no descriptor left", "said; all well afterwards", "abuse.descriptors",
        "meanwhile succeeds|let in again|start again",
        ("says nothing of what is lacking",)),
    Row("81", "silent TCP, a handshake byte by byte", "closed in time", "abuse.handshakes",
        "does not finish its handshake", ("waits ten minutes for a handshake",)),
    Row("82", "10,000 calls that are reset", "nothing is left", "abuse.resets",
        "lost nothing|of the server afterwards", ("leaves a descriptor open for each stream",)),
    Row("82", "a flood of pings", "the connection is ended", "abuse.pings",
        "nothing but pings", ("bears any number of pings",)),
    Row("82", "a request of 8 MiB", "RESOURCE_EXHAUSTED", "abuse.oversized",
        "for its size", ("takes requests of any size",)),
    Row("82", "metadata of 64 KiB", "refused", "abuse.oversized", "large metadata",
        ("takes metadata of any size",)),
    Row("82", "a length that lies, headers without end, headers that unpack", "refused",
        "abuse.oversized", "a length that lies|headers", unproven=NO_CONTROL),
    Row("82", "2,000 calls without their message, by who has no role",
        "an admin's start, query and stop are answered, within 5 s", "abuse.half-sent",
        "beside the half-sent calls of: no role",
        ("asks who calls only when the request is there",)),
    Row("82", "the same, by a user", "the same, within 6 s", "abuse.half-sent",
        "beside the half-sent calls of: user", ("waits an hour for a request",)),
    Row("82", "streams whose client allows no byte", "others are not hurt", "abuse.windows",
        "a reader beside|are free", ("sends one message at a time",)),
)  # fmt: skip


def observed(row: Row, results: Sequence[CheckResult]) -> str:
    """Return what a run saw of a row, without what differs from run to run."""
    if row.is_test:
        return "as expected, or the build fails"
    result = next((each for each in results if each.name == row.judge), None)
    if result is None:
        return NOT_RUN
    if result.verdict is Verdict.SKIPPED:
        return f"SKIPPED: {result.telling[0].promise}"
    found = [each for each in result.findings if re.search(row.promise, each.promise)]
    if not found:
        raise BrokenError(f"{row.judge} has no finding on {row.promise!r} (case {row.case})")
    return "; ".join(dict.fromkeys(map(_told, found)))


def _told(finding: Finding) -> str:
    got = " ".join(finding.got.replace("|", "/").split())
    if finding.verdict is not Verdict.PASS:
        return f"{finding.verdict}: {got[:_OBSERVED_CHARACTERS]}"
    if finding.tolerance or (re.fullmatch(r"[\d.e+-]+", got) and not got.isdigit()):
        return WITHIN
    got = re.sub(r"^([A-Z]+_?[A-Z_]+): .*", r"\1", got)  # a status speaks for itself
    got = re.sub(r"^(refused|closed): \w+$", r"\1", got)  # by which error, TLS libraries differ
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
        BrokenError: it has none.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise BrokenError(f"{DOCUMENT} lacks the lines {BEGIN!r} and {END!r}")
    return text[begin + len(BEGIN) : end].strip().splitlines()


def with_table(text: str, lines: Sequence[str]) -> str:
    """Return the document with another table.

    Raises:
        BrokenError: it has no place for one.
    """
    documented(text)
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}"


def differing(told: Sequence[str], seen: Sequence[str]) -> list[str]:
    """Return what a run saw and the document does not tell so; what was not run or skipped is not.

    A row that is in one of them alone is told as such.
    """
    unseen = (f"| {NOT_RUN} |", f"| {Verdict.SKIPPED}: ")
    of_rows = {_row_of(line): line for line in told}
    lines = [line for line in seen if not any(mark in line for mark in unseen)]
    untrue = [f"seen:  {line}" for line in lines if of_rows.get(_row_of(line)) != line]
    rows = {_row_of(line) for line in seen}
    return untrue + [f"told:  {line}" for row, line in of_rows.items() if row not in rows]


def _row_of(line: str) -> tuple[str, ...]:
    return tuple(line.split("|")[1:3])
