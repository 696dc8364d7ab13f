"""The container files name what exists: paths, variables, programs, flags of their examples.

Not covered: that they build, and that the images run; docs/deployment.md says what was run.
"""

import re
import tomllib
from pathlib import Path

import click
import pytest

from harness.installed import COMMANDS
from tests.test_tidy import ROOT
from worker_service import config
from worker_service.cli import main

JUDGE = ROOT / ".github" / "container" / "Containerfile"
SERVER = ROOT / "impl" / "deploy" / "Containerfile"
BOTH = pytest.mark.parametrize("file", [JUDGE, SERVER], ids=["judge", "server"])
EXAMPLES = (
    JUDGE, SERVER, ROOT / "docs" / "deployment.md", ROOT / "docs" / "judge-your-own-server.md",
    ROOT / ".github" / "workflows" / "ci.yml",
)  # fmt: skip
SERVE = main.commands["serve"]


def joined(path: Path) -> str:
    """Return a file's text, with a command of several lines as one."""
    return re.sub(r"\s*\\\n#?\s*", " ", path.read_text())


def copied(file: Path) -> set[str]:
    """Return the paths of the checkout that a container file copies."""
    lines = re.findall(r"^COPY (?!--from)(?:--chmod=\d+ )?(.+) \S+$", joined(file), re.MULTILINE)
    return {path for line in lines for path in line.split()}


def required(file: Path) -> set[str]:
    """Return what the distribution of a container file is built from."""
    if file == JUDGE:
        text = (ROOT / "harness" / "pyproject.toml").read_text()
        return {"harness", *re.findall(r'^"\.\./(\w+)', text, re.MULTILINE)}
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = table["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    project = table["project"]
    folders = {path.partition("/")[0] for path in included}
    return {"pyproject.toml", project["readme"], *project["license-files"], *folders}


def flags_of(command: click.Command) -> set[str]:
    return {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}


@BOTH
def test_copies_exist_and_are_what_the_builder_is_sent_and_the_build_needs(file: Path) -> None:
    paths = copied(file)
    assert all((ROOT / path).exists() for path in paths)
    assert required(file) | {"requirements.lock"} <= paths
    sent = file.with_name("Containerfile.dockerignore").read_text().splitlines()
    folders = {f"!{path}" for path in paths if f"!{path.partition('/')[0]}" not in sent}
    assert not folders - set(sent)
    assert set(sent) - {"*", "**/__pycache__"} == {f"!{path.partition('/')[0]}" for path in paths}


@BOTH
def test_images_have_one_base_the_locked_versions_and_no_pip_of_their_own(file: Path) -> None:
    text = joined(file)
    assert "ARG BASE=docker.io/library/python:3.13-slim-trixie\n" in text
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert "--constraint /constraints" in text
    assert "venv --without-pip" in text


def test_judges_image_runs_the_wheels_program_without_rights() -> None:
    text = joined(JUDGE)
    [program] = re.findall(r'^ENTRYPOINT \["([\w-]+)"\]$', text, re.MULTILINE)
    scripts = tomllib.loads((ROOT / "harness" / "pyproject.toml").read_text())["project"]["scripts"]
    assert program in scripts
    assert re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE) == [("65534", "65534")]


def test_servers_image_has_settings_that_the_server_accepts_and_its_jobs_user() -> None:
    text = joined(SERVER)
    [line] = re.findall(r"^ENV (.+)$", text, re.MULTILINE)
    variables = dict(word.split("=", 1) for word in line.split())
    assert set(variables) <= {config.variable(name) for name in config.Settings.__annotations__}
    settings = config.read_settings({}, variables, None)
    assert settings.job_user is not None
    [user] = re.findall(r"^RUN useradd .* (\S+)$", text, re.MULTILINE)
    assert str(settings.job_user) == user
    [port] = re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)
    assert variables["JOBWORKER_LISTEN"] == f"0.0.0.0:{port}"


def test_servers_image_starts_below_an_init_what_it_copied_with_flags_of_serve() -> None:
    text = joined(SERVER)
    assert 'ENTRYPOINT ["tini", "--", "container-start"]' in text
    assert "COPY --chmod=755 impl/deploy/container-start /usr/local/bin/container-start" in text
    [program, words] = re.findall(
        r"^exec (\S+) serve (.+)$", SERVER.with_name("container-start").read_text(), re.MULTILINE
    )[0]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert f"COPY --from=build {program.partition('/bin/')[0]} " in text
    assert program.rpartition("/")[2] in scripts
    assert set(re.findall(r"--[a-z-]+", words)) <= flags_of(SERVE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_build_files_that_exist_and_use_flags_that_exist(path: Path) -> None:
    text = joined(path)
    files = re.findall(r"(?:docker|podman) build .*--file (\S+)", text)
    assert all((ROOT / file).is_file() for file in files)
    commands = {command.name: flags_of(command) for command in COMMANDS}
    runs = re.findall(r"(?:docker|podman) run .* (jobworker-judge|worker-service)\b(.*)", text)
    assert files or runs
    for image, rest in runs:
        words = rest.split()
        known = flags_of(SERVE) if image == "worker-service" else commands[words.pop(0)]
        assert {word for word in words if word.startswith("--")} <= known
