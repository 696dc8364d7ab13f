"""Watched files: when they are read again, and when their contents are tried again."""

import errno
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from worker_service import watched_files
from worker_service.errors import ConfigurationError
from worker_service.watched_files import Contents, WatchedFiles

HOUR_AGO_NS = time.time_ns() - 3600 * 10**9


class Reader:
    """Accepts files whose text is not in `refused`; counts what it was called for."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.tried: list[str] = []

    def __call__(self, files: Sequence[Contents], _previous: str | None) -> str:
        text = " ".join(file.data.decode() for file in files)
        self.tried.append(text)
        if text in self.refused:
            raise ConfigurationError(f"{text} is refused, attempt {len(self.tried)}")
        return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "watched"
    path.write_text("first")
    return path


def watch(reader: Reader, *paths: Path) -> WatchedFiles[str]:
    return WatchedFiles(paths, reader, refusal="not used yet", advice="write it")


def freeze_stamp(monkeypatch: pytest.MonkeyPatch, at_ns: int) -> None:
    """Make files appear unchanged since a time, whatever is written to them."""
    monkeypatch.setattr(WatchedFiles, "_stamp_now", lambda _: ((at_ns, at_ns, 1, 1),))


def no_descriptor(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_file_changed_twice_within_one_clock_tick_is_loaded_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_files, "SETTLED_S", 60)  # so that a slow test has no effect
    freeze_stamp(monkeypatch, time.time_ns())
    files = watch(Reader(), path)
    path.write_text("second")
    assert files.current() == "second"


def test_file_without_a_recent_change_is_not_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_stamp(monkeypatch, HOUR_AGO_NS)
    files = watch(Reader(), path)
    path.write_text("second")
    assert files.current() == "first"


def test_unreadable_file_is_loaded_once_it_can_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = watch(Reader(), path)
    path.write_text("second")
    freeze_stamp(monkeypatch, HOUR_AGO_NS)
    with monkeypatch.context() as scarce:
        scarce.setattr(Path, "open", no_descriptor)
        assert {files.current() for _ in range(3)} == {"first"}
    assert files.current() == "second"
    assert caplog.text.count("Too many open files; write it") == 1


@pytest.mark.parametrize("change", ["size", "mtime", "mode", "inode"])
def test_each_kind_of_change_is_noticed(
    change: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_files, "SETTLED_S", 0)
    reader = Reader()
    files = watch(reader, path)
    match change:
        case "size":
            path.write_text("longer than before")
        case "mtime":
            os.utime(path, ns=(HOUR_AGO_NS, HOUR_AGO_NS))
        case "mode":
            path.chmod(0o600 if path.stat().st_mode & 0o044 else 0o644)
        case _:
            other = path.with_name("other")
            other.write_text("other")
            other.replace(path)
    files.current()
    # A time alone is no change of the contents, which were accepted.
    assert len(reader.tried) == (1 if change == "mtime" else 2)


def test_refused_contents_are_tried_again_without_a_change(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched_files, "RETRY_S", 0)
    reader = Reader()
    files = watch(reader, path)
    reader.refused.add("second")
    path.write_text("second")
    freeze_stamp(monkeypatch, HOUR_AGO_NS)
    assert {files.current() for _ in range(3)} == {"first"}
    reader.refused.clear()
    assert files.current() == "second"
    # Once, although each attempt gave another reason.
    assert [record.message for record in caplog.records] == [
        "not used yet: second is refused, attempt 2"
    ]


def test_refused_contents_are_tried_once_in_the_retry_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_files, "RETRY_S", 3600)
    reader = Reader()
    files = watch(reader, path)
    reader.refused.add("second")
    path.write_text("second")
    assert {files.current() for _ in range(9)} == {"first"}
    assert reader.tried == ["first", "second"]


def test_refused_file_is_tried_at_once_after_a_chmod(path: Path) -> None:
    reader = Reader()
    files = watch(reader, path)
    reader.refused.add("second")
    path.write_text("second")
    path.chmod(0o666)
    assert files.current() == "first"
    reader.refused.clear()
    path.chmod(0o600)
    assert files.current() == "second"


def test_file_that_returns_is_accepted_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    files = watch(reader, path)
    moved = path.rename(path.with_name("moved"))
    with caplog.at_level(logging.WARNING):
        assert files.current() == files.current() == "first"
    assert len(caplog.records) == 1
    moved.rename(path)
    assert files.current() == "first"
    assert reader.tried == ["first", "first"]


def test_one_missing_file_of_two_leaves_both_values(path: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_text("pair")
    files = watch(Reader(), path, second)
    path.write_text("new")
    second.unlink()
    assert files.current() == "first pair"
    second.write_text("pair 2")
    assert files.current() == "new pair 2"
