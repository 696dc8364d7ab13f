"""Jobs from their start to their end: what they are given, how they end, what is told of it."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.checks.common import UNKNOWN_ID, server_count
from harness.client import Client
from harness.history import Call, History, Json
from harness.judge.promises import answered, assumed, at_most, equal, holds, one_of, unseen
from harness.judge.streams import identical
from harness.receiver import StreamPlan
from harness.verdict import Finding

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


def run_signals(stage: Stage) -> None:
    """Every signal that ends a process; core dumps are switched off, and told alike."""
    numbers = stage.pick(full=DEADLY, small=[1, 3, 6, 9, 11, 15, 34])
    _ends(stage, {f"signal {number}": f"ulimit -c 0; kill -{number} $$" for number in numbers})


def judge_signals(history: History) -> Iterator[Finding]:
    """Told exactly."""
    wrong = [
        f"{call.label}: {end_of(call)}"
        for call in history.calls("signal ")
        if end_of(call) != ("signaled", 0, int(call.label.split()[1]))
    ]
    promise = "the signal that ended a job is told exactly, as status signaled"
    yield equal(promise, wrong[:5], [])
    yield assumed("signals were tried", true=bool(history.calls("signal ")), got="none")


# -- starts ---------------------------------------------------------------------------------------

REFUSED: Final = ("NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
ARGUMENT: Final = ("INVALID_ARGUMENT",)
# What cannot be started: command, arguments, and the statuses that say so.
BAD_COMMANDS: Final[dict[str, tuple[str, list[str], tuple[str, ...]]]] = {
    "a missing program": ("/nonexistent/program", [], REFUSED),
    "a missing name": ("no-such-program-anywhere", [], REFUSED),
    "a directory": ("/tmp", [], REFUSED),  # noqa: S108 - a directory everywhere
    "a file that is not executable": ("/etc/passwd", [], REFUSED),
    "no command": ("", [], ARGUMENT),
    "a NUL in the command": ("ec\0ho", [], ARGUMENT),
    "a NUL in an argument": ("echo", ["a\0b"], ARGUMENT),
    "an argument of 131,072 bytes": ("true", ["x" * 131_072], ARGUMENT),
    "3 MB of arguments": ("true", ["x" * 100_000] * 30, ARGUMENT),
}


def run_bad_commands(stage: Stage) -> None:
    """Starts that cannot be."""
    with stage.client() as client:
        for label, (command, arguments, _) in BAD_COMMANDS.items():
            client.start(command, arguments, label=label)
        script = "printf 'echo hi' > /tmp/jw-$$; chmod +x /tmp/jw-$$; echo /tmp/jw-$$"
        path = client.output(client.must_start("sh", ["-c", script])).strip()
        client.start(path, label="a script without #!")
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
    # A server may run it with a shell, as execvp does; what it may not do is to fail unseen.
    script = history.call("a script without #!")
    yield answered("a script without #! is refused or run", script, "OK", *REFUSED)
    missing = history.call("a missing program")
    yield holds(
        "the refusal names the program", kept="/nonexistent/program" in missing.detail,
        got=missing.detail, want="... /nonexistent/program ...",
    )  # fmt: skip
    for fact in history.facts("refused jobs that are listed"):
        yield equal("a refused start leaves no job", fact.value, [])
    good = history.call("a good command after all these")
    yield answered("the server goes on", good)


LITERAL: Final = [
    "$HOME",
    "a b",
    "*",
    ";",
    "&& false",
    "`id`",
    "'",
    '"',
    "\\",
    "",
    "ü€",
    "-n",
    "\n",
]


def run_literal(stage: Stage) -> None:
    """Arguments that a shell would take apart."""
    with stage.client() as client:
        job_id = client.must_start("printf", ["[%s]\n", *LITERAL])
        client.output(job_id, label="printed")


def judge_literal(history: History) -> Iterator[Finding]:
    """As they were given."""
    wanted = "".join(f"[{each}]\n" for each in LITERAL).encode().decode("latin-1")
    yield equal("arguments arrive literally", history.stream("printed").text, wanted)


def run_ids(stage: Stage) -> None:
    """Ids of jobs, and ids of no job."""
    with stage.client() as client:
        ids = [client.must_start("true") for _ in range(20)]
        stage.fact("ids", ids)
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
    for call in history.calls():
        if call.label.endswith("unknown"):
            yield answered(f"{call.label} id: refused", call, "NOT_FOUND")
        elif call.label.endswith(("malformed", "empty")):
            yield answered(f"{call.label} id: refused", call, "INVALID_ARGUMENT", "NOT_FOUND")
    yield equal(
        "a stream of an unknown id: refused", history.stream("stream unknown").code, "NOT_FOUND"
    )
    code = history.stream("stream malformed").code
    yield one_of("a stream of a malformed id: refused", code, ("INVALID_ARGUMENT", "NOT_FOUND"))


# -- children that stay ---------------------------------------------------------------------------

AT_ONCE_S: Final = 10.0  # between a job's end and that of its stream, on a busy machine


def run_background(stage: Stage) -> None:
    """A child in the background that holds the output open."""
    with stage.client() as client:
        script = "sleep 1000 & echo $!; exit 3"
        job_id = client.must_start("sh", ["-c", script])
        stream = client.stream(job_id, StreamPlan(keep_bytes=100), label="stream")
        client.query(job_id, label="after")
        pid = int(stream.text) if stream.text.strip().isdigit() else 0
        # A zombie is gone: its parent may be one that never reaps.
        look = f"cut -d ' ' -f 3 /proc/{pid}/stat 2>/dev/null || echo gone"
        state = client.output(client.must_start("sh", ["-c", look])).strip()
        stage.fact("child", "gone" if state == "Z" else state)


def judge_background(history: History) -> Iterator[Finding]:
    """The end is seen at once, and the child is gone."""
    stream = history.stream("stream")
    yield equal("the stream ends although a child holds the output open", stream.code, "OK")
    yield at_most("seconds until the stream ends", stream.ended_s - stream.started_s, AT_ONCE_S)
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
        "lifecycle.literal",
        "Arguments reach the program as they were given; no shell is in between.",
        run_literal, judge_literal, frozenset(), ("48", "R-JOB-1"),
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
