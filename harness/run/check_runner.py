"""Runs checks against one target: drives each, records it, judges it.

Checks that measure time or memory run alone, the others in parallel. Each check runs on a thread of
its own, which is abandoned when it exceeds its time limit; one thread collects the results.
"""

import functools
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from harness.checks.check import ITS_OWN, Check, Extent, Need, Scale, Stage
from harness.drive.reachability import require_job_worker
from harness.host.machine_watch import MachineWatch
from harness.record.foundations import ENDS, OWNERS, rank, timed_out
from harness.record.history import Cause, History, Interruption, Outcome, Recorder, save
from harness.record.results import CheckResult
from harness.record.verdict import (
    BrokenError,
    Finding,
    UnmetError,
    UnsupportedError,
    Verdict,
    merge,
)
from harness.run.capabilities import Capabilities, probe_capabilities
from harness.run.judging import Judge, crash_text
from harness.targets.target import RunningServer, Target

# Takes a target's name and its capabilities.
OnCapabilities = Callable[[str, Capabilities], None]

PARALLEL: Final = 4
SMALL_TIME_FACTOR: Final = 4.0  # an emulated processor's time limits are longer
# After a call that timed out, a server that answers none for so long has hung.
SILENT_AFTER_S: Final = 60.0
# Of a check that waits for streams which do not end: a run is to take minutes.
ENDLESS_LIMIT_S: Final = 45.0
ENDLESS_LOOK_S: Final = 1.0
_HISTORY_FOLDER: Final = "history"


class Progress(Protocol):
    """Receives a run's progress, from any thread."""

    def note(self, text: str) -> None:
        """Receive a message for the user."""

    def started(self, target: str, name: str) -> None:
        """Receive the start of a check."""

    def finished(self, result: CheckResult) -> None:
        """Receive the result of a check."""


class Silent:
    """A `Progress` that ignores everything."""

    def note(self, text: str) -> None:
        """See `Progress`."""

    def started(self, target: str, name: str) -> None:
        """See `Progress`."""

    def finished(self, result: CheckResult) -> None:
        """See `Progress`."""


@dataclass(frozen=True, slots=True)
class Options:
    """How checks are run.

    Attributes:
        seed: of every random choice.
        directory: for the records.
        rerun: the command that repeats one check, with `{name}` for its name.
        parallel: the number of checks that run at the same time.
        own_server: launch a server for each check (the target must be able to).
        extent: of the checks that work in rounds.
    """

    seed: str
    directory: Path
    rerun: str = ""
    parallel: int = PARALLEL
    own_server: bool = False
    extent: Extent = ITS_OWN


# A skip's reason: what the check promises is this project's own, see `Check.ours`.
NOT_PROMISED: Final = (
    "the target lacks this promise (name the check in `promises` of its dialect if it makes it)"
)


class SharedServer:
    """The server that checks share; a new one is started after it has died or hung.

    Shared state and its guard: `_server`, `_stack`, `_silent_since` under `_lock`.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._server: RunningServer | None = None
        self._silent_since = ""

    def get(self) -> RunningServer:
        """Return a running server.

        Raises:
            BrokenError: it cannot be started.
        """
        with self._lock:
            if self._silent_since or (self._server is not None and self._server.has_died()):
                self._close()
            if self._server is None:
                self._server = self._stack.enter_context(self._target.shared())
            return self._server

    def give_up(self, server: RunningServer, name: str) -> None:
        """Use a server no longer, since it answers no call after a check of this name."""
        with self._lock:
            if server is self._server:
                self._silent_since = name

    def lost_since(self) -> str:
        """Return the check after which the server answers no call; '' if one can be had."""
        with self._lock:
            return "" if self._target.can_launch else self._silent_since

    def close(self) -> None:
        """End the server."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._server = None
        self._silent_since = ""
        self._stack.close()


def run_checks(
    target: Target,
    checks: Sequence[Check],
    options: Options,
    progress: Progress,
    capabilities: Capabilities | None = None,
    *,
    on_capabilities: OnCapabilities | None = None,
) -> list[CheckResult]:
    """Run checks against a target and judge them; every check that is run gets a result.

    Args:
        target: to judge.
        checks: to run.
        options: of the run.
        progress: receives the run's progress.
        capabilities: the target's, if known; None probes the target.
        on_capabilities: called with the probed capabilities.

    Raises:
        BrokenError: the target cannot be judged, and no check was run.
    """
    # A program per call takes long to start.
    is_slow = target.emulated or not target.dialect.is_grpc
    scale = Scale.SMALL if is_slow else Scale.FULL
    shared = SharedServer(target)
    positions = {check.name: position for position, check in enumerate(checks)}
    try:
        if capabilities is None:
            capabilities = _probe(target, shared, scale, progress)
            if on_capabilities is not None:
                on_capabilities(target.name, capabilities)
        with MachineWatch() as watch:
            runner = _Runner(target, shared, capabilities, scale, options, progress, watch)
            results = runner.run_owners([each for each in checks if each.name in OWNERS])
            rest = [each for each in checks if each.name not in OWNERS]
            alone = [each for each in rest if runner.runs_alone(each)]
            with ThreadPoolExecutor(options.parallel) as pool:
                results += pool.map(runner.run, [each for each in rest if each not in alone])
            results += [runner.run(check) for check in alone]
        return sorted(results, key=lambda each: positions[each.name])
    finally:
        shared.close()


def _probe(target: Target, shared: SharedServer, scale: Scale, progress: Progress) -> Capabilities:
    progress.note(f"{target.name}: probing its features")
    capabilities = probe_capabilities(target, shared.get(), scale)
    for reason in filter(None, capabilities.values()):
        progress.note(f"{target.name}: {reason}")
    return capabilities


@dataclass(frozen=True, slots=True)
class _CheckRun:
    check: Check
    history: History
    seconds: float


@dataclass(frozen=True, slots=True)
class _Runner:
    target: Target
    shared: SharedServer
    capabilities: Capabilities
    scale: Scale
    options: Options
    progress: Progress
    watch: MachineWatch
    judge: Judge = field(default_factory=Judge)

    def run_owners(self, checks: Sequence[Check]) -> list[CheckResult]:
        """Run the checks that own what the others rely on: all of them, before one is judged."""
        runs = []
        for check in sorted(checks, key=lambda each: rank(each.name)):
            runs.append(run := self._record(check))
            self.judge.learn(run.check, run.history)
        return [self._conclude(run) for run in runs]

    def runs_alone(self, check: Check) -> bool:
        """Return whether no other check may run at the same time."""
        return check.alone or (self.target.serial and Need.LAUNCH in check.needs)

    def run(self, check: Check) -> CheckResult:
        """Drive one check, record it, judge it; the harness's own exceptions make it BROKEN."""
        return self._conclude(self._record(check))

    def _record(self, check: Check) -> "_CheckRun":
        self.progress.started(self.target.name, check.name)
        started_s = time.monotonic()
        try:
            history = self._drive(check)
        except Exception:  # noqa: BLE001 - every check gets a result
            history = History([Interruption(Cause.HARNESS_FAILED, crash_text())])
        return _CheckRun(check, history, time.monotonic() - started_s)

    def _conclude(self, run: "_CheckRun") -> CheckResult:
        path = history_path(self.options.directory, self.target.name, run.check.name)
        saved = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(run.history, path)
            saved = str(path.relative_to(self.options.directory))
            findings = self.judge(run.check, run.history)
        except Exception:  # noqa: BLE001 - every check gets a result
            findings = (Finding(Verdict.BROKEN, "the check can be judged", crash_text()),)
        result = _result(
            self.target.name,
            run.check,
            findings,
            run.seconds,
            rerun=self.options.rerun,
            history=saved,
        )
        self.progress.finished(result)
        return result

    def _drive(self, check: Check) -> History:
        """Return the records of a check's run, or the reason why it was not run."""
        recorder = Recorder()
        terms = self.target.dialect.terms
        needs = check.needs
        if self.options.extent.lasting_s:  # then a slow processor only does less
            needs -= {Need.NATIVE}
        lacking = [reason for need in sorted(needs) if (reason := self.capabilities[need])]
        if check.ours and not terms.has_promised(check.name):
            lacking.append(NOT_PROMISED)
        if name := self.shared.lost_since():
            lacking.append(f"could not be judged: the server answers no call since {name}")
        if lacking:
            recorder.add(Interruption(Cause.NEED_MISSING, "; ".join(lacking)))
            return recorder.history()
        if not terms.own:
            recorder.add(terms)
        with ExitStack() as stack:
            try:
                server = self._server(stack)
            except (BrokenError, UnsupportedError) as error:
                recorder.add(Interruption(Cause.HARNESS_FAILED, str(error)))
                return recorder.history()
            stage = Stage(
                self.target,
                server,
                recorder,
                scale=self.scale,
                seed=f"{self.options.seed}:{check.name}",
                has=functools.partial(self._has, check),
                extent=self.options.extent,
                note=self.progress.note,
            )
            self._run_within_limit(check, stage)
            _record_death(server, recorder)
            self._record_silence(check, server, recorder)
            if (load := self.watch.load_since(recorder.zero_s)) is not None:
                recorder.add(load)
        return recorder.history()

    def _has(self, check: Check, need: Need) -> bool:
        """Return whether a check can use something.

        A server that takes the shared one's place is for a check that runs alone.
        """
        replaces = need is Need.LAUNCH and self.target.serial and not self.runs_alone(check)
        return not self.capabilities[need] and not replaces

    def _run_within_limit(self, check: Check, stage: Stage) -> None:
        """Run a check on a thread, which is abandoned when it exceeds the check's time limit.

        Where streams do not end, a check that has waited for one is given up soon.
        """
        slow = SMALL_TIME_FACTOR if stage.scale is Scale.SMALL else 1.0
        limit_s = check.limit_s(stage.extent) * slow
        started_s = time.monotonic()
        thread = threading.Thread(target=_run, args=(check, stage), name="check", daemon=True)
        thread.start()
        if self.judge.has_broken(ENDS):
            thread.join(min(limit_s, ENDLESS_LIMIT_S * slow))
            while thread.is_alive() and (passed_s := time.monotonic() - started_s) < limit_s:
                if any(map(timed_out, stage.recorder.history().streams())):
                    text = f"given up after {passed_s:.0f} s: streams do not end"
                    finding = Finding(Verdict.FAIL, ENDS, text)
                    stage.recorder.add(Interruption(Cause.PROMISE_BROKEN, text, finding))
                    return
                thread.join(ENDLESS_LOOK_S)
        thread.join(max(0.0, started_s + limit_s - time.monotonic()))
        if thread.is_alive():
            text = f"the check timed out after {limit_s:.0f} s"
            stage.recorder.add(Interruption(Cause.HARNESS_FAILED, text))

    def _record_silence(self, check: Check, server: RunningServer, recorder: Recorder) -> None:
        """Find out, after a call that timed out, whether the server still answers any.

        Without this, every later check would report the same fault.
        """
        history = recorder.history()
        dead = {Cause.SERVER_DIED, Cause.MACHINE_DIED}
        if dead & {each.cause for each in history.all(Interruption)}:
            return
        if all(call.outcome is not Outcome.UNKNOWN for call in history.calls()):
            return
        timeout_s = SILENT_AFTER_S * (SMALL_TIME_FACTOR if self.scale is Scale.SMALL else 1.0)
        files = self.target.identities.files("admin")
        try:
            require_job_worker(server.address, files, self.target.dialect, timeout_s)
        except BrokenError as error:
            recorder.add(Interruption(Cause.SERVER_SILENT, str(error)))
            self.shared.give_up(server, check.name)

    def _server(self, stack: ExitStack) -> RunningServer:
        """Return the server to judge: one of the check's own, or the shared one."""
        if self.options.own_server:
            return stack.enter_context(self.target.launch())
        server = self.shared.get()
        self.watch.include(server.address)
        return server


def _run(check: Check, stage: Stage) -> None:
    """Run a check, and record the exception that interrupts it by its cause."""
    record = stage.recorder.add
    try:
        check.run(stage)
    except UnmetError as error:
        record(Interruption(Cause.PROMISE_BROKEN, str(error), error.finding))
    except UnsupportedError as error:
        record(Interruption(Cause.NEED_MISSING, f"the target lacks {error}"))
    except BrokenError as error:
        record(Interruption(Cause.HARNESS_FAILED, str(error)))
    except Exception:  # noqa: BLE001 - a check that crashes is BROKEN, whatever it was
        record(Interruption(Cause.HARNESS_FAILED, crash_text()))


def _record_death(server: RunningServer, recorder: Recorder) -> None:
    try:
        if server.has_died():
            recorder.add(Interruption(Cause.SERVER_DIED, _last_words(server)))
    except BrokenError as error:  # its machine does not answer
        recorder.add(Interruption(Cause.MACHINE_DIED, str(error)))


def _last_words(server: RunningServer) -> str:
    """Return how a server ended, and the end of its log: who looks for the cause needs both."""
    code = server.wait_exit(0)
    if code is None:
        return server.log_tail()
    how = f"by {_signal_name(-code)}" if code < 0 else f"with exit code {code}"
    return f"{how}\n{server.log_tail()}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _result(
    target: str,
    check: Check,
    findings: tuple[Finding, ...],
    seconds: float,
    *,
    rerun: str,
    history: str = "",
) -> CheckResult:
    return CheckResult(
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
    """Return the path of a check's records."""
    folder = target.replace("/", "_").replace(":", "_")
    return directory / _HISTORY_FOLDER / folder / f"{name}.jsonl"
