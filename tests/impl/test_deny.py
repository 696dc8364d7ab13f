"""The deny list: its serial numbers, reloading, and invalid files."""

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
def test_serial_number_is_read_as_openssl_and_the_audit_print_it(line: str, tmp_path: Path) -> None:
    path = tmp_path / "denied"
    path.write_text(f"# lost keys\n\n{line}\n")
    deny_list = DenyList(path)
    assert denies(deny_list, 0x1F2E)
    assert not denies(deny_list, 0x1F2F)


def test_changed_file_is_reloaded_at_the_next_check(tmp_path: Path) -> None:
    path = tmp_path / "denied"
    path.write_text("")
    deny_list = DenyList(path)
    assert not denies(deny_list, 0xAB)
    path.write_text("ab\n")
    assert denies(deny_list, 0xAB)
    path.write_text("cd\n# ab\n")
    assert not denies(deny_list, 0xAB)


def freeze_stamp(monkeypatch: pytest.MonkeyPatch, path: Path, at_ns: int) -> None:
    """Make a file appear unchanged since a time, whatever is written to it."""
    frozen = (path.stat().st_ino, at_ns, path.stat().st_size)
    monkeypatch.setattr(deny, "_stamp", lambda _: frozen)


def test_file_changed_twice_within_one_clock_tick_is_reloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deny, "SETTLED_S", 60)  # so that a slow test has no effect
    path = tmp_path / "denied"
    path.write_text("ab\n")
    freeze_stamp(monkeypatch, path, time.time_ns())
    deny_list = DenyList(path)
    assert not denies(deny_list, 0xCD)
    path.write_text("cd\n")
    assert denies(deny_list, 0xCD)


def test_file_without_a_recent_change_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "denied"
    path.write_text("ab\n")
    freeze_stamp(monkeypatch, path, HOUR_AGO_NS)
    deny_list = DenyList(path)
    path.write_text("cd\n")
    assert denies(deny_list, 0xAB)


def test_unreadable_file_is_reloaded_once_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "denied"
    path.write_text("ab\n")
    deny_list = DenyList(path)
    path.write_text("cd\n")
    freeze_stamp(monkeypatch, path, HOUR_AGO_NS)
    with caplog.at_level(logging.WARNING):
        with monkeypatch.context() as scarce:
            scarce.setattr(Path, "open", no_descriptor)
            assert denies(deny_list, 0xAB)
            assert denies(deny_list, 0xAB)
        assert denies(deny_list, 0xCD)
    assert caplog.text.count("Too many open files") == 1


def test_file_is_reloaded_after_its_mode_is_corrected(tmp_path: Path) -> None:
    path = tmp_path / "denied"
    path.write_text("ab\n")
    deny_list = DenyList(path)
    path.write_text("cd\n")
    path.chmod(0o666)
    assert denies(deny_list, 0xAB)
    path.chmod(0o644)
    assert denies(deny_list, 0xCD)


@pytest.mark.parametrize("damage", ["malformed", "writable", "missing"])
def test_invalid_file_leaves_the_previous_list_in_force(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "denied"
    path.write_text("ab\n")
    deny_list = DenyList(path)
    match damage:
        case "malformed":
            path.write_text("not hexadecimal\n")
        case "writable":
            path.write_text("cd\n")
            path.chmod(0o666)
        case _:
            path.unlink()
    with caplog.at_level(logging.WARNING):
        assert denies(deny_list, 0xAB)
        assert denies(deny_list, 0xAB)
    # Logged once, not at every call.
    assert len(caplog.records) == 1
    assert "stays in force" in caplog.text


@pytest.mark.parametrize(
    ("text", "mode", "error"),
    [
        ("ab\nxyz\n", 0o600, "line 2: 'xyz' is not a serial number"),
        ("ab\n", 0o602, "everyone can write it"),
        (None, 0o600, "No such file"),
    ],
)
def test_invalid_file_at_the_start_is_an_error(
    text: str | None, mode: int, error: str, tmp_path: Path
) -> None:
    path = tmp_path / "denied"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(ConfigurationError, match=error):
        DenyList(path)
