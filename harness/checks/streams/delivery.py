"""Streams: every byte, at its offset, to every reader, from the first to the last."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Scale, Stage
from harness.checks.common import KIB, MIB, WriterJob, WriterStep, open_gate, start_writer
from harness.drive.receiver import StreamPlan
from harness.drive.streamers import Reader, crowd
from harness.judge.promises import answered, at_most, equal, floor, holds, one_of
from harness.judge.streams import all_exact, fault_of, identical, most_at_once
from harness.record.history import History
from harness.record.verdict import Finding, UnsupportedError

PYTHON: Final = frozenset({Need.PYTHON})
WITH_OFFSETS: Final = frozenset({Need.PYTHON, Need.OFFSETS})

# Bursts between silences, single bytes, writes of all sizes.
BURSTS: Final[tuple[WriterStep, ...]] = (
    {"bytes": 256 * KIB, "write": 64 * KIB, "pause_ms": 20, "repeat": 4},
    {"bytes": 17, "write": 1, "repeat": 3},
    {"bytes": 300_001, "write": 300_001, "pause_ms": 50},
    {"bytes": MIB, "write": MIB},
)


def _read_by(stage: Stage, counts: tuple[int, ...], steps: tuple[WriterStep, ...]) -> None:
    """Let each number of readers follow a gated writer of its own."""
    stage.fact("counts", list(counts))
    files = stage.target.identities.files("user")
    with stage.client() as client:
        for count in counts:
            writer = start_writer(stage, client, steps, gated=True)
            stage.fact(f"total {count}", writer.total_bytes)
            readers = [
                Reader(f"{count} readers: {number}", writer.job_id, writer.seed)
                for number in range(count)
            ]
            with crowd(stage.server.address, files, readers, stage.recorder) as running:
                stage.fact(f"joined {count}", running.wait_joined(stage.join_timeout_s))
                open_gate(client, writer)
                running.require_done(180)


def _judge_read_by(history: History) -> Iterator[Finding]:
    counts = history.fact("counts")
    for count in map(int, counts if isinstance(counts, list) else []):
        streams = history.streams(f"{count} readers: ")
        total = int(history.number(f"total {count}"))
        refused = sum(stream.code == "RESOURCE_EXHAUSTED" for stream in streams)
        promise = f"each of {count} concurrent readers of one job gets every byte"
        yield all_exact(promise, streams, total)
        yield identical(f"all {count} readers get the same bytes", streams)
        if not refused:
            yield floor("readers at one moment", most_at_once(streams), count)


def run_many(stage: Stage) -> None:
    """1, 10 and 100 readers of a bursty job."""
    _read_by(stage, stage.pick(full=(1, 10, 100), small=(1, 10, 30)), BURSTS)


def run_thousand(stage: Stage) -> None:
    """1000 readers of one job."""
    if stage.scale is Scale.SMALL:
        raise UnsupportedError("the processor for 1000 readers: an emulated one is not asked")
    steps: tuple[WriterStep, ...] = ({"bytes": 256 * KIB, "pause_ms": 100, "repeat": 4},)
    _read_by(stage, (1000,), steps)


def run_late_joiner(stage: Stage) -> None:
    """A reader that joins after the first output and before the rest."""
    with stage.client() as client:
        writer = start_writer(stage, client, BURSTS, gated=True)
        stage.fact("total", writer.total_bytes)
        plan = StreamPlan(pattern=writer.pattern)
        with ThreadPoolExecutor(2) as pool:
            receivers = [
                client.receiver(writer.job_id, plan, label=label) for label in ("early", "late")
            ]
            first = pool.submit(receivers[0].run)
            receivers[0].first_byte.wait(stage.join_timeout_s)
            second = pool.submit(receivers[1].run)
            receivers[1].first_byte.wait(stage.join_timeout_s)
            open_gate(client, writer)
            first.result()
            second.result()


def judge_late_joiner(history: History) -> Iterator[Finding]:
    """Both have everything, and the late one had its beginning before the rest was written."""
    total = int(history.number("total"))
    late = history.stream("late")
    yield equal("a late joiner starts with the first byte that was logged", late.start_offset, 0)
    yield all_exact("early and late reader get every byte once", history.streams(), total)
    gate = history.call("open the gate")
    first_byte_s = late.first_byte_s if late.first_byte_s is not None else late.ended_s
    yield at_most(
        "what was logged comes at once, not with the next output (seconds after the gate opened)",
        first_byte_s - gate.started_s, 0,
    )  # fmt: skip


def run_after_end(stage: Stage) -> None:
    """A reader that comes when the job has ended, twice."""
    with stage.client() as client:
        writer = start_writer(stage, client, BURSTS)
        stage.fact("total", writer.total_bytes)
        plan = StreamPlan(pattern=writer.pattern)
        client.stream(writer.job_id, plan, label="live")
        client.must_query(writer.job_id, label="ended")
        for number in range(2):
            client.stream(writer.job_id, plan, label=f"replay {number}")


def judge_after_end(history: History) -> Iterator[Finding]:
    """The replay is what was live."""
    total = int(history.number("total"))
    status = history.call("ended").response.get("status")
    yield equal("the job has ended when its stream has", status, "exited")
    yield all_exact("a stream of an ended job replays all of it", history.streams(), total)


def run_resume(stage: Stage) -> None:
    """Cut at some offsets, go on from there; then at the end, and beyond it."""
    with stage.client() as client:
        writer = start_writer(stage, client, BURSTS)
        total = writer.total_bytes
        client.stream(writer.job_id, label="whole")
        stage.fact("total", total)
        offsets = [1, 4096, 65_537, total - 1, stage.random.randrange(total), total]
        for offset in offsets:
            plan = StreamPlan(pattern=writer.pattern, from_offset=offset)
            client.stream(writer.job_id, plan, label=f"from {offset}")
        beyond = StreamPlan(from_offset=total + 1)
        client.stream(writer.job_id, beyond, label="beyond")


def judge_resume(history: History) -> Iterator[Finding]:
    """Each starts where it was asked to, and has the rest."""
    total = int(history.number("total"))
    streams = history.streams("from ")
    starts = {int(stream.label.split()[1]): stream.start_offset for stream in streams}
    yield equal("a stream starts at the offset asked for", list(starts.values()), list(starts))
    yield all_exact("a resumed stream has the rest, and nothing else", streams, total, None)
    yield equal(
        "an offset beyond the end is refused", history.stream("beyond").code, "OUT_OF_RANGE"
    )


LINES: Final = "".join(f"line {number}\\n" for number in range(1, 6))


def run_tails(stage: Stage) -> None:
    """Tails of a job that goes on, without following it."""
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", f"printf '{LINES}'; exec sleep 100"])
        client.stream(job_id, StreamPlan(stop_after_bytes=35), label="written")
        for label, plan in {
            "all": StreamPlan(no_follow=True, keep_bytes=100),
            "2 lines": StreamPlan(tail_lines=2, no_follow=True, keep_bytes=100),
            "4 bytes": StreamPlan(tail_bytes=4, no_follow=True, keep_bytes=100),
            "0 lines": StreamPlan(tail_lines=0, no_follow=True, keep_bytes=100),
            "9 lines": StreamPlan(tail_lines=9, no_follow=True, keep_bytes=100),
        }.items():
            client.stream(job_id, plan, label=label)
        client.stop(job_id)


def judge_tails(history: History) -> Iterator[Finding]:
    """Exactly the last ones."""
    whole = LINES.replace("\\n", "\n")
    wanted = {
        "all": whole,
        "2 lines": whole[-14:],
        "4 bytes": "e 5\n",
        "0 lines": "",
        "9 lines": whole,
    }
    for label, text in wanted.items():
        stream = history.stream(label)
        yield equal(f"a stream of {label} without following has just that", stream.text, text)
        yield equal(f"a stream of {label} ends although the job goes on", stream.code, "OK")


def run_end(stage: Stage) -> None:
    """Short jobs, each asked for its status the moment its stream has ended."""
    count = stage.pick(full=100, small=15)
    with stage.client() as client, ThreadPoolExecutor(4) as pool:

        def one(number: int) -> None:
            job_id = client.must_start("sh", ["-c", f"echo {number}; exit 3"])
            client.stream(job_id, StreamPlan(keep_bytes=100), label=f"job {number}")
            client.query(job_id, label=f"after {number}")

        list(pool.map(one, range(count)))


def judge_end(history: History) -> Iterator[Finding]:
    """The end of a stream is the end of its job."""
    streams = history.streams("job ")
    yield floor("short jobs", len(streams), 10)
    faults = [
        fault for each in streams if (fault := fault_of(each, len(each.label.split()[1]) + 1))
    ]
    yield equal("a stream has all and ends when its job has ended", faults[:3], [])
    late = [
        f"{call.label}: {call.response.get('status')}"
        for call in history.calls("after ")
        if (call.response.get("status"), call.response.get("exit_code")) != ("exited", 3)
    ]
    yield equal("the status is final when the stream has ended", late[:3], [])


WRITES: Final[dict[str, tuple[WriterStep, ...]]] = {
    "single bytes": ({"bytes": 3000, "write": 1},),
    "10 MB without a newline": ({"bytes": 10_000_000, "write": 65_536},),
    "writes of 1 MiB": ({"bytes": MIB, "write": MIB, "repeat": 6},),
    "bursts after silence": ({"bytes": 100_000, "pause_ms": 300, "repeat": 4},),
    "nothing at all": (),
}


def run_writes(stage: Stage) -> None:
    """Writers of every manner."""
    with stage.client() as client, ThreadPoolExecutor(len(WRITES)) as pool:

        def one(name: str) -> None:
            writer = start_writer(stage, client, WRITES[name])
            plan = StreamPlan(pattern=writer.pattern)
            client.stream(writer.job_id, plan, label=name)

        list(pool.map(one, WRITES))


def judge_writes(history: History) -> Iterator[Finding]:
    """Nothing is lost, however it was written."""
    for name, steps in WRITES.items():
        total = sum(int(step["bytes"]) * int(step.get("repeat", 1)) for step in steps)
        yield all_exact(f"output as {name} arrives exactly", [history.stream(name)], total)


def run_two_jobs(stage: Stage) -> None:
    """Four jobs at once, each with its own bytes."""
    with stage.client() as client, ThreadPoolExecutor(8) as pool:
        writers = [start_writer(stage, client, BURSTS) for _ in range(4)]
        stage.fact("total", writers[0].total_bytes)

        def one(numbered: tuple[int, WriterJob]) -> None:
            number, writer = numbered
            plan = StreamPlan(pattern=writer.pattern)
            client.stream(writer.job_id, plan, label=f"reader {number}")

        list(pool.map(one, enumerate(writers * 2)))


def judge_two_jobs(history: History) -> Iterator[Finding]:
    """No byte of one in the other."""
    total = int(history.number("total"))
    yield all_exact("jobs' outputs never mix", history.streams("reader "), total)


ORDER_LINES: Final = 400


def run_order(stage: Stage) -> None:
    """Output and errors in turn."""
    script = f"i=0; while [ $i -lt {ORDER_LINES} ]; do i=$((i+1)); echo o$i; echo e$i >&2; done"
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", script])
        client.output(job_id, label="turns")


def judge_order(history: History) -> Iterator[Finding]:
    """In the order written."""
    wanted = "".join(f"o{number}\ne{number}\n" for number in range(1, ORDER_LINES + 1))
    yield equal("output and errors keep the order of writing", history.stream("turns").text, wanted)


# A substitution ends when the child in it has said its first word and given up the pipe of it.
SURVIVOR: Final = "echo before; exec 3>&1; : $({} sh -c 'echo child >&3; exec >&3; {}' & ); exit 4"
SURVIVORS: Final = {
    "child": SURVIVOR.format("", "sleep 1; echo after"),
    # Beyond the 2 s that our server, without cgroups, listens to one that left the process group.
    "escaped child": SURVIVOR.format("setsid", "sleep 1; echo soon; sleep 4; echo late"),
}


def run_survivor(stage: Stage) -> None:
    """Children that go on after the main process, in its group and in a session of their own."""
    stage.fact("cgroups", stage.target_has(Need.CGROUPS))
    stage.fact("added fields", stage.target_has(Need.OFFSETS))
    with stage.client() as client:
        for label, script in SURVIVORS.items():
            job_id = client.must_start("sh", ["-c", script])
            client.stream(job_id, StreamPlan(keep_bytes=100), label=label)
            client.query(job_id, label=label)


def judge_survivor(history: History) -> Iterator[Finding]:
    """What all had written by the end is kept; a child that is killed then says no more.

    The rule is DESIGN's, "The rule for survivors". Of a child that left its process group the API's
    original has none, so of other servers just the first part is held.
    """
    kept = "before\nchild\n"
    alive = () if history.fact("cgroups") else (kept + "soon\n",)
    if not history.fact("added fields"):
        alive = (*alive, kept + "soon\nlate\n")
    for label, allowed in (("child", (kept,)), ("escaped child", (kept, *alive))):
        stream = history.stream(label)
        yield equal(f"a stream ends although a {label} of the job goes on", stream.code, "OK")
        promise = f"what job and {label} wrote before the job's end is kept, and no more"
        yield one_of(promise, stream.text, allowed)
        call = history.call(label)
        yield answered("the job can be queried", call)
        got = [call.response.get("status"), call.response.get("exit_code")]
        yield equal(f"the end of a job with a {label} is its main process's", got, ["exited", 4])


LIVE_LINES: Final = 4
LIVE_PAUSE_S: Final = 1.5


def run_live(stage: Stage) -> None:
    """A line, a silence, a line, and so on."""
    step: WriterStep = {"bytes": 100, "pause_ms": int(LIVE_PAUSE_S * 1000), "repeat": LIVE_LINES}
    with stage.client() as client:
        writer = start_writer(stage, client, [step])
        plan = StreamPlan(pattern=writer.pattern)
        client.stream(writer.job_id, plan, label="live")


def judge_live(history: History) -> Iterator[Finding]:
    """Each line comes in its own silence, none waits for the next or for the end."""
    stream = history.stream("live")
    yield all_exact("every line arrives", [stream], 100 * LIVE_LINES)
    lags = [
        at_s - stream.timeline[0][0] - LIVE_PAUSE_S * (size // 100 - 1)
        for at_s, size in stream.timeline[:-1]
    ]
    yield holds(
        "a line reaches a waiting reader while the job is silent again (seconds behind the first)",
        kept=len(lags) == LIVE_LINES and max(lags) < LIVE_PAUSE_S,
        got=[round(lag, 2) for lag in lags],
        want=f"{LIVE_LINES} lines, each less than {LIVE_PAUSE_S} s behind",
        tolerance="one silence: less would time the machine, not the server",
    )


def run_deadline(stage: Stage) -> None:
    """A deadline on a silent job's stream."""
    with stage.client() as client:
        job_id = client.must_start("sleep", ["100"])
        plan = StreamPlan(timeout_s=2.0, may_time_out=True)
        client.stream(job_id, plan, label="deadline")
        client.query(job_id, label="after")
        client.stop(job_id)


def judge_deadline(history: History) -> Iterator[Finding]:
    """It ends, and in time."""
    stream = history.stream("deadline")
    yield equal("a follow ends at its deadline", stream.code, "DEADLINE_EXCEEDED")
    why = "the rest of a call on a busy machine"
    yield at_most("seconds to a deadline of 2 s", stream.ended_s - stream.started_s, 6.0, why)
    yield answered("the server answers after it", history.call("after"))


CHECKS: Final = (
    Check(
        "streams.many",
        "1, 10 and 100 concurrent readers of a bursty binary job each get every byte, in order.",
        run_many, _judge_read_by, PYTHON, ("63", "R-STREAM-2"), 240, alone=True,
    ),
    Check(
        "streams.thousand",
        "1000 concurrent readers of one job each get every byte.",
        run_thousand, _judge_read_by, PYTHON, ("63", "R-STREAM-2"), 300, alone=True,
    ),
    Check(
        "streams.late-joiner",
        "A reader that joins late starts with everything logged so far, at once, and follows live.",
        run_late_joiner, judge_late_joiner, PYTHON, ("64", "R-STREAM-1"),
    ),
    Check(
        "streams.after-end",
        "A stream of a job that has ended replays all of its output.",
        run_after_end, judge_after_end, PYTHON, ("65", "R-STREAM-1"),
    ),
    Check(
        "streams.resume",
        "A stream can be taken up at any offset; one beyond the end is refused.",
        run_resume, judge_resume, WITH_OFFSETS, ("66", "R-STREAM-10"),
    ),
    Check(
        "streams.tails",
        "A stream can start with the last lines or bytes, and end without following.",
        run_tails, judge_tails, frozenset({Need.OFFSETS}), ("R-STREAM-10",),
    ),
    Check(
        "streams.end",
        "A stream ends when its job has ended, and the job's status is final by then.",
        run_end, judge_end, frozenset(), ("72", "R-STREAM-1"),
    ),
    Check(
        "streams.writes",
        "Single bytes, megabytes without a newline and bursts after silence all arrive exactly.",
        run_writes, judge_writes, PYTHON, ("73", "R-JOB-5"), 120,
    ),
    Check(
        "streams.two-jobs",
        "The outputs of jobs that run at the same time never mix.",
        run_two_jobs, judge_two_jobs, PYTHON, ("75",), 120,
    ),
    Check(
        "streams.order",
        "Output and errors of a job keep the order in which they were written.",
        run_order, judge_order, frozenset(), ("76", "R-JOB-5"),
    ),
    Check(
        "streams.survivor",
        "A job ends with its main process: what all wrote by then is kept, children are cut off.",
        run_survivor, judge_survivor, frozenset(), ("77", "33"),
    ),
    Check(
        "streams.live",
        "Output reaches a waiting reader while the job is silent again: nothing waits for more.",
        run_live, judge_live, PYTHON, ("R-STREAM-1", "R-STREAM-6"), alone=True,
    ),
    Check(
        "streams.deadline",
        "A client's deadline ends a follow of a silent job in time.",
        run_deadline, judge_deadline, frozenset(), ("74", "R-STREAM-11"),
    ),
)  # fmt: skip
