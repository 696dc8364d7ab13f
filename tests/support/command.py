"""The command `worker-service` as a program."""

import os
import subprocess
from collections.abc import Callable

from tests.support.service import COMMAND, Certificates

Run = Callable[..., subprocess.CompletedProcess[str]]


def command_environment(address: str, certificates: Certificates) -> dict[str, str]:
    """Return an environment in which the command calls this server as an admin.

    PYTHONPATH, if it is set, has the code under test: a mutant's.
    """
    return {
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        "PATH": os.environ["PATH"],
        "JOBWORKER_SERVER": address,
        "JOBWORKER_CERTS": str(certificates.directory),
    }


def runner(environment: dict[str, str]) -> Run:
    """Return a function that runs the command to its end."""

    def command(
        *arguments: str | bytes, stdout: int = subprocess.PIPE, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments], env={**environment, **variables},
            stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip

    return command


def succeeded(done: subprocess.CompletedProcess[str], output: str) -> bool:
    """Return whether a command succeeded with exactly this output."""
    return (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def failed(done: subprocess.CompletedProcess[str], exit_code: int, *texts: str) -> bool:
    """Return whether a command failed with one clear line and nothing on standard output."""
    one_line = done.stderr.startswith("worker-service: ") and done.stderr.count("\n") == 1
    has_texts = all(text in done.stderr for text in texts)
    quiet = not done.stdout
    assert (done.returncode, quiet, one_line, has_texts) == (exit_code, True, True, True), done
    return True
