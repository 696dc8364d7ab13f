"""Installation of the programs that the harness starts."""

import os
from pathlib import Path

import pytest

from harness.host.packages import ensure_programs, missing_packages
from harness.record.verdict import BrokenError

PROGRAMS = {"sh": "dash", "no-such-program": "b-package", "nor-this-one": "a-package"}


def test_missing_packages_are_those_of_missing_programs() -> None:
    assert missing_packages(PROGRAMS) == ["a-package", "b-package"]
    ensure_programs({"sh": "dash"})


def test_missing_packages_accept_a_file_in_place_of_a_program() -> None:
    files = {__file__: "c-package", "/no/such/file": "d-package"}
    assert missing_packages(files) == ["d-package"]


def test_without_root_the_message_has_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BrokenError) as raised:
        ensure_programs(PROGRAMS)
    assert str(raised.value) == (
        "this host lacks a-package, b-package; "
        "install them: sudo apt-get install a-package b-package"
    )


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file to which a stand-in for apt-get writes its arguments."""
    arguments = tmp_path / "arguments"
    program = tmp_path / "apt-get"
    program.write_text(
        f'#!/bin/sh\necho "$DEBIAN_FRONTEND $*" >>{arguments}\n'
        '[ "$1" = update ] || { echo "no room" >&2; exit 100; }\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return arguments


def test_root_installs_and_a_failure_has_the_output_of_apt(apt: Path) -> None:
    with pytest.raises(BrokenError, match=r"(?s)apt-get install b-package failed.*100.*no room"):
        ensure_programs({"no-such-program": "b-package"})
    assert apt.read_text().splitlines() == [
        "noninteractive update -qq",
        "noninteractive install -y -qq --no-install-recommends b-package",
    ]
