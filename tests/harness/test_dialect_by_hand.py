"""The commands by which a person repeats the calls of a dialect: they run in any folder."""

import re
from pathlib import Path

import pytest

from harness.dialects.load import load_dialect
from harness.host.cert_files import CertFiles
from harness.host.repository import ROOT
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
