"""The directories of runs, of checks and load tests alike, and what a report needs to repeat a run.

A run's directory has its records and reports; the link `latest` beside it points to the newest.
"""

import datetime as dt
import os
import platform
import secrets
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

from harness.host import repository
from harness.record.verdict import BrokenError

RESULTS_FOLDER: Final = Path("results")
LATEST: Final = "latest"
_CONTROLLERS: Final = Path("/sys/fs/cgroup/cgroup.controllers")


def new_run_directory(out: Path | None, folder: Path = RESULTS_FOLDER) -> Path:
    """Create a run's directory: the given one, or a new one in a folder, with the link `latest`.

    Raises:
        BrokenError: it cannot be created, or no file in it.
    """
    now = dt.datetime.now(dt.UTC)
    directory = out or folder / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
        if out is None:
            link = folder / f".{LATEST}-{secrets.token_hex(4)}"
            link.symlink_to(directory.name)
            link.replace(folder / LATEST)
    except OSError as error:
        raise BrokenError(f"{directory}: {error.strerror}; choose another with --out") from error
    return directory


def environment(module: str) -> dict[str, str]:
    """Return what is needed to repeat a run of a package's command line, in the order to print."""
    controllers = _CONTROLLERS.read_text().strip() if _CONTROLLERS.exists() else "no cgroup v2"
    return {
        "command": shlex.join([*repository.program(module), *sys.argv[1:]]),
        "commit": repository.commit(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "controllers": controllers,
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "processors": f"{os.cpu_count()}, load average {os.getloadavg()[0]:.1f} before the run",
    }


def fill_seed(seed: str) -> str:
    """Return the seed, or a new random one."""
    return seed or secrets.token_hex(4)
