"""Output and errors of the command: nothing is lost, nothing is forged."""

import io
import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from worker_service import terminal
from worker_service.terminal import NoReaderError, OutputError

PIPE_BYTES = 65_536


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a pipe whose writing end does not block."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


class Output(io.TextIOWrapper):
    """A standard output in memory."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding, errors="backslashreplace")

    def text(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


def test_write_waits_for_room_in_a_full_non_blocking_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe() as (reader, writer):
        os.write(writer, bytes(PIPE_BYTES))

        class Drained:
            """Makes room in place of a reader, and only when it is waited for."""

            def register(self, descriptor: int, events: int) -> None:
                assert (descriptor, events) == (writer, select.POLLOUT)

            def poll(self) -> None:
                os.read(reader, PIPE_BYTES)

        monkeypatch.setattr(select, "poll", Drained)
        assert terminal.write_some(writer, b"kept") == 4
        assert os.read(reader, PIPE_BYTES) == b"kept"


def test_write_to_a_full_device_or_closed_pipe_raises() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123 - unbuffered
        pytest.raises(OutputError, match="standard output: No space left on device"),
    ):
        terminal.write_some(full.fileno(), b"x")
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(NoReaderError):
        terminal.write_some(writer, b"x")
    os.close(writer)


def test_line_escapes_what_could_forge_lines_or_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = Output("utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    terminal.print_line("caf\u00e9 \x1b[31m\r\n\x9b \u202e \udcff")
    assert output.text() == "caf\u00e9 \\x1b[31m\\r\\n\\x9b \\u202e \\udcff\n"


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "ascii"])
def test_json_stays_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    standard = Output(encoding)
    monkeypatch.setattr(sys, "stdout", standard)
    value: dict[str, object] = {"text": "caf\u00e9 \u2603 \U0001f600 \n\x1b\x9b\u2028"}
    terminal.print_json(value)
    assert json.loads(standard.text()) == value
    assert standard.text().rstrip("\n").isprintable()


def test_json_is_readable_where_the_encoding_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output("utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    terminal.print_json({"text": "caf\u00e9"})
    assert output.text() == '{"text": "caf\u00e9"}\n'
