"""An unprivileged user with a home directory and a checkout, for tests."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
USER: Final = "nobody"
GROUP: Final = "nogroup"


def without_progress(said: str) -> str:
    """Return Vagrant's output without its hundreds of progress lines."""
    lines = re.split(r"[\r\n]+|\x1b\[K", said)
    kept = [line for line in lines if line and not line.startswith("Progress: ")]
    return "\n".join(kept) + "\n"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Runs commands as `USER`, and logs their output.

    Attributes:
        home: the user's own directory.
        log: the file to which every command and its output are appended.
    """

    home: Path
    log: Path

    @property
    def checkout(self) -> Path:
        """The user's checkout."""
        return self.home / "jobworker"

    def run(self, command: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
        """Run a shell command in the checkout; return its exit code and output."""
        started_s = time.monotonic()
        start = self.log.stat().st_size
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {command}\n")
            log.flush()
            done = subprocess.run(
                [*self._become(), "sh", "-c", command],
                cwd=self.checkout, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                timeout=timeout_s, check=False,
            )  # fmt: skip
        said = without_progress(self.log.read_bytes()[start:].decode("utf-8", "replace"))
        os.truncate(self.log, start)
        seconds = time.monotonic() - started_s
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{said}# exit code {done.returncode} after {seconds:.0f} s\n\n")
        return subprocess.CompletedProcess(command, done.returncode, said, "")

    def _become(self) -> list[str]:
        environment = {
            "HOME": self.home,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": self.home / "run",
            "PYTHON": self.home / "python/bin/python3",
            # The interpreter looks for its library at its build location, not in this home.
            "LD_LIBRARY_PATH": self.home / "python/lib",
            # Vagrant must not search the network for a newer version or box.
            "VAGRANT_CHECKPOINT_DISABLE": "1",
        }
        drop = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups"]
        words = [*drop, "--no-new-privs", "env", "-i"]
        return [*words, *(f"{name}={value}" for name, value in environment.items())]

    def processes(self) -> dict[int, str]:
        """Return the processes that this visitor left: pid -> command line."""
        mark = f"XDG_RUNTIME_DIR={self.home / 'run'}\0".encode()
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (directory / "environ").read_bytes() + b"\0":
                    words = (directory / "cmdline").read_bytes().split(b"\0")
                    found[int(directory.name)] = b" ".join(words)[:200].decode("utf-8", "replace")
            except OSError:  # it has ended, or is not readable
                continue
        return found


@contextmanager
def create_visitor(log: Path) -> Iterator[Visitor]:
    """Create a user's home with a checkout of the present files; end their processes on exit."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    # Short: libvirt makes sockets in it, whose paths may have 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="jw-"))
    visitor = Visitor(home, log)
    try:
        _furnish(visitor)
        yield visitor
    finally:
        for pid in visitor.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def _furnish(visitor: Visitor) -> None:
    home = visitor.home
    visitor.checkout.mkdir()
    (home / "run").mkdir(mode=0o700)
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    pack = ["tar", "-C", str(ROOT), "--null", "--ignore-failed-read", "-T", "-", "-cf", "-", ".git"]
    archive = home / "checkout.tar"
    with archive.open("wb") as file:
        subprocess.run(pack, input=names, stdout=file, check=True, timeout=120)
    unpack = ["tar", "-C", str(visitor.checkout), "-xf", str(archive)]
    subprocess.run(unpack, check=True, timeout=120)
    archive.unlink()
    # The interpreter may be in a directory that only root can read.
    shutil.copytree(sys.base_prefix, home / "python", symlinks=True)
    subprocess.run(["chown", "-R", f"{USER}:{GROUP}", str(home)], check=True, timeout=120)
