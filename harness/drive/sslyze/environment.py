"""Makes the scanner's environment: once, in the cache, keyed by the hash of its lock file.

It is built in a temporary directory that is renamed when complete: a killed build leaves nothing
that could be mistaken for an environment, and of two concurrent builds one is discarded.
"""

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from harness.host.processes import run
from harness.record.verdict import BrokenError, UnsupportedError

LOCK_FILE: Final = "requirements.lock"
MAKE_TIMEOUT_S: Final = 90.0
_KEY_CHARACTERS: Final = 16


def cache_directory() -> Path:
    """Return where environments are kept: $JOBWORKER_CACHE, or below the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(os.environ.get("JOBWORKER_CACHE") or Path(base) / "jobworker") / "scanner"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def scanner_program() -> Path:
    """Return the path of the scanner, after installing it if necessary.

    Raises:
        UnsupportedError: it cannot be installed; the message says why and what to do.
    """
    with resources.as_file(resources.files(__package__) / LOCK_FILE) as lock:
        key = hashlib.sha256(lock.read_bytes() + platform.python_version().encode()).hexdigest()
        made = cache_directory() / key[:_KEY_CHARACTERS]
        if not made.exists():
            _make(made, lock)
    return made / "bin" / "sslyze"


def _make(made: Path, lock: Path) -> None:
    half = Path(tempfile.mkdtemp(prefix="half-", dir=made.parent))
    try:
        _install(half, lock)
        half.rename(made)
    except BrokenError as error:
        raise UnsupportedError(
            "an installed sslyze: a package index must be reachable once; the installation is then "
            f"cached in {made.parent} (JOBWORKER_CACHE names another directory): {error}"
        ) from error
    except OSError:
        if not made.exists():  # else a concurrent run was faster, and its environment is the same
            raise
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _install(directory: Path, lock: Path) -> None:
    """Install what the lock file pins, with every hash checked.

    Raises:
        BrokenError: it could not be installed.
    """
    builder = re.search(r"^setuptools==[\d.]+", lock.read_text(), re.MULTILINE)
    if builder is None:
        raise BrokenError(f"{lock} has no setuptools")
    pip = ["pip", "install", "--require-hashes", "--python", str(directory / "bin" / "python")]
    # sslyze is published as source only. Its build requirement is installed first, pinned and
    # hashed as well: an isolated build would fetch the newest.
    first = ["--only-binary", ":all:", "--constraint", str(lock), builder[0]]
    rest = ["--no-build-isolation", "-r", str(lock)]
    # Relocatable: its programs must not name the temporary directory.
    venv = ["venv", "--relocatable", "--clear", "--python", sys.executable, str(directory)]
    for words in (venv, [*pip, *first], [*pip, *rest]):
        command = [sys.executable, "-m", "uv", "--quiet", *words]
        run(command, MAKE_TIMEOUT_S).require("installing sslyze")
