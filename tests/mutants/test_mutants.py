"""Every mutant in the table is caught by the test that its row names."""

import re
from pathlib import Path
from typing import cast

import pytest

from harness.cli.selftest import SHARE
from harness.mutation.mutation import SERVICE, Mutation, edited_text
from harness.run.tree_tests import TESTS_FAILED, copy_of_the_tree, run_tests
from tests.mutants.table import MUTANTS

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 12  # of one test: a mutant that makes its test hang is caught as well
RUN_TIMEOUT_S = 300


@pytest.mark.mutants
@pytest.mark.timeout(RUN_TIMEOUT_S)
def test_unbroken_code_passes_every_test_that_catches_a_mutant(tmp_path: Path) -> None:
    nodes = sorted({mutant.caught_by for mutant in MUTANTS})
    tree = copy_of_the_tree(tmp_path)
    done = run_tests(tree, nodes, timeout_s=RUN_TIMEOUT_S, test_timeout_s=TIMEOUT_S)
    assert done.exit_code == 0, done.stdout[-3000:]
    # A name without a parameter's id stands for all of its parameters.
    [passed] = re.findall(r"^(\d+) passed", done.stdout, flags=re.MULTILINE)
    assert int(passed) >= len(nodes)


@pytest.mark.parametrize("mutation", MUTANTS, ids=lambda mutation: mutation.name)
def test_mutant_fits_the_source(mutation: Mutation) -> None:
    """Its text occurs once, and the broken file is still Python; either raises otherwise."""
    for edit in mutation.edits:
        text = (ROOT / SERVICE / edit.file).read_text()
        compile(edited_text(mutation, edit, text), edit.file, "exec")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mutant" in metafunc.fixturenames:
        share = SHARE.convert(metafunc.config.getoption("share"), None, None)
        first, step = cast("tuple[int, int]", share)
        metafunc.parametrize("mutant", MUTANTS[first::step], ids=lambda mutant: mutant.name)


@pytest.mark.mutants
@pytest.mark.timeout(RUN_TIMEOUT_S)
def test_mutant_is_caught(mutant: Mutation, tmp_path: Path) -> None:
    """Break the code in a copy of the tree, and see the named test fail."""
    node = mutant.caught_by
    tree = copy_of_the_tree(tmp_path, mutant)
    done = run_tests(tree, [node], timeout_s=RUN_TIMEOUT_S, test_timeout_s=TIMEOUT_S)
    assert done.exit_code == TESTS_FAILED, done.stdout[-3000:]
    # The test failed or timed out; a mutant that cannot be imported does not count.
    assert f"FAILED {node}" in done.stdout or "Timeout" in done.stdout + done.stderr, done.stdout
