"""Values of settings that make no sense: refused by name at the start, or a server that works."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.drive.client import Client
from harness.judge.promises import floor, holds
from harness.record.history import History, Observation
from harness.record.verdict import BrokenError, Finding, UnmetError, UnsupportedError
from harness.targets.target import OUR_FLAGS, Variant

# By setting, see `Variant`: beyond what a stop may request or a clock can hold, no number, a
# fraction of a byte, more threads than a machine has.
VALUES: Final = (
    ("stop_grace_s", "7200"), ("stop_grace_s", "-1"), ("stop_grace_s", "nan"),
    ("retention_bytes", "1.5e6"), ("retention_bytes", "inf"),
    ("max_streams", "1000000000000"), ("max_streams", "0"),
    ("keepalive_s", "3600000"),
)  # fmt: skip
STARTS_AT_ONCE: Final = 2
_OUTPUT_CHARACTERS: Final = 600


@dataclass(frozen=True, slots=True)
class OddSetting(Observation):
    """What became of a server with a value.

    Attributes:
        setting: of `Variant`.
        value: as it was given.
        started: whether it started.
        fault: of a server that started: what did not work; empty: it worked.
        output: of a server that did not start: the end of what it wrote.
    """

    setting: str
    value: str
    started: bool
    fault: str = ""
    output: str = ""


def _start(stage: Stage, setting: str, value: str) -> OddSetting:
    started = False
    try:
        with (
            # The value is a text on the server's command line, of whatever type it should be.
            stage.fresh_server(Variant(**{setting: value})) as server,  # type: ignore[arg-type]
            stage.client(server=server) as client,
        ):
            started = True
            return OddSetting(setting, value, started, fault=_fault_of(client))
    except BrokenError as error:
        if started:
            raise
        return OddSetting(setting, value, started, output=str(error)[-_OUTPUT_CHARACTERS:])


def _fault_of(client: Client) -> str:
    """Return what does not work of a server: a job, its output, a stop."""
    try:
        client.output(client.must_start("echo", ["it works"]))
        client.must_stop(client.must_start("sleep", ["300"]))
    except UnmetError as error:
        return str(error)
    return ""


def run_settings(stage: Stage) -> None:
    """Start a server with each value of a setting that it has; use those that start.

    Raises:
        UnsupportedError: it has none of the settings.
    """
    chosen = [(name, value) for name, value in VALUES if name in stage.target.flags]
    if not chosen:
        names = ", ".join(dict.fromkeys(name for name, _ in VALUES))
        raise UnsupportedError(f"a flag for any of {names} (--launch-flag)")
    with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
        for seen in pool.map(lambda each: _start(stage, *each), chosen):
            stage.record(seen)


def judge_settings(history: History) -> Iterator[Finding]:
    """Each is refused by name, or the server works."""
    seen = history.all(OddSetting)
    yield floor("values of settings", len(seen), 1)
    for each in seen:
        what = f"{OUR_FLAGS[each.setting].split()[0]} {each.value}"
        if each.started:
            promise = f"a server that starts with {what} works"
            yield holds(promise, kept=not each.fault, got=each.fault, want="jobs, output, stops")
        else:
            last = each.output.strip().rpartition("\n")[2]
            promise = f"a server that does not start with {what} names the value"
            yield holds(promise, kept=each.value in last, got=last, want=f"... {each.value} ...")


SETTINGS: Final = Check(
    "lifecycle.settings",
    "A value that makes no sense for a setting is refused by name at the start.",
    run_settings,
    judge_settings,
    needs=frozenset({Need.LAUNCH, Need.NATIVE}),
    cites=("98",),
)

CHECKS: Final = (SETTINGS,)
