"""Installs the programs that the harness needs with apt-get, where it can.

Installed programs are left unchanged; an error has the exact command that installs what is missing.
Not covered: systems without apt-get.
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
    """Return the Debian packages that this host lacks.

    Args:
        programs: name of a program, or path of a file -> Debian package that has it.
    """
    # A user's PATH often lacks these directories, which have programs such as mke2fs.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = {
        package
        for name, package in programs.items()
        if not (Path(name).exists() if name.startswith("/") else shutil.which(name, path=path))
    }
    return sorted(missing)


def ensure_programs(programs: Mapping[str, str]) -> None:
    """Install the packages of missing programs.

    Args:
        programs: see `missing_packages`.

    Raises:
        BrokenError: they cannot be installed; has the command that installs them.
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
