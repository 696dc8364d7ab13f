"""Tables of command lines that are wrong: each is one error that names the key and what it may be.

Nothing outside of the judge's own directory changes.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.dialects.command_line import CommandTransport
from harness.dialects.command_table import CommandTable
from harness.host.cert_files import CertFiles
from harness.record.verdict import BrokenError

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
