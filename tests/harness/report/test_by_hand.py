"""The script by which an author repeats a check's calls: a shell reads exactly those words."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from harness.dialects.dialect import CANONICAL
from harness.dialects.load import load_dialect
from harness.host.cert_files import CertFiles
from harness.host.processes import run
from harness.record.history import (
    CALLS_BY_HAND_MAX,
    Call,
    CallByHand,
    History,
    Outcome,
    Record,
    Recorder,
    Stream,
)
from harness.report.by_hand import script_of
from jobworker.v1 import jobworker_pb2 as pb

ADDRESS = "127.0.0.1:5051"
CERTIFICATES = "/tmp/c d"  # noqa: S108 - only a text
FILES = CertFiles(*(Path(CERTIFICATES, name) for name in ("ca.crt", "admin.crt", "admin.key")))
NASTY = "'\"$HOME `id` $(id) \\ \n\té\x85 !x * ; # >f"


def by_hand(words: Sequence[str], rpc: str = "QueryJob", label: str = "q") -> CallByHand:
    return CallByHand(label, rpc, tuple(words), ADDRESS, CERTIFICATES)


def call(rpc: str, label: str, code: str = "OK", detail: str = "", job_id: str = "") -> Call:
    response = {"job_id": job_id} if job_id else {}
    outcome = Outcome.OK if code == "OK" else Outcome.ERROR
    return Call(label, rpc, outcome, code, detail, 0.0, 1.0, response)


def words_of(script: str) -> list[list[str]]:
    """Return the words of each `grpcurl` that a shell runs, in order."""
    fake = r"""grpcurl() { printf '%s\0' "$#" "$@"; }; """
    text = script.replace("CERTS=certs ", f"CERTS={shlex.quote(CERTIFICATES)} ")
    done = run(["bash", "-c", f"{fake}\n{text}"], 20.0)
    assert (done.exit_code, done.stderr) == (0, "")
    left = done.stdout.split("\0")[:-1]
    found = []
    while left:
        count = int(left[0])
        found.append(left[1 : count + 1])
        left = left[count + 1 :]
    return found


def test_shell_reads_the_words_of_every_call_whatever_is_in_them() -> None:
    request = pb.StartJobRequest(command_name="sh", command_args=["-c", NASTY, ""])
    words = CANONICAL.transport.by_hand(request, ADDRESS, FILES)
    other = CANONICAL.transport.by_hand(pb.QueryJobRequest(job_id=NASTY), ADDRESS, FILES)
    odd = ("grpcurl", NASTY, "", f"x{ADDRESS}y", CERTIFICATES)
    for calls in ((words, other), (odd,), (words, odd)):
        script = script_of(History([by_hand(each) for each in calls]))
        assert words_of(script) == [list(each[1:]) for each in calls]


def test_address_certificates_and_ids_are_variables() -> None:
    first = CANONICAL.transport.by_hand(pb.StartJobRequest(command_name="a"), ADDRESS, FILES)
    query = CANONICAL.transport.by_hand(pb.QueryJobRequest(job_id="id-1"), ADDRESS, FILES)
    script = script_of(
        History(
            [
                by_hand(first, "StartJob", "s1"),
                call("StartJob", "s1", job_id="id-1"),
                by_hand(first, "StartJob", "s2"),
                call("StartJob", "s2", job_id="id-2"),
                by_hand(query, "QueryJob", "q"),
                call("QueryJob", "q", "UNKNOWN", "what?"),
            ]
        )
    )
    assert script.splitlines() == [
        "SERVER=127.0.0.1:5051  # the server's address",
        "CERTS=certs  # the directory that `identities certs` made",
        (
            'call() { grpcurl -cacert "$CERTS"/ca.crt -cert "$CERTS"/admin.crt '
            '-key "$CERTS"/admin.key -import-path proto -proto jobworker/v1/jobworker.proto '
            '-d "$@"; }'
        ),
        """call '{"command_name": "a"}' "$SERVER" jobworker.v1.JobWorker/StartJob""",
        "# answered OK",
        "JOB1=  # the id of job 1, from its answer",
        """call '{"command_name": "a"}' "$SERVER" jobworker.v1.JobWorker/StartJob""",
        "# answered OK",
        """call '{"job_id": "'"$JOB1"'"}' "$SERVER" jobworker.v1.JobWorker/QueryJob""",
        "# answered UNKNOWN: what?",
    ]


def test_answer_from_a_server_stays_in_its_comment() -> None:
    answers = [call("QueryJob", "q", "UNKNOWN", "x\nrm -rf /\r\x1b[2K")]
    script = script_of(History([by_hand(["grpcurl", "a"]), *answers]))
    assert script.endswith("# answered UNKNOWN: x rm -rf / \\x1b[2K")
    assert words_of(script) == [["a"]]


def test_answer_of_an_ambiguous_label_is_left_out() -> None:
    records: list[Record] = [
        by_hand(["grpcurl"]),
        call("QueryJob", "q", "A"),
        call("QueryJob", "q", "B"),
    ]
    assert "answered" not in script_of(History(records))


def test_script_counts_the_calls_that_it_leaves_out() -> None:
    stream = Stream("s", "j", Outcome.OK, "OK", "", 5, "", 0.0, 1.0)
    records: list[Record] = [by_hand(["grpcurl"]), call("QueryJob", "q"), call("QueryJob", "r")]
    assert script_of(History([*records, stream])).endswith("\n# 2 more calls are left out.")


def test_command_with_a_huge_argument_is_named_and_left_out() -> None:
    script = script_of(History([by_hand(["grpcurl", "x" * 10_000])]))
    assert script.endswith("# QueryJob is left out: it has an argument of 10008 characters.")


def test_check_without_calls_has_no_script() -> None:
    assert script_of(History([])) == ""


def test_recorder_keeps_only_the_first_calls_of_each_rpc() -> None:
    recorder = Recorder()
    made = []

    def make() -> CallByHand:
        made.append(1)
        return by_hand(["x"])

    for _ in range(CALLS_BY_HAND_MAX + 5):
        recorder.add_by_hand("StartJob", make)
    recorder.add_by_hand("QueryJob", make)
    assert len(made) == len(recorder.history().records) == CALLS_BY_HAND_MAX + 1


def test_command_line_dialect_is_repeated_by_its_own_program(tmp_path: Path) -> None:
    files = CertFiles(*(tmp_path / name for name in ("ca.crt", "admin.crt", "admin.key")))
    dialect = load_dialect("worker-service")
    words = dialect.transport.by_hand(pb.StopJobRequest(job_id="id-1"), ADDRESS, files)
    assert words[0] == "env"
    assert "python" in words  # the interpreter of this machine is of no use to an author
    assert "stop" in words
    assert "id-1" in words
    assert any(ADDRESS in word for word in words)
