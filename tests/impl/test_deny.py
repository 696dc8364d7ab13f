"""The deny list: who is on it, what happens when it changes, and when it changes for the worse."""

import errno
import logging
import os
import time
from pathlib import Path
from typing import NoReturn

import pytest

from worker_service import deny
from worker_service.deny import DenyList
from worker_service.errors import ConfigurationError, NotAuthenticatedError

HOUR_AGO_NS = time.time_ns() - 3600 * 10**9


def no_descriptor(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def denies(deny_list: DenyList, serial: int) -> bool:
    try:
        deny_list.check(serial)
    except NotAuthenticatedError as error:
        return f"{serial:x}" in str(error)
    return False


@pytest.mark.parametrize("line", ["1f2e", "1F2E", "1f:2e", "  1f2e  # a laptop", "001f2e"])
def test_a_serial_number_is_read_as_openssl_and_the_audit_show_it(
    line: str, tmp_path: Path
) -> None:
    path = tmp_path / "denied"
    path.write_text(f"# lost ones\n\n{line}\n")
    deny_list = DenyList(path)
    assert denies(deny_list, 0x1F2E)
    assert not denies(deny_list, 0x1F2F)


def test_a_changed_file_is_taken_up_at_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "denied"
    path.write_text("")
    deny_list = DenyList(path)
    assert not denies(deny_list, 0xAB)
    path.write_text("ab\n")
    assert denies(deny_list, 0xAB)
    path.write_text("cd\n# ab\n")
    assert not denies(deny_list, 0xAB)


def stamps_stand_still(monkeypatch: pytest.MonkeyPatch, path: Path, at_ns: int) -> None:
    """Let a file look as it does now whatever is done to it, as if changed at that time."""
    still = (path.stat().st_ino, at_ns, path.stat().st_size)
    monkeypatch.setattr(deny, "_stamp", lambda _: still)


def test_a_file_changed_again_within_a_tick_of_the_clock_is_taken_up_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deny, "SETTLED_S", 60)  # so that no stall of this test counts
    path = tmp_path / "denied"
    path.write_text("ab\n")
    stamps_stand_still(monkeypatch, path, time.time_ns())
    deny_list = DenyList(path)
    assert not denies(deny_list, 0xCD)
    path.write_text("cd\n")
    assert denies(deny_list, 0xCD)


def test_a_file_that_has_settled_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "denied"
    path.write_text("ab\n")
    stamps_stand_still(monkeypatch, path, HOUR_AGO_NS)
    deny_list = DenyList(path)
    path.write_text("cd\n")
    assert denies(deny_list, 0xAB)


def test_a_list_that_could_not_be_read_is_taken_up_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "denied"
    path.write_text("ab\n")
    deny_list = DenyList(path)
    path.write_text("cd\n")
    stamps_stand_still(monkeypatch, path, HOUR_AGO_NS)
    with caplog.at_level(logging.WARNING):
        with monkeypatch.context() as scarce:
            scarce.setattr(Path, "open", no_descriptor)
            assert denies(deny_list, 0xAB)
            assert denies(deny_list, 0xAB)
        assert denies(deny_list, 0xCD)
    assert caplog.text.count("Too many open files") == 1


def test_the_mode_that_the_warning_asks_for_mends_the_list(tmp_path: Path) -> None:
    path = tmp_path / "denied"
    path.write_text("ab\n")
    deny_list = DenyList(path)
    path.write_text("cd\n")
    path.chmod(0o666)
    assert denies(deny_list, 0xAB)
    path.chmod(0o644)
    assert denies(deny_list, 0xCD)


@pytest.mark.parametrize("damage", ["nonsense", "everybody", "gone"])
def test_a_list_that_has_become_bad_lets_nobody_in_who_was_out(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "denied"
    path.write_text("ab\n")
    deny_list = DenyList(path)
    match damage:
        case "nonsense":
            path.write_text("not hexadecimal\n")
        case "everybody":
            path.write_text("cd\n")
            path.chmod(0o666)
        case _:
            path.unlink()
    with caplog.at_level(logging.WARNING):
        assert denies(deny_list, 0xAB)
        assert denies(deny_list, 0xAB)
    # Told once, not at every call.
    assert len(caplog.records) == 1
    assert "stays in force" in caplog.text


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("ab\nxyz\n", 0o600, "line 2: 'xyz' is no serial number"),
        ("ab\n", 0o602, "everybody may write it"),
        (None, 0o600, "No such file"),
    ],
)
def test_a_list_that_is_bad_at_the_start_is_an_error(
    text: str | None, mode: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "denied"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(ConfigurationError, match=said):
        DenyList(path)
