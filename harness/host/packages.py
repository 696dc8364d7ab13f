"""Programs of other projects that the harness starts: installed with apt when that is possible.

Promises: what is there already is left alone, and what cannot be installed is named with the exact
command that would do it. Leaves out every system without apt.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from harness.host.processes import run
from harness.record.verdict import BrokenError

INSTALL_TIMEOUT_S: Final = 900.0


def missing_packages(programs: Mapping[str, str]) -> list[str]:
    """Return the Debian packages that this host still needs.

    Args:
        programs: name of a program, or path of a file -> Debian package that has it.
    """
    # A user's PATH lacks the folders of some programs that a user may well start (mke2fs).
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = {
        package
        for name, package in programs.items()
        if not (Path(name).exists() if name.startswith("/") else shutil.which(name, path=path))
    }
    return sorted(missing)


def ensure_programs(programs: Mapping[str, str]) -> None:
    """Install what is missing when that is possible.

    Args:
        programs: see `missing_packages`.

    Raises:
        BrokenError: it is not possible; says what to install.
    """
    missing = missing_packages(programs)
    if not missing:
        return
    command = f"apt-get install {' '.join(missing)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BrokenError(f"this host lacks {', '.join(missing)}; install them: sudo {command}")
    click.echo(f"installing {', '.join(missing)}", err=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], INSTALL_TIMEOUT_S, environment=environment)
    run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
        INSTALL_TIMEOUT_S,
        environment=environment,
    ).require(command)
