"""The mutation score: its sample, its interval, and what becomes of a mutant."""

import threading
from pathlib import Path

import pytest

from harness.cli.mutation_score import summary
from harness.drive.identities import IdentityStore
from harness.host.processes import Done
from harness.mutation.code_mutants import CodeMutant
from harness.mutation.mutation import SERVICE
from harness.record.verdict import BrokenError
from harness.run import mutation_score
from harness.run.mutation_score import (
    Fate,
    Notice,
    Outcome,
    Score,
    Scorer,
    all_mutants,
    find_tests,
    module_names,
    sampled,
    score,
    wilson_interval,
)
from harness.run.tree_tests import failed_tests
from tests.test_tidy import ROOT

WIRE_TESTS = ["tests/impl/test_wire.py"]


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(8, 10, 0.490, 0.943), (0, 10, 0, 0.278), (10, 10, 0.722, 1), (0, 0, 0, 1)],
)
def test_wilson_interval(hits: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(hits, total) == pytest.approx((low, high), abs=0.0005)


def test_sample_repeats_with_its_seed_and_has_each_mutant_once() -> None:
    modules = ["wire", "timers"]
    first = sampled(ROOT, modules, 20, "1")
    assert first == sampled(ROOT, modules, 20, "1")
    assert first != sampled(ROOT, modules, 20, "2")
    assert len(set(first)) == 20
    everything = all_mutants(ROOT, modules)
    assert {mutant.name for mutant in sampled(ROOT, modules, 10_000, "1")} == {
        mutant.name for mutant in everything
    }
    assert {mutant.file for mutant in everything} == {"wire.py", "timers.py"}


def test_every_module_with_code_can_be_drawn_from_and_no_other() -> None:
    assert {"wire", "job", "__main__"} <= set(module_names(ROOT))
    with pytest.raises(BrokenError, match=r"unknown module nothing; choose of .*wire"):
        sampled(ROOT, ["wire", "nothing"], 1, "")


def test_tests_of_a_module_are_its_own_then_its_users_then_those_of_the_whole_program() -> None:
    units, integration = find_tests(ROOT, "log")
    assert units[0] == "tests/impl/test_log.py"
    assert {"tests/impl/test_follow.py", "tests/impl/test_job.py"} <= set(units)
    assert "tests/impl/test_tls.py" not in units
    assert "tests/test_promises.py" in find_tests(ROOT, "config")[0]
    assert "tests/integration/test_streams.py" in integration
    # The judge has run its checks already.
    assert "tests/integration/test_checks.py" not in integration
    assert all((ROOT / file).is_file() for file in (*units, *integration))


@pytest.mark.parametrize(
    ("stdout", "tests"),
    [
        ("x\nFAILED tests/a.py::b[c d] - assert 1 == 2\n1 failed", ["tests/a.py::b[c d]"]),
        ("ERROR tests/a.py::b\nFAILED tests/a.py::c\n", ["tests/a.py::b", "tests/a.py::c"]),
        ("ERROR    worker_service.tree:tree.py:1 a captured log line\n1 passed", []),
    ],
)
def test_failed_tests_are_named_as_pytest_names_them(stdout: str, tests: list[str]) -> None:
    assert failed_tests(Done(1, stdout, "")) == tests


def mutant_of_wire(old: str, new: str) -> CodeMutant:
    """Return a mutant of wire.py by its text."""
    source = (ROOT / SERVICE / "wire.py").read_text().encode()
    start = source.index(old.encode())
    return CodeMutant("wire.py", 1, "constant", start, start + len(old.encode()), new)


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scorer:
    """A scorer without checks, whose only tests are those of wire.py."""
    monkeypatch.setattr(Scorer, "_noticed_by_checks", lambda _scorer, _tree: None)
    monkeypatch.setattr(mutation_score, "find_tests", lambda _tree, _module: (WIRE_TESTS, []))
    monkeypatch.setattr(mutation_score, "_TEST_TIMEOUT_S", 60.0)
    return Scorer(ROOT, IdentityStore(tmp_path), tmp_path, tests_timeout_s=100.0)


@pytest.mark.parametrize(
    ("mutant", "fate", "by"),
    [
        (mutant_of_wire("import datetime", "import no_such_module"), Fate.INVALID, "import"),
        (mutant_of_wire("value >>= 7", "value >>= 8"), Fate.TESTS, WIRE_TESTS[0]),
        (mutant_of_wire("value >>= 7", "value //= 128"), Fate.SURVIVED, ""),
    ],
    ids=["does not import", "fails a test", "equivalent"],
)
def test_fate_of_a_mutant_that_no_check_notices(
    mutant: CodeMutant, fate: Fate, by: str, scorer: Scorer, tmp_path: Path
) -> None:
    outcome = scorer.judge(mutant)
    assert (outcome.fate, outcome.by.partition("::")[0]) == (fate, by)
    assert mutant.new in outcome.diff
    assert not list(tmp_path.iterdir()), "temporary files are left"


def test_mutant_that_never_ends_is_noticed(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation_score, "_TEST_TIMEOUT_S", 2.0)
    outcome = scorer.judge(mutant_of_wire("value >>= 7", "value >>= 0"))
    assert outcome.fate is Fate.TESTS


def test_fate_of_a_mutant_that_a_check_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice = Notice("streams.end", "FAIL: a stream ends")
    monkeypatch.setattr(Scorer, "_noticed_by_checks", lambda _scorer, _tree: notice)
    scorer = Scorer(ROOT, IdentityStore(tmp_path), tmp_path)
    outcome = scorer.judge(mutant_of_wire("value >>= 7", "value >>= 8"))
    assert (outcome.fate, outcome.by, outcome.finding) == (Fate.JUDGE, notice.by, notice.finding)


def test_error_of_the_harness_ends_the_score_without_judging_the_rest(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[CodeMutant] = []
    never = threading.Event()

    def judge(_scorer: Scorer, mutant: CodeMutant) -> Outcome:
        if mutant is not mutants[0]:
            never.wait(1)  # the others take longer
        raise BrokenError("no space left")

    monkeypatch.setattr(Scorer, "judge", judge)
    mutants = all_mutants(ROOT, ["wire"])
    with pytest.raises(BrokenError):
        list(score(scorer, mutants, begun.append))
    assert len(begun) < len(mutants) / 2


def test_summary_shows_survivors_and_leaves_invalid_mutants_out() -> None:
    fates = [Fate.JUDGE] * 8 + [Fate.TESTS, Fate.SURVIVED, Fate.INVALID]
    outcomes = [
        Outcome(f"wire.py:{n}", "constant", fate, "", "", f"-old {n}\n+new {n}\n", 1.0)
        for n, fate in enumerate(fates)
    ]
    lines = summary(Score("18", ("wire",), 73, tuple(outcomes))).splitlines()
    assert "survived: wire.py:9" in lines
    assert "-old 9" in lines
    assert "-old 8" not in lines
    assert lines[-4:] == [
        "invalid, since they cannot be imported, and left out of the figures: 1",
        "killed by the judge: 8 of 10, 80 % (95 % confidence 49 to 94 %)",
        "killed by the judge or by tests: 9 of 10, 90 % (95 % confidence 60 to 98 %)",
        "drawn from 73 mutants of 1 modules, seed 18",
    ]
