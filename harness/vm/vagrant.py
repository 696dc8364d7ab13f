"""A Vagrant machine of this checkout: found, brought up to date, and used over its ssh.

Knows Vagrant through its own commands only, so any provider will do. A machine that does not answer
is BROKEN, with what Vagrant or ssh said; ssh's own exit code is never taken for a command's.

Leaves out: machines of other checkouts, and more than one machine a checkout.
"""

import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.host.clock import poll_until
from harness.host.processes import Done, run
from harness.host.repository import ROOT
from harness.record.verdict import BrokenError

logger = logging.getLogger(__name__)

PROJECT_THERE: Final = "/vagrant"  # as in Vagrantfile
STATUS_TIMEOUT_S: Final = 120.0
CONNECT_TIMEOUT_S: Final = 120.0
SYNC_TIMEOUT_S: Final = 600.0
FETCH_TIMEOUT_S: Final = 300.0
_SETTLE_S: Final = 60.0  # what ssh may take beyond the command that it runs
_SSH_BROKE: Final = 255
_HOST: Final = "default"  # in what `vagrant ssh-config` prints, for a Vagrantfile of one machine


@dataclass(frozen=True, slots=True)
class VagrantMachine:
    """A running machine of this checkout; made by `reached`.

    Attributes:
        provider: what runs it.
        directory: what ssh needs, see `reached`.
    """

    provider: str
    directory: Path

    def sync(self) -> None:
        """Bring the checkout there to the state that it has here.

        Raises:
            BrokenError: Vagrant could not.
        """
        _vagrant("rsync", timeout_s=SYNC_TIMEOUT_S).require("vagrant rsync")

    def run(self, command: str, timeout_s: float, *, shown: bool = False) -> Done:
        """Run a shell command in the checkout there, as the machine's user.

        Args:
            command: for its shell.
            timeout_s: after which it is ended, there too.
            shown: pass on what it says while it says it, instead of returning it.

        Raises:
            BrokenError: it did not end in time, or the connection broke.
        """
        bounded = shlex.join(["timeout", "-k", "30", f"{timeout_s:.0f}", "sh", "-c", command])
        words = [*self._ssh(), f"cd {PROJECT_THERE} && {bounded} 2>&1"]
        sys.stdout.flush()
        done = run(words, timeout_s + _SETTLE_S, stdout=sys.stdout.buffer if shown else None)
        if done.exit_code == _SSH_BROKE:
            raise BrokenError(f"ssh to the Vagrant machine broke: {done.stderr}{done.stdout}")
        return done

    def fetch(self, directory: str, target: Path) -> None:
        """Bring the files of a directory there to one here.

        Raises:
            BrokenError: they are not there, or do not arrive whole.
        """
        pack = f"sudo tar -C {PROJECT_THERE}/{shlex.quote(directory)} -cz ."
        with tempfile.TemporaryFile() as archive:
            packed = run([*self._ssh(), pack], FETCH_TIMEOUT_S, stdout=archive)
            packed.require("tar in the Vagrant machine")
            archive.seek(0)
            unpack: list[str | Path] = ["tar", "-C", target, "-xzo"]
            run(unpack, FETCH_TIMEOUT_S, stdin=archive).require("tar")

    def send(self, source: Path, target: str) -> None:
        """Bring a file to the machine, under a path in the checkout there.

        Raises:
            BrokenError: it cannot be read here, or did not arrive.
        """
        path = shlex.quote(f"{PROJECT_THERE}/{target}")
        words = [*self._ssh(), f"mkdir -p $(dirname {path}) && cat >{path}"]
        try:
            with source.open("rb") as file:
                run(words, FETCH_TIMEOUT_S, stdin=file).require("cat in the Vagrant machine")
        except OSError as error:
            raise BrokenError(f"cannot read {source}: {error.strerror}") from error

    def connect(self) -> None:
        """Make the connection that everything else here shares; a busy machine gets some attempts.

        Raises:
            BrokenError: none succeeded; has what ssh said.
        """
        said: list[str] = []

        def answers() -> bool | None:
            done = run([*self._ssh(), "true"], CONNECT_TIMEOUT_S)
            said[:] = [done.stderr.strip()]
            if done.exit_code != 0:
                logger.warning("ssh to the Vagrant machine, trying once more: %s", said[0])
            return True if done.exit_code == 0 else None

        poll_until(answers, CONNECT_TIMEOUT_S, "the Vagrant machine's ssh", lambda: said[0])

    def close(self) -> None:
        """End that connection."""
        run([*self._ssh()[:-1], "-O", "exit", _HOST], CONNECT_TIMEOUT_S)

    def _ssh(self) -> list[str]:
        words = ["ssh", "-F", str(self.directory / "config"), "-o", "BatchMode=yes"]
        words += ["-o", "ControlMaster=auto", "-o", f"ControlPath={self.directory}/c"]
        return [*words, "-o", "ControlPersist=60", _HOST]


def running_provider() -> str | None:
    """Return the provider of this checkout's running machine, or None when none runs.

    Raises:
        BrokenError: there is a machine, and Vagrant cannot tell whether it runs.
    """
    data = Path(os.environ.get("VAGRANT_DOTFILE_PATH") or ROOT / ".vagrant")
    # Vagrant takes seconds to start: it is not asked where it never made a machine.
    made = list((ROOT / data).glob("machines/*/*/id"))
    if not made or not shutil.which("vagrant"):
        return None
    told = _vagrant("status", "--machine-readable", timeout_s=STATUS_TIMEOUT_S)
    return provider_of(told.require("vagrant status (--in guest leaves Vagrant out)"))


def provider_of(status: str) -> str | None:
    """Return the provider of the running machine in what `vagrant status` tells machines."""
    fields = [line.split(",") for line in status.splitlines()]
    facts = {words[2]: words[3] for words in fields if len(words) > 3}  # noqa: PLR2004 - its format
    return facts.get("provider-name") if facts.get("state") == "running" else None


@contextmanager
def reached() -> Iterator[VagrantMachine]:
    """Reach this checkout's running machine for as long as the context lasts.

    Raises:
        BrokenError: none runs, or Vagrant does not tell how to reach it.
    """
    provider = running_provider()
    if provider is None:
        raise BrokenError("no Vagrant machine of this checkout runs; start it: vagrant up")
    told = _vagrant("ssh-config", timeout_s=STATUS_TIMEOUT_S).require("vagrant ssh-config")
    # Short: a socket's path may have 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="jw-"))
    machine = VagrantMachine(provider, directory)
    try:
        (directory / "config").write_text(told)
        machine.connect()
        yield machine
    finally:
        machine.close()
        shutil.rmtree(directory, ignore_errors=True)


def _vagrant(*words: str, timeout_s: float) -> Done:
    environment = {**os.environ, "VAGRANT_CWD": str(ROOT)}
    return run(["vagrant", *words], timeout_s, environment=environment)
