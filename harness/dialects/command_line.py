"""The tables `[command.*]` of a dialect: a program per call, instead of gRPC.

`CommandTransport` offers the stub of `jobworker.v1`: a call runs the program of its rpc and reads
the answer from what it printed; a stream is its standard output, byte for byte. Each program has a
session of its own, which is ended with the call, and no shell. Certificates are given as words,
variables, or files in `{work}`.

A deadline is that of the call plus `startup_s`, since a program must start first. What a command
line cannot pass (a NUL, an argument beyond the kernel's maximum) is not sent, and no server
is blamed for it.
"""

import shutil
import sys
from pathlib import Path

import grpc
from google.protobuf.message import Message

from harness.dialects.channel import ChannelOptions
from harness.dialects.command_stub import CommandStub
from harness.dialects.command_table import CALLS, CommandTable
from harness.dialects.command_values import VALUES
from harness.dialects.command_words import expand, expand_text
from harness.dialects.dialect import AsyncStream, Connection, Transport, rpc_of
from harness.dialects.identity_scheme import RPC_WORDS
from harness.dialects.surroundings import put_link
from harness.host.cert_files import CertFiles
from harness.record.history import NEW_ID
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb


class CommandTransport:
    """See `harness.dialects.dialect.Transport`.

    Args:
        table: how the programs are called.
        folder: of the dialect's file, for `{folder}`.
    """

    service = ""

    def __init__(self, table: CommandTable, folder: Path) -> None:
        self.table = table
        self._folder = folder.absolute()

    def connect(self, address: str, files: CertFiles, options: ChannelOptions = ()) -> Connection:
        """See `Transport`. Starts no program yet.

        Raises:
            BrokenError: a program is not installed, or a file cannot be linked in `{work}`.
        """
        del options
        values = self._values(address, files)
        _make_directory(Path(values["work"]))
        for name, text in self.table.files.items():
            put_link(Path(values["work"]) / name, expand_text(text, values), "command.files")
        for call in CALLS:
            if words := self.table.words(call):
                _require_installed(expand(words[:1], values), call)
        stub = CommandStub(self.table, values)
        return Connection(stub, stub.close)

    def _values(self, address: str, files: CertFiles) -> dict[str, str]:
        host, _, port = address.rpartition(":")
        return {
            "address": address, "host": host, "port": port, "ca": str(files.ca),
            "cert": str(files.cert), "key": str(files.key), "folder": str(self._folder),
            "python": sys.executable, "work": str(_work_directory(files).absolute()),
        }  # fmt: skip

    def by_hand(self, request: Message, address: str, files: CertFiles) -> tuple[str, ...]:
        """See `Transport`."""
        rpc = RPC_WORDS.get(rpc_of(request))
        words = self.table.words(rpc) if rpc is not None else []
        if rpc is None or not words:
            return ()
        values = self._values_by_hand(address, files)
        variables = [
            f"{name}={expand_text(text, values)}" for name, text in self.table.environment.items()
        ]
        command = expand(words, {**values, **VALUES[rpc](request), "new_id": NEW_ID})
        return (*(["env", *variables] if variables else []), *command)

    def setup_by_hand(self, files: CertFiles) -> tuple[tuple[str, ...], ...]:
        """See `Transport`."""
        values = self._values_by_hand("", files)
        work = values["work"]
        if self.table.files:
            return tuple(
                ("install", "-D", "-m", "600", expand_text(text, values), f"{work}/{name}")
                for name, text in self.table.files.items()
            )
        texts = [*map(self.table.words, CALLS), *self.table.environment.values()]
        return (("mkdir", "-p", work),) if "{work}" in str(texts) else ()

    def _values_by_hand(self, address: str, files: CertFiles) -> dict[str, str]:
        work = str(_work_directory(files))
        return {**self._values(address, files), "python": "python", "work": work}

    def path(self, rpc: str) -> str:
        """See `Transport`: a program has no path."""
        del rpc
        return ""

    def encode(self, request: Message) -> bytes:
        """See `Transport`: a program takes no messages."""
        return request.SerializeToString()

    def follow(
        self, channel: grpc.aio.Channel, request: pb.StreamLogsRequest, timeout_s: float
    ) -> AsyncStream:
        """See `Transport`.

        Raises:
            BrokenError: a program has no channel.
        """
        del channel, request, timeout_s
        raise BrokenError("loads need a server that is called by gRPC, not by programs")


def _require_installed(words: list[str], call: str) -> None:
    if not words or shutil.which(words[0]) is None:
        program = words[0] if words else ""
        raise BrokenError(
            f"the program {program!r} of {call} is not installed; install it, add its directory to "
            "the PATH, or correct [command] in the dialect's file"
        )


def _work_directory(files: CertFiles) -> Path:
    """Return the directory of this certificate's files, beside it; it goes with the certificate.

    All connections share it, also those of other processes.
    """
    return files.key.parent / f".work-{files.key.stem}"


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BrokenError(f"{path} cannot be made: {error.strerror}") from error


def is_local(transport: Transport) -> bool:
    """Return whether a dialect's programs act on this machine, without a server."""
    return isinstance(transport, CommandTransport) and transport.table.local
