"""Runs checks against targets: asks what a target can do, drives, records, judges, reports.

Checks that measure run alone, the others side by side. Threads: each check's run has a thread of
its own, which nobody waits for beyond its time limit; results are gathered by one thread.
"""

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from harness.capabilities import Capabilities, ask
from harness.checks.check import Check, Scale, Stage
from harness.history import History, Recorder, load, save
from harness.results import Result, RunReport
from harness.targets.target import RunningServer, Target
from harness.verdict import BrokenError, Finding, UnmetError, UnsupportedError, Verdict, merge

# Who is told what a target can do, once that is known.
Asked = Callable[[Capabilities], None]

PARALLEL: Final = 4
SMALL_TIME_FACTOR: Final = 4.0  # an emulated processor's time limits are longer
_HISTORY_FOLDER: Final = "history"

# Labels of the facts that the session itself records about a check's run.
UNMET: Final = "session: unmet"
SKIPPED: Final = "session: skipped"
BROKEN: Final = "session: broken"
DIED: Final = "session: the server died"
MACHINE_DIED: Final = "session: the server's machine died or does not answer"


class Progress(Protocol):
    """Who is told how far it has come; any thread."""

    def note(self, text: str) -> None:
        """Take something worth knowing."""

    def started(self, target: str, name: str) -> None:
        """Take the start of a check."""

    def finished(self, result: Result) -> None:
        """Take the end of a check."""


@dataclass(frozen=True, slots=True)
class Options:
    """How checks are run.

    Attributes:
        seed: of everything that is chosen by chance.
        directory: where the records go.
        rerun: a command that repeats one check, with `{name}` to fill in.
        parallel: how many checks at a time, of those that may share the machine.
        own_server: give each check a server of its own (the target must be able to).
    """

    seed: str
    directory: Path
    rerun: str = ""
    parallel: int = PARALLEL
    own_server: bool = False


class SharedServer:
    """The server that checks share; started anew when it has died.

    Shared state and its guard: `_server`, `_stack` under `_lock`.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._server: RunningServer | None = None

    def get(self) -> RunningServer:
        """Return a server that has not died.

        Raises:
            BrokenError: none can be had.
        """
        with self._lock:
            if self._server is not None and self._server.has_died():
                self._close()
            if self._server is None:
                self._server = self._stack.enter_context(self._target.shared())
            return self._server

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._server = None
        self._stack.close()


def run_checks(
    target: Target,
    checks: Sequence[Check],
    options: Options,
    progress: Progress,
    capabilities: Capabilities | None = None,
    *,
    asked: Asked | None = None,
) -> list[Result]:
    """Run checks against a target and judge them. Every check gets a result, whatever happens.

    Args:
        target: what to judge.
        checks: what to judge it by.
        options: how.
        progress: who is told how far it has come.
        capabilities: what the target can do, if that is known; None asks it.
        asked: who is told what it can do, when it was asked.
    """
    scale = Scale.SMALL if target.emulated else Scale.FULL
    shared = SharedServer(target)
    try:
        if capabilities is None:
            progress.note(f"{target.name}: asking what it can do")
            capabilities = ask(target, shared.get(), scale)
            for reason in filter(None, capabilities.values()):
                progress.note(f"{target.name}: {reason}")
            if asked is not None:
                asked(capabilities)
    except (BrokenError, UnsupportedError) as error:
        shared.close()
        return [_all_broken(target, check, str(error), options, progress) for check in checks]
    runner = _Runner(target, shared, capabilities, scale, options, progress)
    try:
        with ThreadPoolExecutor(options.parallel) as pool:
            together = list(pool.map(runner.run, [each for each in checks if not each.alone]))
        return together + [runner.run(check) for check in checks if check.alone]
    finally:
        shared.close()


def _all_broken(
    target: Target, check: Check, reason: str, options: Options, progress: Progress
) -> Result:
    progress.started(target.name, check.name)
    finding = Finding(Verdict.BROKEN, "the server can be reached", reason)
    result = _result(target.name, check, (finding,), 0.0, rerun=options.rerun)
    progress.finished(result)
    return result


@dataclass(frozen=True, slots=True)
class _Runner:
    target: Target
    shared: SharedServer
    capabilities: Capabilities
    scale: Scale
    options: Options
    progress: Progress

    def run(self, check: Check) -> Result:
        """Run one check, record, judge; a fault of ours is a result too."""
        try:
            return self._run(check)
        except Exception:  # noqa: BLE001 - every check gets a result, whatever happens
            finding = Finding(
                Verdict.BROKEN, "the check can be run", traceback.format_exc()[-3000:]
            )
            result = _result(self.target.name, check, (finding,), 0.0, rerun=self.options.rerun)
            self.progress.finished(result)
            return result

    def _run(self, check: Check) -> Result:
        self.progress.started(self.target.name, check.name)
        started_s = time.monotonic()
        recorder = Recorder()
        lacking = [reason for need in sorted(check.needs) if (reason := self.capabilities[need])]
        if lacking:
            recorder.fact(SKIPPED, "; ".join(lacking))
        else:
            self._drive(check, recorder)
        history = recorder.history()
        path = history_path(self.options.directory, self.target.name, check.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(history, path)
        result = _result(
            self.target.name,
            check,
            judge(check, history),
            time.monotonic() - started_s,
            rerun=self.options.rerun,
            history=str(path.relative_to(self.options.directory)),
        )
        self.progress.finished(result)
        return result

    def _drive(self, check: Check, recorder: Recorder) -> None:
        limit_s = check.time_limit_s
        if self.scale is Scale.SMALL:
            limit_s *= SMALL_TIME_FACTOR
        with ExitStack() as stack:
            try:
                server = (
                    stack.enter_context(self.target.launched())
                    if self.options.own_server
                    else self.shared.get()
                )
            except (BrokenError, UnsupportedError) as error:
                recorder.fact(BROKEN, str(error))
                return
            stage = Stage(
                self.target,
                server,
                recorder,
                scale=self.scale,
                seed=f"{self.options.seed}:{check.name}",
                has=lambda need: not self.capabilities[need],
            )
            _bounded(lambda: _record_run(check, stage), limit_s, recorder)
            try:
                if server.has_died():
                    recorder.fact(DIED, server.log_tail())
            except BrokenError as error:  # nobody knows
                recorder.fact(MACHINE_DIED, str(error))


def _bounded(work: Callable[[], None], limit_s: float, recorder: Recorder) -> None:
    """Do some work on a thread of its own, and go on without it when it takes too long."""
    thread = threading.Thread(target=work, name="check", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        recorder.fact(BROKEN, f"the check did not come to its end within {limit_s:.0f} s")


def _record_run(check: Check, stage: Stage) -> None:
    recorder = stage.recorder
    try:
        check.run(stage)
    except UnmetError as error:
        recorder.fact(UNMET, dataclasses.asdict(error.finding))
    except UnsupportedError as error:
        recorder.fact(SKIPPED, f"the target lacks {error}")
    except BrokenError as error:
        recorder.fact(BROKEN, str(error))
    except Exception:  # noqa: BLE001 - a check that crashes is BROKEN, whatever it was
        recorder.fact(BROKEN, traceback.format_exc()[-3000:])


def judge(check: Check, history: History) -> tuple[Finding, ...]:
    """Judge a check's records; a judge that crashes is BROKEN.

    So is everything when the server's machine died: what then went unanswered or was cut off says
    nothing of the server, and nothing that it left undone is held against it.
    """
    if machine := history.facts(MACHINE_DIED):
        promise = "the server's machine lives to the end of the check"
        return tuple(Finding(Verdict.BROKEN, promise, str(fact.value)) for fact in machine)
    findings = [
        Finding(Verdict.FAIL, "the server survives what it is asked", f"it ended: {fact.value}")
        for fact in history.facts(DIED)
    ]
    skipped, unmet, broken = (history.facts(label) for label in (SKIPPED, UNMET, BROKEN))
    if skipped:
        return (*findings, Finding(Verdict.SKIPPED, str(skipped[0].value)))
    for fact in unmet:
        values = fact.value if isinstance(fact.value, dict) else {}
        texts = {key: str(value) for key, value in values.items() if key != "verdict"}
        findings.append(Finding(Verdict.FAIL, **texts))
    findings += [
        Finding(Verdict.BROKEN, "the check runs to its end", str(fact.value)) for fact in broken
    ]
    if findings:
        return tuple(findings)
    try:
        return tuple(check.judge(history)) or (
            Finding(Verdict.BROKEN, "the check judges at least one promise", "none"),
        )
    except BrokenError as error:
        return (Finding(Verdict.BROKEN, "the records are complete", str(error)),)
    except Exception:  # noqa: BLE001 - as above
        text = traceback.format_exc()[-3000:]
        return (Finding(Verdict.BROKEN, "the judge comes to a verdict", text),)


def _result(
    target: str,
    check: Check,
    findings: tuple[Finding, ...],
    seconds: float,
    *,
    rerun: str,
    history: str = "",
) -> Result:
    return Result(
        target=target,
        name=check.name,
        guarantee=check.guarantee,
        verdict=merge(findings),
        findings=findings,
        seconds=seconds,
        cites=check.cites,
        rerun=rerun.replace("{name}", check.name),
        history=history,
    )


def history_path(directory: Path, target: str, name: str) -> Path:
    """Return where a check's records are."""
    folder = target.replace("/", "_").replace(":", "_")
    return directory / _HISTORY_FOLDER / folder / f"{name}.jsonl"


def rejudge(report: RunReport, directory: Path, checks: Sequence[Check]) -> RunReport:
    """Judge a saved run again, with today's judges and without a server.

    Raises:
        BrokenError: a history is not there.
    """
    by_name = {check.name: check for check in checks}
    results = []
    for result in report.results:
        check = by_name.get(result.name)
        if check is None or not result.history:
            results.append(result)
            continue
        findings = judge(check, load(directory / result.history))
        results.append(
            dataclasses.replace(
                result, findings=findings, verdict=merge(findings), guarantee=check.guarantee
            )
        )
    return dataclasses.replace(report, results=tuple(results))
