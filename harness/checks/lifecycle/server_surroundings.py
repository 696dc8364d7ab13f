"""A server in odd surroundings: another locale, and a standard error that is never read."""

import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Unpack

from harness.checks.check import Check, Need, Stage
from harness.drive.client import Client, StartOptions
from harness.judge.promises import answered, assumed, at_most_s, equal, floor
from harness.record.history import Call, History, Observation, Outcome
from harness.record.verdict import BrokenError, Finding
from harness.targets.target import Variant

# -- locales --------------------------------------------------------------------------------------

LATIN: Final = "Grüße"  # in ISO-8859-1, as other bytes
TEXT: Final = f"{LATIN}, 10 €, 日本, 🙂"
# Python would use UTF-8 in the locale C by itself.
PLAIN_PYTHON: Final = ("PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0")
ISO_LOCALE: Final = "de_DE.ISO-8859-1"
LOCALES: Final = ("C", ISO_LOCALE)


@dataclass(frozen=True, slots=True)
class InLocale(Observation):
    """What a server in a locale passed to jobs, and reported of them.

    Attributes:
        locale: in which it was launched.
        texts: what jobs printed, or why they were not started, by what they printed: an argument,
            a variable or their directory (the last two only if the server can set them).
        listed: the argument as the list has it; empty: not listed.
    """

    locale: str
    texts: Mapping[str, str]
    listed: str


def run_locale(stage: Stage) -> None:
    """Run jobs with arguments, variables and directories that are not ASCII, in two locales."""
    host = stage.host
    base = host.run("mktemp -d -t jobworker-locale-XXXXXX").stdout.strip()
    if not base:
        raise BrokenError("the target's host makes no temporary directory")
    directory = f"{base}/{TEXT}"
    make = (
        f"mkdir -p '{directory}'; "
        f"localedef -i de_DE -f ISO-8859-1 {base}/{ISO_LOCALE} >{base}/log 2>&1; "
        f"test -d {base}/{ISO_LOCALE} && echo made"
    )
    try:
        made = host.run(make).stdout == "made\n"
        for locale in LOCALES if made else LOCALES[:1]:
            wrapper = ("env", f"LOCPATH={base}", f"LC_ALL={locale}", *PLAIN_PYTHON)
            with stage.fresh_server(wrapper=wrapper) as server, stage.client(server=server) as own:
                stage.record(_in_locale(stage, own, locale, directory))
    finally:
        host.run(f"rm -r {base}")


def _in_locale(stage: Stage, client: Client, locale: str, directory: str) -> InLocale:
    texts = {
        "argument": _printed(client, "printf", ["%s", TEXT]),
        "Latin argument": _printed(client, "printf", ["%s", LATIN]),
    }
    if stage.target_has(Need.JOB_ENVIRONMENT):
        texts["variable"] = _printed(client, "printenv", ["TEXT"], environment={"TEXT": TEXT})
        at = _printed(client, "pwd", ["-P"], working_directory=directory)
        texts["directory"] = at.rpartition("/")[2]
    listed = ""
    if stage.target_has(Need.LISTING) and (reply := client.list_jobs(label="list")).ok:
        arguments = [job.command_args for job in reply.message.jobs if job.command_args]
        listed = arguments[0][-1] if arguments else ""
    return InLocale(locale, {what: text.rstrip("\n") for what, text in texts.items()}, listed)


def _printed(
    client: Client, command: str, arguments: list[str], **options: Unpack[StartOptions]
) -> str:
    """Return what a job printed, or why it was not started."""
    reply = client.start(command, arguments, **options)
    if not reply.ok:
        return f"{reply.call.code}: {reply.call.detail}"
    return client.output(reply.message.job_id).encode("latin-1").decode(errors="replace")


def judge_locale(history: History) -> Iterator[Finding]:
    """Everything is passed on as UTF-8."""
    seen = history.all(InLocale)
    yield floor("locales", len(seen), 1)
    for server in seen:
        for what, text in server.texts.items():
            want = LATIN if what.startswith("Latin") else TEXT
            yield equal(f"a job's {what} is passed on as UTF-8 in {server.locale}", text, want)
        if server.listed:
            promise = f"and the list has the argument in {server.locale}"
            yield equal(promise, server.listed, TEXT)


LOCALE: Final = Check(
    "lifecycle.locale",
    "Arguments, variables and directories are UTF-8, whatever the server's locale is.",
    run_locale,
    judge_locale,
    needs=frozenset({Need.LAUNCH, Need.HOST, Need.NATIVE}),
    cites=("109",),
    ours=True,
)

# -- standard error -------------------------------------------------------------------------------

NEVER_READ: Final = 9
# Opens a FIFO for reading and writing: it is never read, and writing to it never fails.
UNREAD_STDERR: Final = (
    "fifo=$(mktemp -u /tmp/jobworker-stderr-XXXXXX) && mkfifo -m 600 $fifo && "
    f'exec {NEVER_READ}<>$fifo 2>&{NEVER_READ} && rm $fifo && exec "$@"'
)
# More lines than a pipe can hold (1 MiB), each as long as the name that is not found.
CALLS: Final = 1600
CALLS_AT_ONCE: Final = 4
LONG_NAME: Final = "x" * 1000
ANSWERED_S: Final = 10.0
EXIT_BOUND_S: Final = 15.0  # without a job that runs


@dataclass(frozen=True, slots=True)
class UnreadStderr(Observation):
    """A server whose standard error is full and never read.

    Attributes:
        is_full: whether it was, before the calls.
        calls: how many calls were made that the server logs.
        unanswered: how many of them timed out.
        slowest_s: how long the slowest of them took.
        exit_code: after SIGTERM; None: it still ran after the time bound.
        exit_s: how long that took.
    """

    is_full: bool
    calls: int
    unanswered: int
    slowest_s: float
    exit_code: int | None
    exit_s: float


def run_unread_stderr(stage: Stage) -> None:
    """Fill a server's standard error, make calls that it logs, and end it."""
    variant = Variant(log_level="info") if "log_level" in stage.target.flags else Variant()
    with (
        stage.fresh_server(variant, wrapper=("sh", "-c", UNREAD_STDERR, "sh")) as server,
        stage.client(server=server) as client,
    ):
        fill = (
            f"dd if=/dev/zero of=/proc/{server.pid}/fd/{NEVER_READ} bs=4096 oflag=nonblock "
            "2>&1 | grep -q 'temporarily unavailable' && echo full"
        )
        is_full = stage.host.run(fill).stdout == "full\n"
        calls: list[Call] = []

        def call_often(_: int) -> None:
            while len(calls) < CALLS and all(_is_answered(call) for call in calls[-1:]):
                calls.append(client.start(LONG_NAME, label="logged").call)

        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            list(pool.map(call_often, range(CALLS_AT_ONCE)))
        client.start("true", label="start")
        signaled_s = stage.recorder.now_s()
        server.signal(signal.SIGTERM)
        exit_code = server.wait_exit(EXIT_BOUND_S)
        exit_s = stage.recorder.now_s() - signaled_s
        unanswered = sum(not _is_answered(call) for call in calls)
        slowest_s = max(call.ended_s - call.started_s for call in calls)
        stage.record(UnreadStderr(is_full, len(calls), unanswered, slowest_s, exit_code, exit_s))
        if exit_code is None:
            server.signal(signal.SIGKILL)


def _is_answered(call: Call) -> bool:
    return call.outcome is not Outcome.UNKNOWN


def judge_unread_stderr(history: History) -> Iterator[Finding]:
    """Every call is answered, and the server ends in time."""
    seen = history.the(UnreadStderr)
    yield assumed("the server's standard error is full", true=seen.is_full, got=seen.is_full)
    yield equal("calls that the server logs and does not answer", seen.unanswered, 0)
    if not seen.unanswered:
        yield floor("calls that the server logs", seen.calls, CALLS)
    yield at_most_s("seconds of the slowest of them", seen.slowest_s, ANSWERED_S, "a busy machine")
    yield answered("a job starts", history.call("start"))
    yield equal("the server exits with 0 when it gets SIGTERM", seen.exit_code, 0)
    yield at_most_s("seconds until it has", seen.exit_s, EXIT_BOUND_S)


UNREAD: Final = Check(
    "lifecycle.unread-stderr",
    "A standard error that is never read delays neither calls nor the server's end.",
    run_unread_stderr,
    judge_unread_stderr,
    needs=frozenset({Need.LAUNCH, Need.HOST, Need.NATIVE}),
    cites=("110",),
    ours=True,
)

CHECKS: Final = (LOCALE, UNREAD)
