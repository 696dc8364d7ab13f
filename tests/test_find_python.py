"""find-python chooses a suitable interpreter, or says what was found and how to get one.

The interpreters of other versions and kinds are this one, which answers as they would.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_tidy import ROOT

BASE = Path(sys._base_executable)  # type: ignore[attr-defined]
FIXED_DIRECTORIES = "/opt/homebrew/bin /home/linuxbrew/.linuxbrew/bin /usr/local/bin"
# An interpreter that is what it is said to be; only find-python's question is answered.
FOREIGN = """#!/bin/sh
exec "{base}" -I -c '
import sys, sysconfig
class Version(tuple): releaselevel = "{level}"
sys.version_info = Version({numbers})
sys.version = "{version} (main)"
sys.implementation.name = "{implementation}"
sys._base_executable = "{path}"
sysconfig.get_config_var = lambda name: {free_threaded}
exec(sys.argv.pop(1))' "$3" "$4"
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def write_foreign(path: Path, version: str, **kind: str | int) -> Path:
    """Write an interpreter of another version or kind."""
    values = {"level": "final", "free_threaded": 0, "implementation": "cpython", **kind}
    numbers = tuple(int(part.split("rc")[0]) for part in version.split("."))
    return write_program(
        path, FOREIGN.format(base=BASE, path=path, version=version, numbers=numbers, **values)
    )


@dataclass
class Machine:
    """A machine that has the interpreters that a test gives it, and no others."""

    directory: Path
    script: Path

    def find(self, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.directory}/bin:{self.directory}/more:{self.directory}/tools"
        return subprocess.run(
            [self.script], env={"PATH": path, **variables},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    text = (ROOT / ".ci/find-python").read_text()
    assert text.count(FIXED_DIRECTORIES) == 1
    script = write_program(tmp_path / "find-python", text.replace(FIXED_DIRECTORIES, ""))
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "cat"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    return Machine(tmp_path, script)


@pytest.mark.parametrize(
    ("version", "kind", "reason"),
    [
        ("3.11.2", {}, "Python 3.11.2 is older than 3.12"),
        ("3.15.2", {}, "Python 3.15.2 is newer than 3.14"),
        ("3.14.0rc2", {"level": "candidate"}, "Python 3.14.0rc2 is a pre-release"),
        ("3.13.1", {"free_threaded": 1}, "Python 3.13.1 is a free-threaded build"),
        ("3.12.9", {"implementation": "pypy"}, "it is pypy, not CPython"),
    ],
)
def test_unsuitable_interpreter_is_passed_over_and_refused_by_name(
    machine: Machine, version: str, kind: dict[str, str | int], reason: str
) -> None:
    bad = write_foreign(machine.directory / "bin/python3.13", version, **kind)
    refused = machine.find(PYTHON=str(bad))
    assert refused.returncode == 1
    assert f"{bad}: {reason}" in refused.stderr
    assert "jobworker needs CPython" in refused.stderr
    # A suitable one of the same name further on the PATH is found.
    good = write_foreign(machine.directory / "more/python3.13", "3.13.9")
    found = machine.find()
    assert (found.returncode, found.stdout) == (0, f"{good}\n")
    assert (reason in found.stderr) == ("older" not in reason)


def test_without_a_suitable_interpreter_the_message_says_what_was_found_and_how_to_get_one(
    machine: Machine,
) -> None:
    write_foreign(machine.directory / "bin/python3", "3.11.2")
    write_program(machine.directory / "more/python3.12", "#!/bin/sh\nexit 127\n")
    found = machine.find()  # HOME is unset
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == (
        f"""\
This machine has no suitable Python:
  {machine.directory}/more/python3.12: it does not run as Python 3 (exit status 127)
  {machine.directory}/bin/python3: Python 3.11.2 is older than 3.12
jobworker needs CPython 3.12, 3.13 or 3.14, a final release, not free-threaded. To install one:
  as root, on Debian 13 or Ubuntu 24.04:  apt install python3 python3-venv
  as any user:  uv python install 3.13    (https://docs.astral.sh/uv), or
                pyenv install 3.13        (https://github.com/pyenv/pyenv)
Set-up finds those. One in another place: make PYTHON=/path/to/python3.13
"""
    )


@pytest.mark.parametrize(
    "place",
    [".pyenv/versions/3.14.1/bin", ".local/share/uv/python/cpython-3.14.1-linux/bin"],
)
def test_interpreter_of_pyenv_or_uv_is_found_in_the_home_directory(
    machine: Machine, place: str
) -> None:
    home = machine.directory / "home of me"
    only = write_foreign(home / place / "python3.14", "3.14.1")
    found = machine.find(HOME=str(home))
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{only}\n", "")


def test_interpreter_of_an_active_venv_counts_as_the_one_it_was_made_from(
    machine: Machine,
) -> None:
    venv = machine.directory / "active"
    subprocess.run([BASE, "-I", "-m", "venv", "--without-pip", venv], check=True)
    (machine.directory / "bin").symlink_to(venv / "bin")
    found = machine.find(VIRTUAL_ENV=str(venv), PYTHONHOME="/nonexistent")
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).resolve() == BASE.resolve()
    assert not Path(found.stdout).is_relative_to(venv)
