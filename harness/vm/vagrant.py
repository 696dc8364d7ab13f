"""Finds this checkout's Vagrant machine, synchronises the checkout, and runs commands over ssh.

It uses Vagrant's commands only, so any provider will do. A machine that does not answer is BROKEN,
with the output of Vagrant or ssh; ssh's own exit code is never taken for a command's.

Not covered: machines of other checkouts, more than one machine for a checkout.
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
_SETTLE_S: Final = 60.0  # added to a command's time limit, for ssh itself
_SSH_BROKE: Final = 255
_HOST: Final = "default"  # in the output of `vagrant ssh-config`, if there is one machine


@dataclass(frozen=True, slots=True)
class VagrantMachine:
    """A running machine of this checkout; created by `connect_vagrant`.

    Attributes:
        provider: of Vagrant.
        directory: of the ssh configuration and the control socket.
    """

    provider: str
    directory: Path

    def sync(self) -> None:
        """Copy this checkout to the machine.

        Raises:
            BrokenError: `vagrant rsync` failed.
        """
        _vagrant("rsync", timeout_s=SYNC_TIMEOUT_S).require("vagrant rsync")

    def run(self, command: str, timeout_s: float, *, shown: bool = False) -> Done:
        """Run a shell command in the machine's checkout, as Vagrant's user.

        Args:
            command: for the shell.
            timeout_s: after which the command is ended, in the machine too.
            shown: print its output as it arrives, instead of returning it.

        Raises:
            BrokenError: it timed out, or the connection broke.
        """
        bounded = shlex.join(["timeout", "-k", "30", f"{timeout_s:.0f}", "sh", "-c", command])
        words = [*self._ssh(), f"cd {PROJECT_THERE} && {bounded} 2>&1"]
        sys.stdout.flush()
        done = run(words, timeout_s + _SETTLE_S, stdout=sys.stdout.buffer if shown else None)
        if done.exit_code == _SSH_BROKE:
            raise BrokenError(f"ssh to the Vagrant machine broke: {done.stderr}{done.stdout}")
        return done

    def fetch(self, directory: str, target: Path) -> None:
        """Copy the files of a directory of the machine's checkout to one on this host.

        Raises:
            BrokenError: the directory is missing, or the transfer failed.
        """
        pack = f"sudo tar -C {PROJECT_THERE}/{shlex.quote(directory)} -cz ."
        with tempfile.TemporaryFile() as archive:
            packed = run([*self._ssh(), pack], FETCH_TIMEOUT_S, stdout=archive)
            packed.require("tar in the Vagrant machine")
            archive.seek(0)
            unpack: list[str | Path] = ["tar", "-C", target, "-xzo"]
            run(unpack, FETCH_TIMEOUT_S, stdin=archive).require("tar")

    def send(self, source: Path, target: str) -> None:
        """Copy a file of this host to a path in the machine's checkout.

        Raises:
            BrokenError: the file cannot be read, or the transfer failed.
        """
        path = shlex.quote(f"{PROJECT_THERE}/{target}")
        words = [*self._ssh(), f"mkdir -p $(dirname {path}) && cat >{path}"]
        try:
            with source.open("rb") as file:
                run(words, FETCH_TIMEOUT_S, stdin=file).require("cat in the Vagrant machine")
        except OSError as error:
            raise BrokenError(f"cannot read {source}: {error.strerror}") from error

    def connect(self) -> None:
        """Open the connection that all methods share; a busy machine gets several attempts.

        Raises:
            BrokenError: no attempt succeeded; has ssh's last message.
        """
        messages: list[str] = []

        def answers() -> bool | None:
            done = run([*self._ssh(), "true"], CONNECT_TIMEOUT_S)
            messages.append(done.stderr.strip())
            if done.exit_code != 0:
                logger.warning("ssh to the Vagrant machine, trying once more: %s", messages[-1])
            return True if done.exit_code == 0 else None

        poll_until(answers, CONNECT_TIMEOUT_S, "the Vagrant machine's ssh", lambda: messages[-1])

    def close(self) -> None:
        """End the shared connection."""
        run([*self._ssh()[:-1], "-O", "exit", _HOST], CONNECT_TIMEOUT_S)

    def _ssh(self) -> list[str]:
        words = ["ssh", "-F", str(self.directory / "config"), "-o", "BatchMode=yes"]
        words += ["-o", "ControlMaster=auto", "-o", f"ControlPath={self.directory}/c"]
        return [*words, "-o", "ControlPersist=60", _HOST]


def running_provider() -> str | None:
    """Return the provider of this checkout's running machine, or None if no machine runs.

    Raises:
        BrokenError: a machine exists, and `vagrant status` failed.
    """
    data = Path(os.environ.get("VAGRANT_DOTFILE_PATH") or ROOT / ".vagrant")
    # Vagrant takes seconds to start, so it is not started where it never created a machine.
    created = list((ROOT / data).glob("machines/*/*/id"))
    if not created or not shutil.which("vagrant"):
        return None
    status = _vagrant("status", "--machine-readable", timeout_s=STATUS_TIMEOUT_S)
    return provider_of(status.require("vagrant status (--in guest does without Vagrant)"))


def provider_of(status: str) -> str | None:
    """Return the running machine's provider from the output of `vagrant status`, or None.

    Source: developer.hashicorp.com/vagrant/docs/cli/machine-readable.
    """
    fields = [line.split(",") for line in status.splitlines()]
    facts = {
        words[2]: words[3]
        for words in fields
        if len(words) > 3 and words[0].isdecimal()  # noqa: PLR2004 - its format
    }
    return facts.get("provider-name") if facts.get("state") == "running" else None


def ssh_config_of(printed: str) -> str:
    """Return the output of `vagrant ssh-config` without what Vagrant and its plug-ins add to it.

    ssh refuses a configuration with any other line.
    """
    lines = printed.splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith(("Host ", "  ")))


@contextmanager
def connect_vagrant() -> Iterator[VagrantMachine]:
    """Connect to this checkout's running machine until the context ends.

    Raises:
        BrokenError: no machine runs, or it cannot be reached.
    """
    provider = running_provider()
    if provider is None:
        raise BrokenError("no Vagrant machine of this checkout runs; start it: vagrant up")
    printed = _vagrant("ssh-config", timeout_s=STATUS_TIMEOUT_S).require("vagrant ssh-config")
    # Short, since a socket's path has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="jw-"))
    machine = VagrantMachine(provider, directory)
    try:
        (directory / "config").write_text(ssh_config_of(printed))
        machine.connect()
        yield machine
    finally:
        machine.close()
        shutil.rmtree(directory, ignore_errors=True)


def _vagrant(*words: str, timeout_s: float) -> Done:
    environment = {**os.environ, "VAGRANT_CWD": str(ROOT)}
    return run(["vagrant", *words], timeout_s, environment=environment)
