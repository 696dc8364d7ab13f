"""The script by which an author repeats a check's calls: a shell reads exactly those words."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

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
from harness.record.terms import Terms
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
        "# for bash",
        "SERVER=127.0.0.1:5051  # address of the server",
        "CERTS=certs  # the directory that `identities certs` made",
        (
            'call() { grpcurl -cacert "$CERTS"/ca.crt -cert "$CERTS"/admin.crt '
            '-key "$CERTS"/admin.key -import-path proto -proto jobworker/v1/jobworker.proto '
            '-d "$@"; }'
        ),
        """call '{"command_name": "a"}' "$SERVER" jobworker.v1.JobWorker/StartJob""",
        ": answered OK",
        "JOB1=  # the id of job 1, from its answer",
        """call '{"command_name": "a"}' "$SERVER" jobworker.v1.JobWorker/StartJob""",
        ": answered OK",
        """call '{"job_id": "'"$JOB1"'"}' "$SERVER" jobworker.v1.JobWorker/QueryJob""",
        ": answered 'UNKNOWN: what?'",
    ]


def test_number_is_an_id_only_as_a_whole_value_of_a_later_call() -> None:
    start = '{"cpu": 0.1, "memory_bytes": 1, "command_line": "echo 1"}'
    query = '{"id": "1", "wait": 21, "text": "a 1"}'
    script = script_of(
        History(
            [
                by_hand(["grpcurl", "-d", start, "v1.1"], "StartJob", "s"),
                call("StartJob", "s", job_id="1"),
                by_hand(["grpcurl", "-d", query, "v1.1"]),
                by_hand(["client", "logs", "1", "--id=1", "--rate=1.1"]),
            ]
        )
    )
    assert script.splitlines()[3:] == [
        f"grpcurl -d '{start}' v1.1",
        ": answered OK",
        "JOB1=  # the id of job 1, from its answer",
        """grpcurl -d '{"id": "'"$JOB1"'", "wait": 21, "text": "a 1"}' v1.1""",
        """client logs "$JOB1" --id="$JOB1" --rate=1.1""",
    ]


def test_call_without_an_address_and_certificates_has_its_words() -> None:
    record = CallByHand("q", "QueryJob", ("systemctl", "show", ""), "", "")
    assert script_of(History([record])).splitlines()[-1] == "systemctl show ''"


@pytest.mark.parametrize("directory", [".", "certs", "/c"])
def test_directory_is_a_variable_only_where_a_path_begins_with_it(directory: str) -> None:
    files = CertFiles(*(Path(directory, name) for name in ("ca.crt", "admin.crt", "admin.key")))
    words = ("x", "-cacert", str(files.ca), f"--key={files.key}", "./y", "mycerts/z", "a/c/d")
    record = CallByHand("q", "QueryJob", words, ADDRESS, str(files.ca.parent))
    given = "" if directory == "." else '"$CERTS"/'
    assert script_of(History([record])).splitlines()[3] == (
        f"x -cacert {given}ca.crt --key={given}admin.key ./y mycerts/z a/c/d"
    )


def test_only_jobs_that_a_call_names_are_numbered() -> None:
    starts = [call("StartJob", f"s{n}", job_id=f"job-{n}") for n in range(1, 5)]
    queries = [by_hand(["x", "unit-job-4.service", "job-2", "job-22"])]
    script = script_of(History([*starts, *queries]))
    assert re.findall(r"^(JOB\d+)=", script, re.MULTILINE) == ["JOB1", "JOB2"]
    assert 'x unit-"$JOB2".service "$JOB1" job-22' in script


def test_answer_from_a_server_is_no_command_in_any_shell() -> None:
    text = "x\n$(touch made) `id` 'y\r\x1b[2K"
    answers = [call("QueryJob", "q", "UNKNOWN", text)]
    script = script_of(History([by_hand(["grpcurl", "a"]), *answers]))
    last = script.splitlines()[-1]
    assert shlex.split(last) == [":", "answered", r"UNKNOWN: x $(touch made) `id` 'y \x1b[2K"]
    assert "#" not in last
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


def test_script_of_another_kind_of_server_names_its_certificates() -> None:
    script = script_of(History([Terms(own=False), by_hand(["grpcurl"])]))
    assert "# the directory that `identities certs --scheme DIALECT` made" in script


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
