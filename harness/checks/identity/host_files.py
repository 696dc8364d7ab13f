"""A server's certificates on its own machine, in files that a check may change at runtime."""

import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.checks.check import Need, Stage
from harness.host.cert_files import CertFiles

# What a check needs that starts a server with such files.
OWN_FILES: Final = frozenset({Need.LAUNCH, Need.HOST, Need.IDENTITIES, Need.NATIVE})
_NAMES: Final = ("ca.crt", "server.crt", "server.key")


class HostFiles:
    """A directory on the server's machine; made by `make_host_files`."""

    def __init__(self, stage: Stage, directory: str) -> None:
        self._stage = stage
        self.directory = directory

    @property
    def certificates(self) -> CertFiles:
        """Their paths, for a server's command line."""
        ca, cert, key = (Path(self.directory) / name for name in _NAMES)
        return CertFiles(ca, cert, key)

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return f"{self.directory}/{name}"

    def put(self, name: str, text: str, mode: str = "600") -> None:
        """Write a file, which atomically replaces an older one."""
        path = shlex.quote(self.path(name))
        self.run(
            f"umask 077 && printf %s {shlex.quote(text)} > {path}.new && "
            f"chmod {mode} {path}.new && mv {path}.new {path}"
        )

    def put_pair(self, files: CertFiles, key_mode: str = "600") -> None:
        """Write an authority's certificate, and a server's certificate and key."""
        paths, modes = (files.ca, files.cert, files.key), ("600", "600", key_mode)
        for name, path, mode in zip(_NAMES, paths, modes, strict=True):
            self.put(name, path.read_text(), mode)

    def chmod(self, name: str, mode: str) -> None:
        """Change a file's mode and nothing else."""
        self.run(f"chmod {mode} {shlex.quote(self.path(name))}")

    def run(self, script: str) -> None:
        """Run a script there that must succeed."""
        self._stage.host.run(script).require("a change of files on the server's machine")


@contextmanager
def make_host_files(stage: Stage) -> Iterator[HostFiles]:
    """Make a directory with the server's certificates; the end of the context removes it.

    Raises:
        UnsupportedError: the harness has no access to the server's machine, or lacks the files.
    """
    files = stage.target.identities.files("server")
    # Not derived from the seed: a run may be repeated on the same machine.
    made = HostFiles(stage, f"/tmp/jobworker-files-{secrets.token_hex(8)}")  # noqa: S108 - its machine
    made.run(f"mkdir -m 700 {made.directory}")
    try:
        made.put_pair(files)
        yield made
    finally:
        made.run(f"rm -rf {made.directory}")
