"""`run_checks` and `judge_again`: every way a check can end, and its verdict."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.checks.check import Check, Need, Stage
from harness.dialects.dialect import CANONICAL, Dialect
from harness.drive.identities import IdentityStore
from harness.host.cert_files import CertFiles
from harness.judge.promises import equal
from harness.record.foundations import SURVIVES
from harness.record.history import Call, History, Observation, Outcome
from harness.record.results import CheckResult, RunReport, load_report, save_report
from harness.record.verdict import BrokenError, Finding, UnmetError, UnsupportedError, Verdict
from harness.report.summary import conclusion
from harness.run.capabilities import Capabilities
from harness.run.check_runner import Options, Silent, run_checks
from harness.run.judging import judge_again
from harness.targets.target import DEFAULT, Host, Variant

EVERYTHING = dict.fromkeys(Need, "")


@dataclasses.dataclass(frozen=True, slots=True)
class Number(Observation):
    """What the checks below observe."""

    value: int


class Identities(IdentityStore):
    """Names files that do not exist."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))

    def files(self, name: str) -> CertFiles:
        return CertFiles(*(self.directory / f"{name}.{kind}" for kind in ("ca", "crt", "key")))


class StandIn:
    """A target without a server."""

    name = "stand-in"
    emulated = False
    disposable_host = False
    has_data_disk = False
    serial = False
    can_launch = True
    dialect: Dialect = CANONICAL
    address = "127.0.0.1:1"
    pid = None

    def __init__(self) -> None:
        self.identities: IdentityStore = Identities()
        self.host: Host | None = None
        self.flags: dict[str, str] = {}
        self.dead = False
        self.exit_code = -int(signal.SIGSEGV)
        self.machine_died_with = ""
        self.started = 0

    def describe(self) -> str:
        return "nothing"

    def signal(self, number: signal.Signals) -> None:
        raise NotImplementedError

    def wait_exit(self, timeout_s: float) -> int | None:
        del timeout_s
        return self.exit_code if self.dead else None

    def has_died(self) -> bool:
        if self.machine_died_with:
            raise BrokenError(self.machine_died_with)
        return self.dead

    def log_tail(self) -> str:
        return "its last words"

    @contextmanager
    def launch(self, variant: Variant = DEFAULT, **_: object) -> Iterator["StandIn"]:
        del variant
        self.started += 1
        self.dead = False
        yield self

    shared = launch


def passes(history: History) -> Iterator[Finding]:
    yield equal("one is one", history.the(Number).value, 1)


def records_one(stage: Stage) -> None:
    stage.record(Number(1))


def raises(error: Exception) -> Callable[[Stage], None]:
    def run(stage: Stage) -> None:
        stage.record(Number(1))
        raise error

    return run


GOOD = Check("area.good", "It is good.", records_one, passes)


def verdict_of(check: Check, tmp_path: Path, target: StandIn | None = None) -> CheckResult:
    options = Options("seed", tmp_path, rerun="again {name}")
    [result] = run_checks(target or StandIn(), [check], options, Silent(), EVERYTHING)
    return result


@pytest.mark.parametrize(
    ("changes", "verdict", "text"),
    [
        ({}, Verdict.PASS, ""),
        ({"run": raises(BrokenError("no VM"))}, Verdict.BROKEN, "no VM"),
        ({"run": raises(ZeroDivisionError())}, Verdict.BROKEN, "ZeroDivisionError"),
        ({"run": raises(UnsupportedError("a tail"))}, Verdict.SKIPPED, "lacks a tail"),
        (
            {"run": raises(UnmetError(Finding(Verdict.FAIL, "a job starts", "no", "yes")))},
            Verdict.FAIL, "a job starts; got no; want yes",
        ),
        ({"run": lambda _: None}, Verdict.BROKEN, "must have one"),
        ({"judge": lambda _: []}, Verdict.BROKEN, "at least one promise"),
        ({"judge": lambda _: 1 // 0}, Verdict.BROKEN, "ZeroDivisionError"),
        ({"judge": lambda _: [equal("p", 1, 2)]}, Verdict.FAIL, "got 1; want 2"),
    ],
)  # fmt: skip
def test_run_and_judge_decide_the_verdict(
    changes: dict[str, object], verdict: Verdict, text: str, tmp_path: Path
) -> None:
    result = verdict_of(dataclasses.replace(GOOD, **changes), tmp_path)  # type: ignore[arg-type]
    assert result.verdict is verdict
    assert text in " ".join(finding.sentence() for finding in result.decisive)
    assert result.rerun == "again area.good"


def test_check_that_times_out_is_broken(tmp_path: Path) -> None:
    ended = threading.Event()

    def hangs(stage: Stage) -> None:
        del stage
        ended.wait(60)

    check = dataclasses.replace(GOOD, run=hangs, time_limit_s=0.1)
    result = verdict_of(check, tmp_path)
    ended.set()
    assert result.verdict is Verdict.BROKEN
    assert "the check timed out after 0 s" in result.decisive[0].sentence()


@pytest.mark.parametrize(
    ("exit_code", "how"),
    [
        (-signal.SIGSEGV, "by SIGSEGV"),
        (-(signal.SIGRTMIN + 1), f"by signal {signal.SIGRTMIN + 1}"),
        (3, "with exit code 3"),
    ],
)
def test_server_that_dies_fails_the_check_and_the_next_check_gets_a_new_one(
    exit_code: int, how: str, tmp_path: Path
) -> None:
    target = StandIn()
    target.exit_code = exit_code

    def dies(stage: Stage) -> None:
        stage.record(Number(1))
        target.dead = True

    deadly = dataclasses.replace(GOOD, run=dies, alone=True)
    options = Options("seed", tmp_path)
    first, second = run_checks(
        target, [deadly, dataclasses.replace(GOOD, alone=True)], options, Silent(), EVERYTHING
    )
    assert first.verdict is Verdict.FAIL
    assert f"it ended: {how}\nits last words" in first.decisive[0].sentence()
    assert second.verdict is Verdict.PASS
    assert target.started == 2


def times_out(stage: Stage) -> None:
    stage.record(Number(1))
    stage.recorder.add(Call("start", "StartJob", Outcome.UNKNOWN, "DEADLINE_EXCEEDED", "", 0, 20))


@pytest.mark.parametrize("can_launch", [True, False])
def test_server_that_hangs_is_one_finding_and_later_checks_get_a_new_one_or_are_skipped(
    can_launch: bool, tmp_path: Path
) -> None:
    target = StandIn()  # no server is at its address
    target.can_launch = can_launch
    checks = [
        dataclasses.replace(GOOD, run=times_out, alone=True), dataclasses.replace(GOOD, alone=True)
    ]  # fmt: skip
    first, second = run_checks(target, checks, Options("seed", tmp_path), Silent(), EVERYTHING)
    assert [each.verdict for each in first.findings] == [Verdict.FAIL]
    assert first.findings[0].promise == SURVIVES
    assert "it answers no call: " in first.findings[0].got
    assert second.verdict is (Verdict.PASS if can_launch else Verdict.SKIPPED)
    assert target.started == (2 if can_launch else 1)
    if not can_launch:
        assert "answers no call since area.good" in second.decisive[0].promise


def test_call_that_timed_out_at_a_server_that_answers_is_left_to_the_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.run.check_runner.require_job_worker", lambda *_: None)
    assert verdict_of(dataclasses.replace(GOOD, run=times_out), tmp_path).verdict is Verdict.PASS


UNMET = UnmetError(Finding(Verdict.FAIL, "a job starts", "UNAVAILABLE: Socket closed", "OK"))


@pytest.mark.parametrize("error", [None, UNMET, UnsupportedError("a tail"), BrokenError("no VM")])
def test_machine_that_dies_is_broken_even_if_a_promise_broke_before(
    error: Exception | None, tmp_path: Path
) -> None:
    target = StandIn()

    def machine_dies(stage: Stage) -> None:
        stage.record(Number(1))
        target.machine_died_with = "guest vm died\nKernel panic"
        if error is not None:
            raise error

    result = verdict_of(dataclasses.replace(GOOD, run=machine_dies), tmp_path, target)
    assert result.verdict is Verdict.BROKEN
    assert {finding.verdict for finding in result.findings} == {Verdict.BROKEN}
    assert "Kernel panic" in result.decisive[0].got
    report = RunReport({}, "", 1.0, (result,))
    assert judge_again(report, tmp_path, [GOOD]).verdict is Verdict.BROKEN


def test_on_capabilities_is_called_if_the_target_was_probed(tmp_path: Path) -> None:
    received: list[object] = []
    options = Options("s", tmp_path)

    def receive(_target: str, found: Capabilities) -> None:
        received.append(found)

    run_checks(
        StandIn(),
        [GOOD],
        options,
        Silent(),
        EVERYTHING,
        on_capabilities=receive,
    )
    assert received == []  # they were given
    found = {**EVERYTHING, Need.GRACE: "the target lacks it"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.run.check_runner.probe_capabilities", lambda *_: found)
        run_checks(StandIn(), [GOOD], options, Silent(), on_capabilities=receive)
    assert received == [found]


def test_check_with_an_unmet_need_is_skipped_with_the_reason_and_not_run(tmp_path: Path) -> None:
    check = dataclasses.replace(GOOD, needs=frozenset({Need.PYTHON}), run=raises(ValueError()))
    lacking = {**EVERYTHING, Need.PYTHON: "the target lacks python"}
    [result] = run_checks(StandIn(), [check], Options("s", tmp_path), Silent(), lacking)
    assert result.verdict is Verdict.SKIPPED
    assert result.decisive[0].promise == "the target lacks python"


def test_saved_run_is_judged_again_by_the_current_judge(tmp_path: Path) -> None:
    result = verdict_of(GOOD, tmp_path)
    report = RunReport({"seed": "seed"}, "2026-11-24T00:00:00+00:00", 1.0, (result,))
    save_report(report, tmp_path)
    loaded = load_report(tmp_path)
    assert loaded == report
    stricter = dataclasses.replace(GOOD, judge=lambda _: [equal("p", 1, 2)])
    assert judge_again(loaded, tmp_path, [GOOD]).verdict is Verdict.PASS
    assert judge_again(loaded, tmp_path, [stricter]).verdict is Verdict.FAIL


def result_of(verdict: Verdict, name: str = "area.check") -> CheckResult:
    return CheckResult("vm", name, "It is so.", verdict, (Finding(verdict, "p"),), 1.0)


@pytest.mark.parametrize(
    ("verdicts", "allowed", "exit_code"),
    [
        ([Verdict.PASS], None, 0),
        ([Verdict.PASS, Verdict.SKIPPED], None, 0),
        ([Verdict.PASS, Verdict.SKIPPED], ("vm:area.*",), 0),
        ([Verdict.PASS, Verdict.SKIPPED], ("local:*",), 2),
        ([Verdict.PASS, Verdict.FAIL], None, 1),
        ([Verdict.BROKEN, Verdict.FAIL], None, 1),
        ([Verdict.PASS, Verdict.BROKEN], None, 2),
        ([Verdict.SKIPPED], None, 2),
        ([], None, 2),
    ],
)
def test_exit_code_follows_from_verdicts_and_allowed_skips(
    verdicts: list[Verdict], allowed: tuple[str, ...] | None, exit_code: int
) -> None:
    results = tuple(result_of(verdict) for verdict in verdicts)
    assert RunReport({}, "", 1.0, results, allowed).exit_code == exit_code


def test_interrupted_run_is_broken() -> None:
    report = RunReport({}, "", 1.0, (result_of(Verdict.PASS),), None, expected=2)
    assert report.exit_code == 2
    assert dataclasses.replace(report, expected=1).exit_code == 0


def test_target_that_cannot_be_judged_is_reported_once_and_runs_no_check(tmp_path: Path) -> None:
    def run(stage: Stage) -> None:
        raise AssertionError(stage)

    check = dataclasses.replace(GOOD, run=run)
    with pytest.raises(BrokenError, match="no connection: Connection refused") as caught:
        run_checks(StandIn(), [check], Options("s", tmp_path), Silent())
    assert "its last words" in str(caught.value)


@pytest.mark.parametrize(("verdict", "exit_code"), [(Verdict.PASS, 2), (Verdict.FAIL, 1)])
def test_set_up_error_is_no_pass_and_hides_no_failure(verdict: Verdict, exit_code: int) -> None:
    report = RunReport({}, "", 1.0, (result_of(verdict),), setup_error="no server")
    assert report.exit_code == exit_code
    assert "no server" in conclusion(report)


def test_crash_of_the_harness_is_a_broken_result(tmp_path: Path) -> None:
    class Crashing(StandIn):
        def has_died(self) -> bool:
            raise ValueError("no such thing")

    result = verdict_of(GOOD, tmp_path, Crashing())
    assert result.verdict is Verdict.BROKEN
    assert "no such thing" in result.decisive[0].sentence()


def test_file_that_is_not_a_report_is_broken(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"verdict": 1, "results": 2}', "[" * 100_000):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(BrokenError, match="no results"):
            load_report(tmp_path)
