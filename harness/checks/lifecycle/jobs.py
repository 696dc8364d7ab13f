"""Jobs from their start to their end: what they are given, how they end, what is told of it."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.checks.common import UNKNOWN_ID, server_count
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import came_true
from harness.judge.promises import (
    answered,
    assumed,
    at_most,
    equal,
    floor,
    holds,
    one_of,
    unseen,
)
from harness.judge.streams import identical
from harness.record.history import Call, History, Json
from harness.record.verdict import Finding

PARALLEL: Final = 4


def end_of(call: Call) -> tuple[object, object, object]:
    """Return status, exit code and signal that a query told."""
    response = call.response
    return response.get("status"), response.get("exit_code"), response.get("signal")


def _ends(stage: Stage, scripts: dict[str, str]) -> None:
    """Run a shell script each, wait for its end, and query it under its label."""
    with stage.client() as client, ThreadPoolExecutor(PARALLEL) as pool:

        def one(label: str) -> None:
            job_id = client.must_start("sh", ["-c", scripts[label]])
            client.output(job_id)
            client.query(job_id, label=label)

        list(pool.map(one, scripts))


# -- ends -----------------------------------------------------------------------------------------


def run_exit_codes(stage: Stage) -> None:
    """Every exit code there is."""
    some = (0, 1, 2, 126, 127, 128, 137, 143, 254, 255)
    codes = stage.pick(full=tuple(range(256)), small=some)
    _ends(stage, {f"exit {code}": f"exit {code}" for code in codes})


def judge_exit_codes(history: History) -> Iterator[Finding]:
    """Told exactly."""
    calls = history.calls("exit ")
    wrong = [
        f"{call.label}: {end_of(call)}"
        for call in calls
        if end_of(call) != ("exited", int(call.label.split()[1]), 0)
    ]
    yield assumed("every exit code was tried", true=len(calls) >= 10, got=len(calls))  # noqa: PLR2004
    yield equal(
        "an exit code is told exactly, as status exited and without a signal", wrong[:5], []
    )


# Those whose default is to end the process; the real-time ones stand for all of their kind.
_GENTLE: Final = {
    "SIGCHLD",
    "SIGCONT",
    "SIGURG",
    "SIGWINCH",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
}
DEADLY: Final = sorted(
    {int(each) for each in signal.Signals if each.name not in _GENTLE} | {34, 40, 64}
)


# Those that dump core by default and that any shell can send: SIGQUIT, ILL, ABRT, FPE, SEGV. The
# kernel tells of such an end by another code, CLD_DUMPED for CLD_KILLED; see waitid(2).
DUMPING: Final = (3, 4, 6, 8, 11)


def run_signals(stage: Stage) -> None:
    """Every signal that ends a process, without a core dump; then some with one."""
    numbers = stage.pick(full=DEADLY, small=[1, 3, 6, 9, 11, 15, 34])
    _ends(stage, {f"signal {number}": f"ulimit -c 0; kill -{number} $$" for number in numbers})
    stage.fact("signals", len(numbers))
    with stage.client() as client:
        scratch = client.output(client.must_start("mktemp", ["-d"])).strip()
        # A folder each, since the cores may have one name. No higher limit than the hard one: a
        # shell that is refused its ulimit would end by that.
        dump = "mkdir {0}/{1} && cd {0}/{1} && ulimit -c $(ulimit -H -c); kill -{1} $$"
        try:
            scripts = {f"dumping {each}": dump.format(scratch, each) for each in DUMPING}
            _ends(stage, scripts)
            look = f"cat /proc/sys/kernel/core_pattern; ls {scratch}/*/* 2>/dev/null | wc -l"
            told = client.output(client.must_start("sh", ["-c", look])).split("\n")
            stage.fact("cores", {"pattern": told[0], "written": int(told[1])})
        finally:
            client.output(client.must_start("rm", ["-rf", scratch]))


def judge_signals(history: History) -> Iterator[Finding]:
    """Told exactly."""
    plain, dumping = history.calls("signal "), history.calls("dumping ")
    yield floor("signals that were tried", len(plain), max(7, history.number("signals")))
    yield floor("signals that were tried with a core dump", len(dumping), len(DUMPING))
    promise = "the signal that ended a job is told exactly, as status signaled"
    yield equal(promise, _wrong_signals(plain)[:5], [])
    promise = "so is one that made it dump core"
    cores = history.fact("cores")
    cores = cores if isinstance(cores, dict) else {}
    # A pattern that is a pipe hands the cores to a program, which puts them who knows where.
    dumped = str(cores.get("pattern")).startswith("|") or cores.get("written") == len(DUMPING)
    wrong = _wrong_signals(dumping)
    yield equal(promise, wrong, []) if dumped or wrong else unseen(promise, "no core was written")


def _wrong_signals(calls: list[Call]) -> list[str]:
    return [
        f"{call.label}: {end_of(call)}"
        for call in calls
        if end_of(call) != ("signaled", 0, int(call.label.split()[1]))
    ]


# -- starts ---------------------------------------------------------------------------------------

REFUSED: Final = ("NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
CANNOT_RUN: Final = ("FAILED_PRECONDITION", "INVALID_ARGUMENT")
ARGUMENT: Final = ("INVALID_ARGUMENT",)
# What cannot be started: command, arguments, and the statuses that say so.
BAD_COMMANDS: Final[dict[str, tuple[str, list[str], tuple[str, ...]]]] = {
    "a missing program": ("/nonexistent/program", [], REFUSED),
    "a missing name": ("no-such-program-anywhere", [], REFUSED),
    "a directory": ("/tmp", [], CANNOT_RUN),  # noqa: S108 - a directory everywhere
    "a file that is not executable": ("/etc/passwd", [], CANNOT_RUN),
    "no command": ("", [], ARGUMENT),
    "a NUL in the command": ("ec\0ho", [], ARGUMENT),
    "a NUL in an argument": ("echo", ["a\0b"], ARGUMENT),
    "an argument of 131,072 bytes": ("true", ["x" * 131_072], ARGUMENT),
    "3 MB of arguments": ("true", ["x" * 100_000] * 30, ARGUMENT),
}
SCRIPT: Final = "a script without #!"
# What the refusal must say of the reason, in any case: the kernel's words, a shell's, or the errno.
REASONS: Final = {
    "a missing program": ("no such file", "not found", "errno 2"),
    "a missing name": ("no such file", "not found", "errno 2"),
    "a directory": ("directory", "permission denied", "errno 13", "errno 21"),
    "a file that is not executable": ("permission denied", "not executable", "errno 13"),
    SCRIPT: ("exec format", "errno 8"),
}
# Tried over and over, to see what is left behind: those that are quickly sent.
AGAIN: Final = [(name, words) for name, words, _ in BAD_COMMANDS.values() if not words[1:]] * 3
DESCRIPTORS_SLACK: Final = 4


def run_bad_commands(stage: Stage) -> None:
    """Starts that cannot be, some times over where the server's descriptors can be counted."""
    seen = stage.target_has(Need.LAUNCH) and stage.target_has(Need.HOST)
    with ExitStack() as stack:
        # Of its own: nobody else opens and closes anything there.
        server = stack.enter_context(stage.fresh_server()) if seen else stage.server
        client = stack.enter_context(stage.client(server=server))
        _refused_once(stage, client)
        if not seen:
            return

        def descriptors() -> int:
            client.output(client.must_start("true"))
            return server_count(stage, server, "fds")

        before = descriptors()
        for command, arguments in AGAIN:
            client.start(command, arguments, label="again")
        came_true(lambda: descriptors() <= before, stage.patience(2))
        stage.fact("descriptors", {"before": before, "after": descriptors()})


def _refused_once(stage: Stage, client: Client) -> None:
    """Try what cannot be, each by its label."""
    for label, (command, arguments, _) in BAD_COMMANDS.items():
        client.start(command, arguments, label=label)
    script = "printf 'echo hi' > /tmp/jw-$$; chmod +x /tmp/jw-$$; echo /tmp/jw-$$"
    path = client.output(client.must_start("sh", ["-c", script])).strip()
    client.start(path, label=SCRIPT)
    stage.fact("script", path)
    client.output(client.must_start("rm", ["-f", path]))
    if stage.target_has(Need.LISTING):
        message = client.require(client.list_jobs(), "an admin can list jobs")
        names = {command for command, _, _ in BAD_COMMANDS.values()} - {"true", "echo"}
        left = sorted({job.command_name for job in message.jobs} & names)
        stage.fact("refused jobs that are listed", left)
    client.must_start("true", label="a good command after all these")


def judge_bad_commands(history: History) -> Iterator[Finding]:
    """Refused with a status that says whose fault it is, and what it was."""
    for label, (_, _, codes) in BAD_COMMANDS.items():
        yield answered(f"a start of {label} is refused", history.call(label), *codes)
    yield answered(f"a start of {SCRIPT} is refused", history.call(SCRIPT), *CANNOT_RUN)
    for label, reasons in REASONS.items():
        path = BAD_COMMANDS[label][0] if label in BAD_COMMANDS else str(history.fact("script"))
        told = history.call(label).detail
        promise = f"the refusal of {label} names it and the reason"
        kept = path in told and any(reason in told.lower() for reason in reasons)
        yield holds(promise, kept=kept, got=told, want=f"{path} and {' or '.join(reasons)}")
    for fact in history.facts("refused jobs that are listed"):
        yield equal("a refused start leaves no job", fact.value, [])
    good = history.call("a good command after all these")
    yield answered("the server goes on", good)
    promise = "descriptors of the server after refused starts"
    counts = [fact.value for fact in history.facts("descriptors") if isinstance(fact.value, dict)]
    if not counts:
        yield unseen(promise, PROCESS_UNSEEN)
    for count in counts:
        again = len(history.calls("again"))
        yield floor("refused starts", again, len(AGAIN))
        why = f"a job or two may be ending; a pipe left by each start would be {again} and more"
        after, before = int(str(count["after"])), int(str(count["before"]))
        yield at_most(promise, after, before + DESCRIPTORS_SLACK, why)


def run_ids(stage: Stage) -> None:
    """Ids of jobs, and ids of no job."""
    with stage.client() as client:
        ids = [client.must_start("true") for _ in range(20)]
        stage.fact("ids", ids)
        stage.fact("added fields", stage.target_has(Need.OFFSETS))
        for label, job_id in (("unknown", UNKNOWN_ID), ("malformed", "not-an-id"), ("empty", "")):
            client.query(job_id, label=f"query {label}")
            client.stop(job_id, label=f"stop {label}")
            client.stream(job_id, StreamPlan(timeout_s=10), label=f"stream {label}")


UUID4: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def judge_ids(history: History) -> Iterator[Finding]:
    """UUIDs of version 4, each once; others are refused."""
    ids = history.fact("ids")
    ids = ids if isinstance(ids, list) else []
    odd = [each for each in ids if not UUID4.fullmatch(str(each))]
    yield equal("a job's id is a UUID of version 4", odd, [])
    yield equal("no id is given twice", len(set(map(str, ids))), len(ids))
    # The original has one status for both; who has the added fields tells them apart.
    malformed = ARGUMENT if history.fact("added fields") else (*ARGUMENT, "NOT_FOUND")
    for call in history.calls():
        if call.label.endswith("unknown"):
            yield answered(f"{call.label} id: refused", call, "NOT_FOUND")
        elif call.label.endswith(("malformed", "empty")):
            yield answered(f"{call.label} id: refused", call, *malformed)
    yield equal(
        "a stream of an unknown id: refused", history.stream("stream unknown").code, "NOT_FOUND"
    )
    for label in ("malformed", "empty"):
        code = history.stream(f"stream {label}").code
        yield one_of(f"a stream of an id that is {label}: refused", code, malformed)


# -- children that stay ---------------------------------------------------------------------------

# Between a job's end and that of its stream: less than any wait that a server would have for its
# children, since the quickest of some counts; an emulated processor takes its time.
AT_ONCE_S: Final = 1.5
AT_ONCE_EMULATED_S: Final = 10.0
QUICK_TRIES: Final = 3
GONE_LOOKS: Final = 20  # ten a second


def run_background(stage: Stage) -> None:
    """A child in the background that holds the output open; some more, to see how soon it ends."""
    native = stage.target_has(Need.NATIVE)
    stage.fact("at once", AT_ONCE_S if native else AT_ONCE_EMULATED_S)
    with stage.client() as client:
        for number in range(QUICK_TRIES):
            job_id = client.must_start("sh", ["-c", "sleep 1000 & exit 3"])
            client.stream(job_id, label=f"quick {number}")
        script = "sleep 1000 & echo $!; exit 3"
        job_id = client.must_start("sh", ["-c", script])
        stream = client.stream(job_id, StreamPlan(keep_bytes=100), label="stream")
        client.query(job_id, label="after")
        pid = int(stream.text) if stream.text.strip().isdigit() else 0
        # A zombie is gone: its parent may be one that never reaps. What dies closes its output some
        # way before that.
        look = (
            f"for turn in $(seq {GONE_LOOKS}); do "
            f"state=$(cut -d ' ' -f 3 /proc/{pid}/stat 2>/dev/null || echo gone); "
            'case $state in Z|gone) break; esac; sleep 0.1; done; echo "$state"'
        )
        state = client.output(client.must_start("sh", ["-c", look])).strip()
        stage.fact("child", "gone" if state == "Z" else state)


def judge_background(history: History) -> Iterator[Finding]:
    """The end is seen at once, and the child is gone."""
    stream = history.stream("stream")
    yield equal("the stream ends although a child holds the output open", stream.code, "OK")
    quick = [each.ended_s - each.started_s for each in history.streams("quick ")]
    yield floor("jobs whose end was timed", len(quick), QUICK_TRIES)
    yield at_most(
        "seconds from such a job's end to its stream's", min(quick, default=0.0),
        history.number("at once"), f"the quickest of {QUICK_TRIES}, on a machine that may be busy",
    )  # fmt: skip
    yield equal("the end is the main process's", end_of(history.call("after"))[:2], ("exited", 3))
    told = stream.text.strip().isdigit()
    yield holds("the child's number arrived", kept=told, got=stream.text, want="a number")
    yield equal("the child of an ended job is gone", history.fact("child"), "gone")


# -- many -----------------------------------------------------------------------------------------

ASKED_STEP: Final = 10  # of the silent jobs, one in so many is queried
LOUD_BYTES: Final = 65_000  # more than half a pipe: lost when a job is reaped before it is drained


def run_short_jobs(stage: Stage) -> None:
    """Many short jobs, some with output, and what the server keeps of them."""
    program = f"head -c {LOUD_BYTES} /dev/zero | tr '\\0' x"
    loud, silent = stage.pick(full=(200, 10_000), small=(20, 150))
    with stage.client() as client, ThreadPoolExecutor(PARALLEL) as pool:

        def one(number: int) -> None:
            job_id = client.must_start("sh", ["-c", program])
            client.stream(job_id, label=f"loud {number}")

        list(pool.map(one, range(loud)))
        before = _counts(stage, client)
        jobs = list(pool.map(lambda _: client.must_start("true", label="silent"), range(silent)))
        stage.fact("counts", {"before": before, "after": _counts(stage, client)})
        asked = jobs[::ASKED_STEP]
        ended = sum(client.must_query(job_id).status == "exited" for job_id in asked)
        stage.fact("silent", [len(asked), ended])


def _counts(stage: Stage, client: Client) -> dict[str, Json] | None:
    """Count what the server holds, once the jobs so far have ended."""
    if stage.server.pid is None or not stage.target_has(Need.HOST):
        return None
    client.output(client.must_start("true"))  # jobs end in about the order of their starts
    counts: dict[str, Json] = {}
    for what in ("threads", "fds", "children"):
        counts[what] = server_count(stage, stage.server, what)
    return counts


# The server's own pool may still grow a little, and one or two jobs may be ending.
COUNT_SLACK: Final = 24


def judge_short_jobs(history: History) -> Iterator[Finding]:
    """No byte lost, nothing kept."""
    streams = history.streams("loud ")
    short = [
        f"{stream.label}: {stream.received_bytes}"
        for stream in streams
        if (stream.code, stream.received_bytes) != ("OK", LOUD_BYTES)
    ]
    yield holds(
        f"each of {len(streams)} short jobs' {LOUD_BYTES} bytes arrive",
        kept=bool(streams) and not short, got=short[:5] or len(streams), want="none is short",
    )  # fmt: skip
    yield identical("they are all the same", streams)
    silent = history.fact("silent")
    if isinstance(silent, list):
        yield equal("every short job has ended", silent[1], silent[0])
    counts = history.fact("counts")
    before, after = (
        (counts["before"], counts["after"]) if isinstance(counts, dict) else (None, None)
    )
    if isinstance(before, dict) and isinstance(after, dict):
        for what, count in after.items():
            limit = int(str(before[what])) + COUNT_SLACK
            promise = f"{what} of the server after thousands of jobs"
            yield at_most(promise, int(str(count)), limit, "flat but for what is just ending")
    else:
        promise = "the server's threads, descriptors and children after thousands of jobs"
        yield unseen(promise, PROCESS_UNSEEN)


CHECKS: Final = (
    Check(
        "lifecycle.exit-codes",
        "Every exit code, 0 to 255, is told exactly.",
        run_exit_codes, judge_exit_codes, frozenset(), ("31", "R-JOB-4"), 90,
    ),
    Check(
        "lifecycle.signals",
        "Every signal that ends a job is told exactly, core-dumping ones too.",
        run_signals, judge_signals, frozenset(), ("31", "R-JOB-4"),
    ),
    Check(
        "lifecycle.bad-commands",
        "What cannot be started is refused with a status and a reason, and leaves nothing behind.",
        run_bad_commands, judge_bad_commands, frozenset(), ("32", "48"),
    ),
    Check(
        "lifecycle.ids",
        "Ids are UUIDs of version 4; unknown and malformed ones are refused with their own status.",
        run_ids, judge_ids, frozenset(), ("40", "R-JOB-1"),
    ),
    Check(
        "lifecycle.background",
        "A job ends with its main process: a child that holds the output open is ended with it.",
        run_background, judge_background, frozenset(), ("33", "R-JOB-3"),
    ),
    Check(
        "lifecycle.short-jobs",
        "Ten thousand short jobs lose no byte and leave no zombie, descriptor or thread.",
        run_short_jobs, judge_short_jobs, frozenset(), ("41", "R-JOB-5"), 300, alone=True,
    ),
)  # fmt: skip
