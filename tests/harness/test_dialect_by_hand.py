"""The commands by which a person repeats the calls of a dialect: they run in any folder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.message import Message

from harness.dialects.command_line import CommandTransport
from harness.dialects.command_table import CommandTable
from harness.dialects.dialect import rpc_of
from harness.dialects.load import load_dialect
from harness.host.cert_files import CertFiles
from harness.host.repository import ROOT
from harness.record.history import Call, CallByHand, History, Outcome, Record
from harness.report.by_hand import script_of
from jobworker.v1 import jobworker_pb2 as pb

ADDRESS = "127.0.0.1:5051"
FILES = CertFiles(Path("c/ca.crt"), Path("c/admin.crt"), Path("c/admin.key"))


def test_a_grpc_dialect_is_repeated_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("mine", "shared"):
        (tmp_path / folder).mkdir()
    proto, toml = (ROOT / "tests" / "dialects" / f"nested.{kind}" for kind in ("proto", "toml"))
    (tmp_path / "mine" / "nested.proto").write_text(proto.read_text())
    text = re.sub("(?m)^(proto = .*)$", '\\1\nimports = ["../shared"]', toml.read_text())
    (tmp_path / "mine" / "dialect.toml").write_text(text)
    monkeypatch.chdir(tmp_path)

    transport = load_dialect("mine/dialect.toml").transport
    words = transport.by_hand(pb.QueryJobRequest(job_id="1"), ADDRESS, FILES)

    first = words.index("-import-path")
    assert words[first : first + 6] == (
        "-import-path", f"{tmp_path}/mine/../shared", "-import-path", f"{tmp_path}/mine",
        "-proto", "nested.proto",
    )  # fmt: skip


TABLE: dict[str, Any] = {
    "start": ["run", "--unit=job-{new_id}", "{command}"],
    "query": ["show", "job-{id}"],
    "stream": ["show", "{id}"],
    "answers": {"query": ["(?P<status>.+)"]},
}


def script(records: Sequence[tuple[str, Message, str]], **changes: object) -> list[str]:
    """Return the script of calls, each with its label, its request and the id that it answered."""
    transport = CommandTransport(msgspec.convert({**TABLE, **changes}, CommandTable), Path())
    history: list[Record] = []
    for label, request, job_id in records:
        words = transport.by_hand(request, ADDRESS, FILES)
        setup = transport.setup_by_hand(FILES)
        history.append(CallByHand(label, rpc_of(request), words, ADDRESS, "c", setup))
        response = {"job_id": job_id} if job_id else {}
        history.append(Call(label, rpc_of(request), Outcome.OK, "OK", "", 0.0, 1.0, response))
    return [line for line in script_of(History(history)).splitlines()[3:] if line[0] != ":"]


def test_an_id_that_the_caller_chooses_is_chosen_once_and_used_by_later_calls() -> None:
    start = pb.StartJobRequest(command_name="true")
    query = pb.QueryJobRequest(job_id="5e-2")

    assert script([("s1", start, "5e-1"), ("s2", start, "5e-2"), ("q", query, "")]) == [
        "JOB=$(uuidgen)  # an id for the next job",
        'run --unit=job-"$JOB" true',
        "JOB1=$(uuidgen)  # an id for the next job",
        'run --unit=job-"$JOB1" true',
        'show job-"$JOB1"',
    ]


def test_a_start_whose_words_are_shared_has_an_id_of_its_own() -> None:
    start = pb.StartJobRequest(command_name="true")
    words = ["run", "1", "2", "3", "4", "5", "{new_id}", "{command}"]

    lines = script([("s1", start, "1"), ("s2", start, "2")], start=words)

    assert lines == [
        'call() { run 1 2 3 4 5 "$@"; }',
        *2 * ["JOB=$(uuidgen)  # an id for the next job", 'call "$JOB" true'],
    ]


def test_files_of_a_program_are_put_where_it_wants_them_before_the_first_call() -> None:
    query = pb.QueryJobRequest(job_id="x")

    assert script([("q", query, ""), ("r", query, "")], files={"tls/me.key": "{key}"}) == [
        'install -D -m 600 "$CERTS"/admin.key "$CERTS"/.work-admin/tls/me.key',
        *2 * ["show job-x"],
    ]
    assert script([("q", query, "")], environment={"HOME": "{work}"}) == [
        'mkdir -p "$CERTS"/.work-admin', 'env HOME="$CERTS"/.work-admin show job-x'
    ]  # fmt: skip
    assert not Path("c").exists()
