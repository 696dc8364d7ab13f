"""Set-up makes one .venv, of this checkout, in any surroundings.

Real pip and real virtual environments, without the network: the only locked package is a build
backend that is made here. A stand-in interpreter links pip into the new environment; ensurepip,
which takes seconds, runs in one test. The real lock file is installed before any test runs.
"""

import base64
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pip
import pytest

from tests.test_find_python import BASE, write_program
from tests.test_tidy import ROOT

BACKEND = """
import os, zipfile

def get_requires_for_build_editable(config_settings=None):
    return []

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    if os.path.exists("hold"):
        open("building", "w").close()  # FIFOs: each open waits for the test's
        open("hold").close()
    if os.path.exists("broken"):
        raise RuntimeError("the backend is broken")
    name = "jobworker-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        info = "jobworker-0.1.0.dist-info/"
        wheel.writestr("_jobworker.pth", os.path.join(os.getcwd(), "impl"))
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: jobworker\\nVersion: 0.1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "entry_points.txt", "[console_scripts]\\nworker-service = worker_service:main\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""  # noqa: E501
PYPROJECT = """
[build-system]
requires = ["standin-backend"]
build-backend = "standin_backend"
[project]
name = "jobworker"
version = "0.1.0"
scripts = { worker-service = "worker_service:main" }
"""
# This interpreter, but its environments get pip by a link.
STANDIN = """#!/bin/sh
case " $* " in
*" -m venv "*)
    "{base}" "$@" --without-pip || exit 1
    for venv; do :; done # the last argument
    for directory in "$venv"/lib/python*/site-packages; do ln -s "{pip}" "$directory/pip"; done
    ;;
*" -c "*) "{base}" "$@" >/dev/null && echo "$0" ;;
*) exec "{base}" "$@" ;;
esac
"""


@dataclass
class Checkout:
    """A checkout with the real scripts and a small lock file, and the environment they run in."""

    directory: Path
    environment: dict[str, str]

    @property
    def command(self) -> Path:
        return self.directory / ".venv/bin/worker-service"

    def start(self, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [".ci/setup"], cwd=self.directory, env={**self.environment, **variables}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        with self.start(**variables) as process:
            out, err = process.communicate(timeout=100)
        return subprocess.CompletedProcess([".ci/setup"], process.returncode, out, err)

    def set_up(self, **variables: str) -> str:
        """Set up, which must succeed; return the output."""
        done = self.run(**variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.code_of_command() == self.directory / "impl/worker_service/__init__.py"
        assert self.leftovers() == []
        return done.stdout

    def fail(self, **variables: str) -> str:
        """Set up, which must fail; return the message."""
        done = self.run(**variables)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def code_of_command(self) -> Path:
        """Return the file whose code the installed command runs."""
        done = subprocess.run([self.command], capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())

    def change_lock(self) -> None:
        with (self.directory / "requirements.lock").open("a") as lock:
            lock.write("# changed\n")

    def leftovers(self) -> list[str]:
        return sorted(
            path.name for path in self.directory.glob(".venv-*") if path.name != ".venv-lock"
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the only locked package: a build backend."""
    path = tmp_path_factory.mktemp("wheels") / "standin_backend-1.0-py3-none-any.whl"
    info = "standin_backend-1.0.dist-info"
    digest = base64.urlsafe_b64encode(hashlib.sha256(BACKEND.encode()).digest()).rstrip(b"=")
    record = f"standin_backend.py,sha256={digest.decode()},{len(BACKEND)}\n{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("standin_backend.py", BACKEND)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: standin-backend\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", record)
    return path


def create_checkout(directory: Path, wheel: Path, interpreters: Path) -> Checkout:
    (directory / ".ci").mkdir(parents=True)
    for script in ("setup", "find-python"):
        shutil.copy(ROOT / ".ci" / script, directory / ".ci")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (directory / "requirements.lock").write_text(f"standin-backend==1.0 --hash=sha256:{digest}\n")
    (directory / "pyproject.toml").write_text(PYPROJECT)
    package = directory / "impl/worker_service/__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("def main() -> None:\n    print(__file__)\n")
    home = interpreters.parent / "home"
    home.mkdir(exist_ok=True)
    return Checkout(
        directory,
        {
            "PATH": f"{interpreters}:{os.environ['PATH']}",
            "HOME": str(home),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheel.parent),
        },
    )


def checkout_with_stand_in(directory: Path, wheel: Path) -> Checkout:
    pip_directory = Path(pip.__file__).parent
    interpreters = directory / "interpreters"
    write_program(interpreters / "python3.13", STANDIN.format(base=BASE, pip=pip_directory))
    return create_checkout(directory / "checkout", wheel, interpreters)


@pytest.fixture
def checkout(tmp_path: Path, wheel: Path) -> Checkout:
    return checkout_with_stand_in(tmp_path, wheel)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Checkout:
    """Set a checkout up once, and keep a copy of it beside it."""
    checkout = checkout_with_stand_in(tmp_path_factory.mktemp("ready"), wheel)
    assert "setting up .venv" in checkout.set_up()
    shutil.copytree(checkout.directory, checkout.directory.with_name("kept"), symlinks=True)
    return checkout


@pytest.fixture
def ready(kept: Checkout) -> Checkout:
    """A checkout that is set up. Its files name its path, so each test's copy is at that path."""
    shutil.rmtree(kept.directory, ignore_errors=True)  # a test may have moved it
    shutil.copytree(kept.directory.with_name("kept"), kept.directory, symlinks=True)
    return kept


# Where it goes


def test_set_up_with_the_interpreters_own_pip_in_an_unusual_path(
    tmp_path: Path, wheel: Path
) -> None:
    interpreters = tmp_path / "interpreters"
    interpreters.mkdir()
    (interpreters / "python3.13").symlink_to(BASE)
    checkout = create_checkout(tmp_path / "it's a ü", wheel, interpreters)
    assert "setting up .venv" in checkout.set_up()
    pip_script = checkout.directory / ".venv/bin/pip"
    subprocess.run([pip_script, "--version"], check=True, capture_output=True)
    texts = [path for path in (checkout.directory / ".venv/bin").iterdir() if path.is_file()]
    assert not [path for path in texts if b".venv-new" in path.read_bytes()[:20_000]]
    assert checkout.set_up() == ""


def test_variables_that_redirect_pip_or_python_have_no_effect(
    checkout: Checkout, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    decoy = tmp_path / "decoy"
    (decoy / ".ci").mkdir(parents=True)
    (decoy / "worker_service.py").write_text("raise RuntimeError('the decoy was imported')\n")
    del checkout.environment["HOME"]
    checkout.set_up(
        PIP_TARGET=str(elsewhere), PIP_PREFIX=str(elsewhere), PIP_ROOT=str(elsewhere),
        PIP_USER="1", PIP_DRY_RUN="1", PIP_PYTHON=str(BASE), PIP_REQUIRE_HASHES="1",
        PIP_PLATFORM="win32", PIP_EDITABLE=str(decoy), PIP_CONSTRAINT=str(elsewhere),
        PYTHONPATH=str(decoy), PYTHONHOME=str(elsewhere), PYTHONUSERBASE=str(elsewhere),
        VIRTUAL_ENV=str(elsewhere), CDPATH=str(decoy),
    )  # fmt: skip
    assert not elsewhere.exists()
    assert sorted(path.name for path in decoy.iterdir()) == [".ci", "worker_service.py"]


def test_pip_conf_that_redirects_has_no_effect(checkout: Checkout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    settings = tmp_path / "home/.config/pip/pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        f"[global]\nprefix = {elsewhere}\ndry-run = yes\n"
        f"[install]\nuser = yes\ntarget = {elsewhere}\nroot = {elsewhere}\n"
    )
    checkout.set_up()
    assert not elsewhere.exists()


def test_path_that_pips_scripts_do_not_work_in_is_reported(
    tmp_path: Path, checkout: Checkout
) -> None:
    moved = Checkout(checkout.directory.rename(tmp_path / 'a "b'), checkout.environment)
    message = moved.fail()
    assert "worker-service does not run this checkout. Nothing was changed." in message
    assert f"a character of the path {moved.directory}" in message
    assert list(moved.directory.glob(".venv")) == []


def test_path_with_a_colon_is_refused_before_anything_starts(
    tmp_path: Path, checkout: Checkout
) -> None:
    moved = Checkout(checkout.directory.rename(tmp_path / "a:b"), checkout.environment)
    message = moved.fail()
    assert f"{tmp_path}/a:b: ':' separates the directories of PATH" in message
    assert list(moved.directory.glob(".venv*")) == []


def test_file_of_another_user_is_refused_with_its_path(wheel: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # pytest's directories are closed to other users
        checkout = create_checkout(directory / "checkout", wheel, tmp_path / "interpreters")
        (checkout.directory / ".venv-lock").touch(0o444)
        (checkout.directory).chmod(0o777)
        done = subprocess.run(
            [".ci/setup"], cwd=checkout.directory, env={**checkout.environment, "PATH": os.defpath},
            user=65534 if os.geteuid() == 0 else None,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"cannot write {checkout.directory}/.venv-lock" in done.stderr


def test_failure_of_venv_is_shown_in_its_own_words(checkout: Checkout, tmp_path: Path) -> None:
    interpreter = tmp_path / "interpreters/python3.13"
    text = interpreter.read_text()
    interpreter.write_text(
        text.replace('*" -m venv "*)\n', '*" -m venv "*)\necho no space left; exit 1\n')
    )
    message = checkout.fail()
    assert "no space left" in message
    assert f"cannot create a virtual environment in {checkout.directory}" in message
    assert "apt install" not in message


# Whether .venv is current


def test_copied_checkout_runs_its_own_code(ready: Checkout, tmp_path: Path) -> None:
    copy = Checkout(tmp_path / "copy", ready.environment)
    shutil.copytree(ready.directory, copy.directory, symlinks=True)
    assert "setting up .venv" in copy.set_up()
    assert ready.set_up() == ""


def test_moved_checkout_has_a_command_again(ready: Checkout, tmp_path: Path) -> None:
    moved = Checkout(ready.directory.rename(tmp_path / "moved"), ready.environment)
    assert "setting up .venv" in moved.set_up()


def test_venv_is_rebuilt_for_another_interpreter_and_when_its_own_is_gone(
    ready: Checkout,
) -> None:
    assert ready.set_up(PYTHON=str(BASE)) == ""
    other = str(ready.directory.with_name("interpreters") / "python3.13")
    assert f"({other})" in ready.set_up(PYTHON=other)
    for link in (ready.directory / ".venv/bin").glob("python*"):
        link.unlink()
        link.symlink_to("/nonexistent/python")
    assert "setting up .venv" in ready.set_up()


# What happens in between


def hold(checkout: Checkout) -> subprocess.Popen[str]:
    """Start a set-up; return when it is inside the project's build, where it waits."""
    for name in ("building", "hold"):
        os.mkfifo(checkout.directory / name)
    process = checkout.start()
    (checkout.directory / "building").read_bytes()
    return process


def release(checkout: Checkout) -> None:
    (checkout.directory / "hold").write_bytes(b"")


def test_second_set_up_waits_for_the_first_and_uses_its_venv(checkout: Checkout) -> None:
    first = hold(checkout)
    with first, checkout.start() as second:
        assert second.stderr is not None
        waiting = second.stderr.readline()
        release(checkout)
        first_out, first_err = first.communicate(timeout=60)
        second_out, second_err = second.communicate(timeout=60)
    assert (first.returncode, first_err) == (0, "")
    assert "setting up .venv" in first_out
    assert waiting == f"waiting for another set-up of {checkout.directory}, 600 s at most\n"
    assert (second.returncode, second_out, second_err) == (0, "", "")
    assert checkout.set_up() == ""


def test_wait_for_another_set_up_is_bounded(checkout: Checkout) -> None:
    script = checkout.directory / ".ci/setup"
    text = script.read_text()
    assert text.count("lock_wait_s=600\n") == 1
    script.write_text(text.replace("lock_wait_s=600\n", "lock_wait_s=0.1\n"))
    with (checkout.directory / ".venv-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "has run for more than 0.1 s. End it, then repeat." in checkout.fail()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_set_up_leaves_the_old_venv_usable(
    ready: Checkout, number: signal.Signals
) -> None:
    ready.change_lock()
    with hold(ready) as process:
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
    assert process.returncode in {128 + number, -number}
    assert ready.code_of_command().is_relative_to(ready.directory)
    assert ready.leftovers() == ([".venv-new"] if number == signal.SIGKILL else [])
    for name in ("building", "hold"):
        (ready.directory / name).unlink()
    assert "setting up .venv" in ready.set_up()


@pytest.mark.parametrize("killed_between_renames", [False, True])
def test_failed_set_up_leaves_the_old_venv_usable(
    ready: Checkout, killed_between_renames: bool
) -> None:
    ready.change_lock()
    if killed_between_renames:
        (ready.directory / ".venv").rename(ready.directory / ".venv-old")
    (ready.directory / "broken").touch()
    done = ready.run()
    assert done.returncode == 1
    assert "the backend is broken" in done.stderr
    assert "pip failed, see its message above. Nothing was changed." in done.stderr
    assert ready.code_of_command().is_relative_to(ready.directory)
    assert ready.leftovers() == []


# Every other target


def test_make_targets_do_not_inherit_what_would_import_another_checkout(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    write_program(tmp_path / ".ci/setup", "#!/bin/sh\nenv\n")
    variables = dict.fromkeys(["CDPATH", "PYTHONPATH", "PYTHONHOME"], str(tmp_path))
    printed = subprocess.run(
        ["make", "setup"], cwd=tmp_path, env={**os.environ, **variables, "KEPT": "yes"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = {line.partition("=")[0] for line in printed.splitlines()}
    assert "KEPT" in names
    assert names.isdisjoint(variables)
