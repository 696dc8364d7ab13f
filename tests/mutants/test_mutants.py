"""Every mutant in the table is caught by the test that its row names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.mutation.mutation import Mutation, broken_copy
from tests.mutants.table import MUTANTS

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 12  # of one test: a mutant that makes its test hang is caught as well
RUN_TIMEOUT_S = 300
TESTS_FAILED = 1


def copy_of_the_tree(directory: Path, mutation: Mutation | None = None) -> Path:
    """Copy what a test needs, broken or not."""
    parts = ("impl", "proto", "harness", "certs", "tests", "pyproject.toml", "requirements.lock")
    return broken_copy(mutation, ROOT, directory, parts=parts, ignored=("mutants", "out"))


def run_tests(tree: Path, *nodes: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(tree / part) for part in ("impl", "proto", "."))
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", *nodes, "-x", "-q", "-p", "no:cacheprovider",
            "--timeout", str(TIMEOUT_S), "--rootdir", str(tree), "-c", str(tree / "pyproject.toml"),
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": paths, "JOBWORKER_TREE": str(tree)},
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip


@pytest.mark.mutants
@pytest.mark.timeout(RUN_TIMEOUT_S)
def test_unbroken_code_passes_every_test_that_catches_a_mutant(tmp_path: Path) -> None:
    nodes = sorted({mutant.caught_by for mutant in MUTANTS})
    done = run_tests(copy_of_the_tree(tmp_path), *nodes)
    assert done.returncode == 0, done.stdout[-3000:]
    # A name without a parameter's id stands for all of its parameters.
    [passed] = re.findall(r"^(\d+) passed", done.stdout, flags=re.MULTILINE)
    assert int(passed) >= len(nodes)


@pytest.mark.mutants
@pytest.mark.timeout(RUN_TIMEOUT_S)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutation, tmp_path: Path) -> None:
    """Break the code in a copy of the tree, and see the named test fail."""
    tree = copy_of_the_tree(tmp_path, mutant)
    done = run_tests(tree, mutant.caught_by)
    assert done.returncode == TESTS_FAILED, done.stdout[-3000:]
    # The test failed or timed out; a mutant that cannot be imported does not count.
    node = mutant.caught_by
    assert f"FAILED {node}" in done.stdout or "Timeout" in done.stdout + done.stderr, done.stdout
