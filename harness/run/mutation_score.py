"""The mutation score: how many random faults the checks and the tests notice.

A random sample of all mechanical mutants of the service (`code_mutants`) is judged, first by the
quick checks on this host, then by the unit tests of the mutated module and the integration tests.
The first to notice ends a mutant; a check or a test counts only if it does not pass twice, so that
a busy machine is not a success. A check that is BROKEN twice has noticed, too: its run fails. What
does not end in its time limit is noticed. A mutant that cannot be imported is invalid, and is left
out of every figure.

The quick checks need no cgroup v2: faults of limits are judged by tests only, since the checks of
limits run in a guest.
"""

import math
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

from harness.checks import ALL
from harness.checks.check import Check, Scale
from harness.checks.quick import QUICK
from harness.drive.identities import IdentityStore
from harness.host.processes import run
from harness.mutation.code_mutants import CodeMutant, code_mutants
from harness.mutation.mutation import SERVICE
from harness.record.results import CheckResult
from harness.record.verdict import BrokenError, Verdict
from harness.run.capabilities import Capabilities, probe_capabilities
from harness.run.check_runner import Options, Silent, run_checks
from harness.run.selftest import local_target
from harness.run.tree_tests import (
    TESTS_FAILED,
    copy_of_the_tree,
    failed_tests,
    run_tests,
    tree_environment,
)
from harness.targets.fronted import direct_target
from harness.targets.target import Target

WORKERS: Final = 2
_SEED: Final = "mutation-score"
_CHECKS_AT_ONCE: Final = 8
_CHECK_TIME_LIMIT_S: Final = 30.0  # a quick check takes 2 s
_IMPORT_TIMEOUT_S: Final = 60.0
# On unbroken code, too: a test that needs longer there would notice every mutant.
_TEST_TIMEOUT_S: Final = 60.0
_UNBROKEN_TIMEOUT_S: Final = 1800.0
# Of the tests' time on the unbroken code, which two workers and other programs slow down.
_TESTS_TIME_FACTOR: Final = 5.0
_TESTS_TIME_MIN_S: Final = 60.0
# It runs the quick checks, which have judged the mutant already.
_CHECKS_TEST: Final = "test_checks.py"
_PROMISES_TEST: Final = "test_promises.py"  # it holds the default of each setting
_CONFIDENCE_Z: Final = 1.959964  # 95 % of a normal distribution


class Fate(StrEnum):
    """What became of a mutant."""

    JUDGE = "killed by the judge"
    TESTS = "killed by tests only"
    SURVIVED = "survived"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a mutant.

    Attributes:
        mutant: its place and change.
        operator: the kind of change.
        fate: what became of it.
        by: the check or test that noticed it; "" if none did.
        finding: what it said.
        diff: the change.
        seconds: duration.
    """

    mutant: str
    operator: str
    fate: Fate
    by: str
    finding: str
    diff: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Score:
    """A sample's result.

    Attributes:
        seed: of the sample.
        modules: that the sample was drawn from.
        places: the number of mutants that these modules have.
        outcomes: of the sample, in the order in which they ended.
    """

    seed: str
    modules: tuple[str, ...]
    places: int
    outcomes: tuple[Outcome, ...]

    def count(self, *fates: Fate) -> int:
        """Return how many mutants have one of these fates."""
        return sum(outcome.fate in fates for outcome in self.outcomes)

    @property
    def valid(self) -> int:
        """The number of mutants that can be imported."""
        return len(self.outcomes) - self.count(Fate.INVALID)


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, from 0 to 1.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference
    (1927). It is right for small samples and for shares near 0 and 1, too.
    """
    if total == 0:
        return 0.0, 1.0
    share, square = hits / total, _CONFIDENCE_Z**2
    centre = share + square / (2 * total)
    spread = _CONFIDENCE_Z * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    scale = 1 + square / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def module_names(checkout: Path) -> list[str]:
    """Return the modules of the service that have mutants."""
    paths = sorted((checkout / SERVICE).glob("*.py"))
    return [path.stem for path in paths if code_mutants(path.name, path.read_text())]


def sampled(checkout: Path, modules: Sequence[str], size: int, seed: str) -> list[CodeMutant]:
    """Return a random sample of the mutants of modules: the same for the same seed and code.

    Raises:
        BrokenError: a module does not exist.
    """
    found = all_mutants(checkout, modules)
    return random.Random(seed).sample(found, min(size, len(found)))  # noqa: S311 - not secret


def all_mutants(checkout: Path, modules: Sequence[str]) -> list[CodeMutant]:
    """Return every mutant of modules.

    Raises:
        BrokenError: a module does not exist.
    """
    known = module_names(checkout)
    if unknown := sorted(set(modules) - set(known)):
        raise BrokenError(f"unknown module {', '.join(unknown)}; choose of {', '.join(known)}")
    texts = {f"{name}.py": (checkout / SERVICE / f"{name}.py").read_text() for name in modules}
    return [mutant for file, text in texts.items() for mutant in code_mutants(file, text)]


def find_tests(checkout: Path, module: str) -> tuple[list[str], list[str]]:
    """Return the files of the tests that see a module: unit tests, and integration tests.

    A unit test sees what it, or a module of `tests/support` that it uses, imports; the module's own
    tests come first. An integration test runs the whole program.
    """
    tests = checkout / "tests"
    imported = re.compile(
        rf"\bworker_service\.{module}\b|from worker_service import .*\b{module}\b"
    )
    helpers = [
        f"tests.support.{path.stem}"
        for path in (tests / "support").glob("*.py")
        if imported.search(path.read_text())
    ]
    units = [
        path
        for path in (*sorted((tests / "impl").glob("test_*.py")), tests / _PROMISES_TEST)
        if imported.search(text := path.read_text()) or any(name in text for name in helpers)
    ]
    units.sort(key=lambda path: path.stem != f"test_{module}")
    integration = sorted((tests / "integration").glob("test_*.py"))
    return (
        [str(path.relative_to(checkout)) for path in units],
        [str(path.relative_to(checkout)) for path in integration if path.name != _CHECKS_TEST],
    )


@dataclass(frozen=True, slots=True)
class Notice:
    """That something noticed a fault.

    Attributes:
        by: a check, or a test.
        finding: what it said, one line.
    """

    by: str
    finding: str


class Scorer:
    """Judges mutants of one checkout; used by several threads at once.

    `failing_tests` are those that the unbroken code fails, too: they judge no mutant.

    Args:
        checkout: the unbroken source.
        identities: the certificates of servers and clients.
        directory: for temporary files; the caller removes it.
        tests_timeout_s: of one run of tests; `prepare` derives it from a run of the unbroken code.
    """

    def __init__(
        self,
        checkout: Path,
        identities: IdentityStore,
        directory: Path,
        *,
        tests_timeout_s: float = _TESTS_TIME_MIN_S,
    ) -> None:
        self._checkout = checkout
        self._identities = identities
        self._directory = directory
        self._checks: list[Check] = [
            replace(check, time_limit_s=_CHECK_TIME_LIMIT_S) for check in ALL if check.name in QUICK
        ]
        self._capabilities: Capabilities = {}
        self.failing_tests: tuple[str, ...] = ()
        self._tests_timeout_s = tests_timeout_s

    def prepare(self, modules: Sequence[str]) -> None:
        """Judge the unbroken code: what it does not pass says nothing of a mutant.

        Raises:
            BrokenError: a check fails, or no test can be run.
        """
        tree = copy_of_the_tree(self._directory / "unbroken", None, self._checkout)
        target = local_target(self._identities, tree)
        with target.launch() as server:
            self._capabilities = probe_capabilities(target, server, Scale.FULL)
            results = self._run(direct_target(target, server), self._checks)
        if failed := [each for each in results if each.verdict in {Verdict.FAIL, Verdict.BROKEN}]:
            raise BrokenError(f"the unbroken code does not pass: {_sentence(failed[0])}")
        judged = {result.name for result in results if result.verdict is Verdict.PASS}
        self._checks = [check for check in self._checks if check.name in judged]
        files = {file for module in modules for part in find_tests(tree, module) for file in part}
        started_s = time.monotonic()
        done = run_tests(
            tree, sorted(files), timeout_s=_UNBROKEN_TIMEOUT_S, test_timeout_s=_TEST_TIMEOUT_S,
            options=(),
        )  # fmt: skip
        self.failing_tests = tuple(failed_tests(done))
        if done.exit_code not in {0, TESTS_FAILED}:
            raise BrokenError(f"the tests of the unbroken code end early:\n{done.stdout[-2000:]}")
        took_s = time.monotonic() - started_s
        self._tests_timeout_s = max(_TESTS_TIME_MIN_S, _TESTS_TIME_FACTOR * took_s)

    def judge(self, mutant: CodeMutant) -> Outcome:
        """Judge one mutant."""
        started_s = time.monotonic()
        source = (self._checkout / SERVICE / mutant.file).read_text()
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            tree = copy_of_the_tree(Path(directory), mutant.mutation(source), self._checkout)
            fate, notice = self._fate(tree, mutant.file.removesuffix(".py"))
        return Outcome(
            mutant.name, mutant.operator, fate, notice.by, notice.finding, mutant.diff(source),
            time.monotonic() - started_s,
        )  # fmt: skip

    def _fate(self, tree: Path, module: str) -> tuple[Fate, Notice]:
        if (notice := _import_fault(tree, module)) is not None:
            return Fate.INVALID, notice
        if (notice := self._noticed_by_checks(tree)) is not None:
            return Fate.JUDGE, notice
        for files in find_tests(tree, module):
            if files and (notice := self._noticed_by_tests(tree, files)) is not None:
                return Fate.TESTS, notice
        return Fate.SURVIVED, Notice("", "")

    def _noticed_by_checks(self, tree: Path) -> Notice | None:
        """Return the first check that fails, and fails again when it is alone with a server."""
        target = local_target(self._identities, tree)
        try:
            with target.launch() as server:
                suspects = self._suspects(direct_target(target, server))
        except BrokenError as error:
            return Notice("the server's start", _one_line(str(error)))
        for suspect in suspects:
            again = [check for check in self._checks if check.name == suspect.name]
            [result] = self._run(target, again)
            if result.verdict is not Verdict.PASS:
                return Notice(result.name, _sentence(result))
        return None

    def _suspects(self, target: Target) -> list[CheckResult]:
        """Return the failures of the first few checks that have one; a FAIL comes first."""
        for index in range(0, len(self._checks), _CHECKS_AT_ONCE):
            results = self._run(target, self._checks[index : index + _CHECKS_AT_ONCE])
            failed = [result for result in results if result.verdict is not Verdict.PASS]
            if failed:
                return sorted(failed, key=lambda result: result.verdict is not Verdict.FAIL)
        return []

    def _run(self, target: Target, checks: Sequence[Check]) -> list[CheckResult]:
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            options = Options(_SEED, Path(directory))
            return run_checks(target, checks, options, Silent(), self._capabilities)

    def _noticed_by_tests(self, tree: Path, files: Sequence[str]) -> Notice | None:
        """Return the first test that fails, and fails again when it is alone."""
        attempt = partial(
            run_tests, tree, timeout_s=self._tests_timeout_s, test_timeout_s=_TEST_TIMEOUT_S
        )
        skipped = [word for test in self.failing_tests for word in ("--deselect", test)]
        try:
            done = attempt(files, options=("-x", *skipped))
            if done.exit_code == 0:
                return None
            # A test that timed out ended the run, and has no name in its output.
            test = next(iter(failed_tests(done)), "")
            again = [test] if test else files
            if attempt(again, options=("-x", *skipped)).exit_code == 0:
                return None
        except BrokenError as error:
            return Notice(files[0], _one_line(str(error)))
        errors = re.findall(r"^E +(.+)$", done.stdout, re.MULTILINE)
        return Notice(test or files[0], errors[0][:200] if errors else "timed out")


# Called with each mutant before it is judged, from any thread.
OnStart = Callable[[CodeMutant], None]


def score(scorer: Scorer, mutants: Sequence[CodeMutant], on_start: OnStart) -> Iterator[Outcome]:
    """Judge mutants, two at a time; yield their outcomes as they end."""

    def judge(mutant: CodeMutant) -> Outcome:
        on_start(mutant)
        return scorer.judge(mutant)

    with ThreadPoolExecutor(WORKERS) as pool:
        judged = [pool.submit(judge, mutant) for mutant in mutants]
        try:
            yield from (each.result() for each in as_completed(judged))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _import_fault(tree: Path, module: str) -> Notice | None:
    program = f"import worker_service.cli, worker_service.{module}"
    try:
        done = run(
            [sys.executable, "-c", program], _IMPORT_TIMEOUT_S, environment=tree_environment(tree)
        )
    except BrokenError as error:
        return Notice("import", _one_line(str(error)))
    return Notice("import", _one_line(done.stderr)) if done.exit_code != 0 else None


def _sentence(result: CheckResult) -> str:
    said = result.decisive[0].sentence() if result.decisive else ""
    return f"{result.verdict}: {_one_line(said)}"


def _one_line(text: str) -> str:
    """Return the last line of an error, cut."""
    return (text.strip().splitlines() or [""])[-1][:300]
