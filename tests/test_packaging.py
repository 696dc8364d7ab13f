"""The judge's wheel: complete, without the rest of the checkout, and able to judge a server."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import installed
from harness.__main__ import COMMANDS
from harness.host.clock import poll_until
from harness.host.ports import reserved_port
from harness.record.results import load_report
from harness.record.verdict import Verdict
from tests.support.wheel import build_wheel, install_wheel
from tests.test_tidy import ROOT

DIALECT = ROOT / "tests" / "dialects" / "units.toml"
# Needs a package that only the load tests' Locust users install.
NOT_IMPORTED = {"loadtests.locustfile"}
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import harness, jobworker, loadtests
print(*(module.__file__ for module in (harness, jobworker, loadtests)), sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_wheel(wheel, tmp_path_factory.mktemp("installed") / "environment")


def environment() -> dict[str, str]:
    """Return this process's variables, without those that would lead to the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "GRPC_VERBOSITY": "NONE"}


def run_program(
    program: Path, *words: str, directory: Path, exit_code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(program), *words], cwd=directory, env=environment(), capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done


def modules_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names
    }
    return sorted(modules - NOT_IMPORTED)


def test_both_distributions_have_one_version_and_compatible_requirements() -> None:
    service = tomllib.loads((ROOT / "pyproject.toml").read_text())
    judge = tomllib.loads((ROOT / "harness" / "pyproject.toml").read_text())
    assert judge["project"]["version"] == service["project"]["version"]
    assert judge["project"]["requires-python"] == service["project"]["requires-python"]
    locked = {*service["project"]["dependencies"], *service["dependency-groups"]["dev"]}
    wanted = {*judge["project"]["dependencies"]}
    wanted |= {*judge["project"]["optional-dependencies"]["scanner"]}
    assert wanted <= locked


@pytest.mark.parametrize("folder", [".", "harness"])
def test_declared_minimums_are_those_of_the_generated_code(folder: str) -> None:
    generated = ROOT / "proto" / "jobworker" / "v1"
    messages, rpcs = (generated / f"jobworker_{kind}.py" for kind in ("pb2", "pb2_grpc"))
    [numbers] = re.findall(r"PUBLIC,\s+(\d+),\s+(\d+),\s+(\d+),", messages.read_text())
    [grpc] = re.findall(r"GRPC_GENERATED_VERSION = '(.+)'", rpcs.read_text())
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    assert {f"protobuf>={'.'.join(numbers)}", f"grpcio>={grpc}"} <= set(project["dependencies"])


def test_every_command_is_in_the_wheel_or_says_that_it_needs_a_checkout() -> None:
    there = {command.name for command in installed.COMMANDS}
    assert not there & set(installed.OF_A_CHECKOUT)
    assert there | set(installed.OF_A_CHECKOUT) == set(COMMANDS)


def test_wheel_has_what_the_judge_reads_and_nothing_that_needs_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = {"/".join(Path(name).parts[:2]) for name in names if name.startswith("harness/")}
    assert not folders & {"harness/" + each for each in ("vm", "races", "mutation", "project")}
    builtin = ROOT / "harness" / "dialects" / "builtin"
    wanted = {f"harness/dialects/builtin/{path.name}" for path in builtin.iterdir()}
    wanted |= {"harness/LICENSE", "harness/report/report.html.j2", "harness/report/theme.css"}
    assert wanted <= names
    assert wheel.stat().st_size < 1_000_000


def test_every_module_imports_with_the_declared_requirements_alone(
    wheel: Path, programs: Path, tmp_path: Path
) -> None:
    modules = modules_of(wheel)
    assert len(modules) > 100
    done = run_program(programs / "python", "-c", IMPORT_ALL, *modules, directory=tmp_path)
    for place in done.stdout.split():
        assert Path(place).is_relative_to(programs.parent), place


@contextmanager
def foreign_server(certificates: Path) -> Iterator[str]:
    """Run a job worker that has nothing of ours."""
    with reserved_port() as port:
        address = f"127.0.0.1:{port}"
        words = [sys.executable, "-m", "tests.support.foreign_server", "units", "--listen", address]
        for name, file in (("ca", "ca.crt"), ("cert", "server.crt"), ("key", "server.key")):
            words += [f"--{name}", str(certificates / file)]
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            poll_until(lambda: _listens(port), 60, f"a server at {address}")
            yield address
        finally:
            process.kill()
            process.wait(20)


def _listens(port: int) -> bool | None:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return None
    return True


def test_wheel_judges_a_server_of_another_api(programs: Path, tmp_path: Path) -> None:
    judge = programs / "jobworker-judge"
    made = run_program(judge, "identities", "certs", "--scheme", str(DIALECT), directory=tmp_path)
    assert "admin.crt has 'operator', and may do all" in made.stdout
    next_command = f"jobworker-judge check --target HOST:PORT --dialect {DIALECT}"
    assert next_command in made.stdout
    chosen = r"identity\.(roles|certificates)|lifecycle\.(literal|exit-codes)|streams\.order"
    with foreign_server(tmp_path / "certs") as address:
        words = ["check", "--target", address, "--dialect", str(DIALECT), "--identities", "certs"]
        words += ["-k", chosen, "--out", "run"]
        run_program(judge, *words, directory=tmp_path)
    report = load_report(tmp_path / "run")
    assert {each.name: each.verdict for each in report.results} == dict.fromkeys(
        ("identity.roles", "identity.certificates", "lifecycle.literal", "lifecycle.exit-codes",
         "streams.order"),
        Verdict.PASS,
    )  # fmt: skip
    assert report.about["commit"].startswith("jobworker-harness ")
    assert report.about["command"].startswith("jobworker-judge check --target")
    assert report.results[0].rerun.startswith("jobworker-judge check")
    again = run_program(judge, "recheck", "run", directory=tmp_path)
    assert "5 PASS" in again.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("vm", "boot", "--name", "x"), "the command vm needs a checkout of the project"),
        (("check", "--target", "vm"), "the target vm needs a checkout of the project"),
        (("check",), "no server is installed beside the judge; give --launch COMMAND"),
    ],
)
def test_what_needs_more_than_the_wheel_says_so(
    words: tuple[str, ...], message: str, programs: Path, tmp_path: Path
) -> None:
    done = run_program(programs / "jobworker-judge", *words, directory=tmp_path, exit_code=2)
    text = done.stdout + done.stderr
    assert message in text
    assert "Traceback" not in text


def test_load_tests_are_in_the_wheel(programs: Path, tmp_path: Path) -> None:
    done = run_program(programs / "jobworker-load", "run", "--help", directory=tmp_path)
    assert "--target" in done.stdout


PAGE = ROOT / "docs" / "judge-your-own-server.md"


def test_page_about_ones_own_server_can_be_followed(programs: Path, tmp_path: Path) -> None:
    text = PAGE.read_text()
    [dialect] = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "my-server.toml").write_text(dialect)
    shutil.copy(DIALECT.with_suffix(".proto"), tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [words[1] for words in lines] == ["dialect", "identities", "dialect", "check"]
    for _, *words in lines[:2]:
        run_program(programs / "jobworker-judge", *words, directory=tmp_path)
    with foreign_server(tmp_path / "certs") as address:
        for _, *words in lines[2:]:
            given = [address if word == "localhost:50051" else word for word in words]
            run_program(programs / "jobworker-judge", *given, directory=tmp_path)
    report = load_report(tmp_path / "results" / "latest")
    assert [each.verdict for each in report.results] == [Verdict.PASS]


ACTION = ROOT / ".github" / "actions" / "judge"
FOREIGN = (
    f"env PYTHONPATH={ROOT} {sys.executable} -m tests.support.foreign_server units "
    "--listen {listen} --ca {ca} --cert {cert} --key {key}"
)


def run_action(
    script: str, programs: Path, directory: Path, exit_code: int = 0, **inputs: str
) -> tuple[str, dict[str, str], str]:
    """Run a script of the action as a runner does.

    Returns:
        Its output, the step's outputs, and the job's summary.
    """
    (directory / "temporary").mkdir(exist_ok=True)
    link = directory / "temporary" / "jobworker-judge"
    if not link.exists():
        link.symlink_to(programs.parent)
    files = {name: directory / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.write_text("")
    names = re.findall(r"(JUDGE_[A-Z_]+): \$", (ACTION / "action.yml").read_text())
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c",
         f'"$GITHUB_ACTION_PATH/{script}"'],
        cwd=directory, capture_output=True, text=True, timeout=100, check=False,
        env={
            **environment(), **{name: str(file) for name, file in files.items()},
            "GITHUB_ACTION_PATH": str(ACTION), "RUNNER_TEMP": str(directory / "temporary"),
            **dict.fromkeys(names, ""), "JUDGE_COMMAND": "check", **inputs,
        },
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert done.returncode == exit_code, text
    lines = files["GITHUB_OUTPUT"].read_text().splitlines()
    outputs = dict(line.split("=", 1) for line in lines)
    return text, outputs, files["GITHUB_STEP_SUMMARY"].read_text()


def test_action_passes_each_input_as_a_variable_that_its_script_reads() -> None:
    text = (ACTION / "action.yml").read_text()
    inputs = set(re.findall(r"^  ([a-z-]+):$", text.partition("outputs:")[0], re.MULTILINE))
    passed = dict(re.findall(r"(JUDGE_[A-Z_]+): \$\{\{ inputs\.([a-z-]+) \}\}", text))
    assert {*passed.values()} == inputs - {"python-version", "artifact"}
    read = set(re.findall(r"\bJUDGE_[A-Z_]+", (ACTION / "judge").read_text()))
    assert read == set(passed)
    # An input in a script's text would be run by the shell.
    assert not [line for line in text.splitlines() if "run:" in line and "${{" in line]
    for script in re.findall(r"GITHUB_ACTION_PATH/([a-z]+)", text):
        assert os.access(ACTION / script, os.X_OK), script


@pytest.mark.parametrize(("fault", "exit_code"), [("", 0), (" --fault corrupt", 1)])
def test_action_reports_a_servers_verdict(
    fault: str, exit_code: int, programs: Path, tmp_path: Path
) -> None:
    installed_version, _, _ = run_action("install", programs, tmp_path)
    assert "jobworker-harness" in installed_version
    _, outputs, summary = run_action(
        "judge", programs, tmp_path, exit_code,
        JUDGE_DIALECT=str(DIALECT), JUDGE_LAUNCH=FOREIGN + fault,
        JUDGE_ARGUMENTS="-k\nlifecycle.literal\n",
    )  # fmt: skip
    assert outputs["exit-code"] == str(exit_code)
    report = load_report(Path(outputs["report"]))
    verdict = Verdict.FAIL if exit_code else Verdict.PASS
    assert {each.name: each.verdict for each in report.results} == {"lifecycle.literal": verdict}
    assert summary == (Path(outputs["report"]) / "summary.md").read_text()
    assert verdict in summary


def test_action_lets_no_server_give_commands_to_the_runner(programs: Path, tmp_path: Path) -> None:
    text, _, _ = run_action(
        "judge", programs, tmp_path, 1, JUDGE_DIALECT=str(DIALECT),
        JUDGE_LAUNCH=f"{FOREIGN} --fault workflow-command", JUDGE_ARGUMENTS="-k\nlifecycle.ids",
    )  # fmt: skip
    [token] = re.findall(r"^::stop-commands::([0-9a-f]{32})$", text, re.MULTILINE)
    commands = re.findall(r"^\s*(::.*)$", text, re.MULTILINE)
    assert commands[0] == f"::stop-commands::{token}"
    assert commands[-1] == f"::{token}::"
    assert set(commands[1:-1]) == {"::error title=x::y"}


def test_action_generates_certificates_and_refuses_another_command(
    programs: Path, tmp_path: Path
) -> None:
    run_action(
        "judge", programs, tmp_path, JUDGE_COMMAND="identities", JUDGE_DIALECT=str(DIALECT),
        JUDGE_IDENTITIES="made", JUDGE_ARGUMENTS="--name\nexample.org",
    )  # fmt: skip
    assert (tmp_path / "made" / "server.key").is_file()
    text, outputs, summary = run_action("judge", programs, tmp_path, 2, JUDGE_COMMAND="chekc")
    assert "it must be check or identities" in text
    assert (outputs, summary) == ({}, "")
