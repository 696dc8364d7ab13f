"""Tables of command lines that are wrong, and answers: each is one error that says what it may be.

Nothing outside of the judge's own directory changes.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.dialects.command_answers import MismatchError, fill
from harness.dialects.command_line import CommandTransport
from harness.dialects.command_table import CommandTable
from harness.host.cert_files import CertFiles
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb

TABLE: dict[str, Any] = {
    "start": ["cat", "{command}"],
    "query": ["cat", "{id}"],
    "stream": ["cat", "{id}"],
    "answers": {"start": ["(?P<job_id>.+)"], "query": ["(?P<status>.+)"]},
}


@pytest.fixture
def files(tmp_path: Path) -> CertFiles:
    for name in ("ca.crt", "admin.crt", "admin.key"):
        (tmp_path / name).write_text(f"PEM {name}")
    return CertFiles(tmp_path / "ca.crt", tmp_path / "admin.crt", tmp_path / "admin.key")


def connect(certificates: CertFiles, **changes: object) -> None:
    table = msgspec.convert({**TABLE, **changes}, CommandTable)
    CommandTransport(table, certificates.ca.parent).connect("127.0.0.1:9", certificates).close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": ["x", "{job}"]}, r"start: \{job\} is unknown; known are \{command\}"),
        ({"stop": ["x", "a{args...}"]}, r"stop: \{args...\} is unknown"),
        ({"start": ["x", "a{args...}"]}, r"start: \{args...\} must be a word of its own"),
        ({"answers": {"query": ["(?P<state>x)"]}}, "QueryJobResponse has no field 'state'"),
        ({"answers": {"query": ["(?P<status>x"]}}, "answers.query: .* is invalid"),
        ({"answers": {"query": ["(?P<pid>x)"], "start": ["(?P<job_id>x)"]}}, "has no status"),
        ({"answers": {"query": ["(?P<status>x)"]}}, "answers.start has no job_id"),
        ({"states": {"UP": "up"}}, "states.UP: 'up'; write one of running, exited"),
        ({"errors": [{"code": "MISSING"}]}, "code 'MISSING' is not a gRPC status"),
        ({"errors": [{"exit": 3}]}, "give a code, or a pattern with the group"),
        ({"stream_end": "never"}, "stream_end: 'never'; write 'exit' or 'query'"),
        ({"begin": []}, "unknown field `begin`"),
        ({"answers": {"query": {"status": "a", "limits.io_max.device": "b"}}}, "has no field 'lim"),
        (
            {"environment": {"A=B": "1"}},
            "environment: 'A=B' = '1'; a name must not be empty or have",
        ),
        ({"environment": {"A": "a\0b"}}, "neither may have a NUL"),
        ({"query": ["x", "a\0"]}, "query: 'a.x00' has a NUL; no command line can have one"),
        ({"query": []}, "query has no words; give the words of its program"),
        ({"startup_s": -5.0}, "startup_s = -5.0; it must be a number of seconds, 0 or more"),
        ({"startup_s": float("inf")}, "startup_s = inf; it must be a number of seconds, 0 or more"),
        (
            {"start": ["x", ["{args...}{environment...}"]]},
            "start: .* has {args...} and {environment...}; ",
        ),
        ({"files": {"/etc/x": "{ca}"}}, "files: '/etc/x'; it must be a path below {work}"),
        ({"files": {"a/../../x": "{ca}"}}, "files: 'a/../../x'; it must be a path below"),
        ({"files": {"a\0": "{ca}"}}, "it must be a path below"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_the_key_and_what_is_allowed(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert({**TABLE, **changes}, CommandTable)


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"a": "{ca}", "a/b": "{ca}"}, "command.files: .*ca.crt at .*a/b: "),
        ({"kept": "{ca}"}, "command.files: .*kept exists; move it away"),
        ({"a": "{ca}.absent"}, "command.files: .*absent at .*: No such file"),
        ({"a" * 300: "{ca}"}, "command.files: .*: File name too long"),
    ],
)
def test_a_file_that_cannot_be_linked_is_one_error_and_replaces_nothing(
    files: CertFiles, links: dict[str, str], message: str
) -> None:
    kept = files.ca.parent / ".work-admin" / "kept"
    kept.parent.mkdir()
    kept.write_text("mine")

    with pytest.raises(BrokenError, match=message):
        connect(files, files=links)

    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("answer", "printed", "message"),
    [
        ({"started_at": "t"}, '{"t": 1e18}', "printed '1e.18' for started_at: "),
        ({"started_at": "t"}, '{"t": 1e400}', "printed 'inf' for started_at: "),
        ({"status": "s"}, "[" * 100_000, "which is not JSON"),
        ({"limits": "l"}, '{"l": "\\ud800"}', "which is not JSON"),
        ({"limits": "l"}, '{"l": {"io_max": {"device": "8:0"}}}', "for limits: "),
        ({"exit_code": "c"}, '{"c": 4294967296}', "printed '4294967296' for exit_code: "),
    ],
)
def test_an_answer_that_no_field_can_have_is_a_mismatch(
    answer: dict[str, str], printed: str, message: str
) -> None:
    with pytest.raises(MismatchError, match=message):
        fill(pb.QueryJobResponse(), answer, printed, "", {})
