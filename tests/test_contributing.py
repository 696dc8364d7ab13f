"""CONTRIBUTING.md's examples are true: each is taken from the page as it is written, and run.

The example check passes on our server and FAILs on a copy that has the example mutation.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness.checks.check import Check
from harness.drive.identities import Case, IdentityStore, make_identities
from harness.mutation.mutation import Mutation, broken_copy
from harness.races.scenario import load_module
from harness.record.results import CheckResult
from harness.record.verdict import Verdict
from harness.run.check_runner import Options, Silent, run_checks
from harness.run.selftest import (
    CONTROL_CHECKS,
    checks_named,
    local_target,
    unbroken_capabilities,
)
from loadtests.profile_file import load_profiles
from tests.test_tidy import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(section: str, language: str) -> list[str]:
    """Return the code blocks of a section in a language."""
    part = re.search(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert part is not None, f"CONTRIBUTING.md has no section {section!r}"
    found = re.findall(rf"^```{language}\n(.*?)^```$", part[1], re.MULTILINE | re.DOTALL)
    assert found, f"section {section!r} has no {language} block"
    return found


def example_module(section: str, directory: Path) -> ModuleType:
    """Return a section's Python example as a module; a last expression is named EXAMPLE."""
    [source] = blocks(section, "python")
    source = re.sub(r"^(?=(Mutation|Case)\()", "EXAMPLE = ", source, flags=re.MULTILINE)
    path = directory / f"example_{re.sub('[^a-z]', '_', section.lower())}.py"
    path.write_text(source)
    return load_module(path)


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    [check] = example_module("A check", tmp_path_factory.mktemp("example")).CHECKS
    assert isinstance(check, Check)
    return check


@pytest.fixture(scope="module")
def mutation(tmp_path_factory: pytest.TempPathFactory) -> Mutation:
    mutation = example_module("A mutant", tmp_path_factory.mktemp("example")).EXAMPLE
    assert isinstance(mutation, Mutation)
    return mutation


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))


def results_of(
    checks: list[Check], tree: Path, identities: IdentityStore, out: Path
) -> dict[str, CheckResult]:
    options = Options("seed", out, own_server=True)
    target = local_target(identities, tree)
    capabilities = unbroken_capabilities(local_target(identities, ROOT))
    results = run_checks(target, checks, options, Silent(), capabilities)
    return {result.name: result for result in results}


def test_example_check_passes_on_our_server(
    check: Check, identities: IdentityStore, tmp_path: Path
) -> None:
    result = results_of([check], ROOT, identities, tmp_path)[check.name]
    assert result.verdict is Verdict.PASS, result


def test_example_mutant_fails_its_check_and_the_control_checks_that_it_names(
    check: Check, mutation: Mutation, identities: IdentityStore, tmp_path: Path
) -> None:
    assert mutation.caught_by == check.name
    controls = [name for area, name in CONTROL_CHECKS.items() if area != check.area]
    tree = broken_copy(mutation, ROOT, tmp_path / "tree")
    results = results_of([check, *checks_named(controls)], tree, identities, tmp_path)
    failed = {name for name, result in results.items() if result.verdict is not Verdict.PASS}
    assert failed == {check.name, *mutation.also}, results
    assert results[check.name].decisive[0].promise == "a job's output arrives"


def test_example_certificate_is_a_case(tmp_path: Path) -> None:
    assert isinstance(example_module("A certificate", tmp_path).EXAMPLE, Case)


def test_example_load_is_a_profile_that_its_command_names(tmp_path: Path) -> None:
    [table] = blocks("A load", "toml")
    (tmp_path / "mine.toml").write_text(table)
    [profile] = load_profiles(tmp_path / "mine.toml")
    assert profile.name in blocks("A load", "sh")[0].split()


def test_example_scenario_holds_in_every_schedule(tmp_path: Path) -> None:
    example_module("A race scenario, and a planted race", tmp_path)
    command = shlex.split(blocks("A race scenario, and a planted race", "sh")[0].splitlines()[0])
    assert command[:4] == ["python", "-m", "harness", "races"]
    done = subprocess.run(
        [sys.executable, *command[1:], "--scenarios", tmp_path, "--out", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"PASS +dfs", done.stdout), done.stdout


def test_each_recipe_ends_with_a_command_that_proves_it() -> None:
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert len(sections) > 5
    for section in sections:
        part = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
        assert re.search(r"^(python -m|make) |`python -m", part, re.MULTILINE), section
        assert shutil.which("make")
