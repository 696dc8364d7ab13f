"""Runs this project's tests in a copy of its tree, so that they see the copy's faults."""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from harness.host.processes import Done, run
from harness.host.repository import ROOT
from harness.mutation.mutation import Mutation, broken_copy

# What the tests of the service need.
PARTS: Final = (
    "impl", "proto", "harness", "certs", "tests", "docs", "README.md", "DESIGN.md",
    "pyproject.toml", "requirements.lock",
)  # fmt: skip
TESTS_FAILED: Final = 1  # pytest's exit code
# The tests refuse to run other code than this tree's; see tests/conftest.py.
_TREE_VARIABLE: Final = "JOBWORKER_TREE"


def copy_of_the_tree(
    directory: Path, mutation: Mutation | None = None, source: Path = ROOT
) -> Path:
    """Copy what a test needs, with a fault or without one, and return the copy."""
    return broken_copy(mutation, source, directory, parts=PARTS, ignored=("mutants", "out"))


def tree_environment(tree: Path) -> dict[str, str]:
    """Return an environment in which Python runs a tree's code, not the installed one."""
    paths = os.pathsep.join(str(tree / part) for part in ("impl", "proto", "."))
    return {**os.environ, "PYTHONPATH": paths, _TREE_VARIABLE: str(tree)}


def run_tests(
    tree: Path,
    nodes: Sequence[str],
    *,
    timeout_s: float,
    test_timeout_s: float,
    options: Sequence[str] = ("-x",),
) -> Done:
    """Run tests of a tree, by default until the first one fails.

    Args:
        tree: a copy of the tree.
        nodes: files, or single tests as pytest names them.
        timeout_s: of the whole run.
        test_timeout_s: of one test; it fails then, and the run ends.
        options: of pytest.

    Raises:
        BrokenError: the run timed out.
    """
    words = [
        sys.executable, "-m", "pytest", *nodes, *options, "-q", "-p", "no:cacheprovider",
        "--timeout", f"{test_timeout_s:g}", "--rootdir", str(tree), "-c",
        str(tree / "pyproject.toml"),
    ]  # fmt: skip
    try:
        return run(words, timeout_s, environment=tree_environment(tree), directory=tree)
    finally:
        _kill_leftovers(tree)


def _kill_leftovers(tree: Path) -> None:
    """Kill what broken code left behind: jobs and servers run in the tree, as this run does."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(tree):
                process.kill()


def failed_tests(done: Done) -> list[str]:
    """Return the tests that failed, as pytest names them."""
    return re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
