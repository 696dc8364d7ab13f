"""Stops: of jobs that resist, by many at once, at the moment of their end, and of the server."""

import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.lifecycle.jobs import end_of
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import measured_window
from harness.judge.promises import (
    answered,
    assumed,
    at_least,
    at_most,
    equal,
    floor,
    holds,
    one_of,
)
from harness.record.history import History
from harness.record.verdict import Finding
from harness.targets.target import Variant

IGNORES_TERM: Final = "trap '' TERM; echo ready; while :; do sleep 0.2; done"
# The longest default grace that a user would call one; a server that says less is judged by it.
DEFAULT_GRACE_S: Final = 35.0
GRACE_S: Final = 1.0
KILL_SLACK_S: Final = 10.0  # a kill, its notice and the answer, on a busy machine


def _wait_first_byte(client: Client, job_id: str) -> None:
    """Wait until a job has said something: its traps are set then."""
    client.stream(job_id, StreamPlan(stop_after_bytes=1), label="ready")


def run_escalates(stage: Stage) -> None:
    """A job that ignores SIGTERM."""
    grace_s = GRACE_S if stage.target_has(Need.GRACE) else None
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", IGNORES_TERM])
        _wait_first_byte(client, job_id)
        client.stop(job_id, label="stop", grace_s=grace_s)
        client.query(job_id, label="after")
        stage.fact("grace", grace_s)


def judge_escalates(history: History) -> Iterator[Finding]:
    """Killed, after the grace and not before."""
    call = history.call("stop")
    yield answered("a job that ignores SIGTERM is stopped", call)
    yield equal("by SIGKILL", end_of(history.call("after")), ("signaled", 0, 9))
    took_s = call.ended_s - call.started_s
    grace_s = history.fact("grace")
    if isinstance(grace_s, float):
        yield at_least("seconds until then", took_s, grace_s, "the grace period asked for")
    else:
        grace_s = DEFAULT_GRACE_S
    yield at_most("seconds until then", took_s, grace_s + KILL_SLACK_S)


# It takes a moment: a job that is at once may get it said before a kill that gives it no grace.
LAST_WORDS: Final = (
    "trap 'sleep 0.3; echo last words; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
)


def run_last_words(stage: Stage) -> None:
    """A job that says something when it is told to end."""
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", LAST_WORDS])
        _wait_first_byte(client, job_id)
        client.stop(job_id, label="stop")
        client.stream(job_id, StreamPlan(keep_bytes=100), label="whole")
        client.query(job_id, label="after")


def judge_last_words(history: History) -> Iterator[Finding]:
    """It is heard, and its exit code is its own."""
    yield answered("the stop succeeds", history.call("stop"))
    text = history.stream("whole").text
    # Between them some shells say that their sleep was terminated.
    yield holds(
        "what a job says when it is told to end is kept",
        kept=text.startswith("ready\n") and text.endswith("last words\n"), got=text,
        want="ready ... last words",
    )  # fmt: skip
    yield equal("its end is its own", end_of(history.call("after")), ("exited", 7, 0))


def run_concurrent_stops(stage: Stage) -> None:
    """A hundred stops of one job at once; it counts the signals that it gets."""
    count = stage.pick(full=100, small=20)
    script = "n=0; trap 'n=$((n+1)); echo term $n' TERM; echo ready; while :; do sleep 0.1; done"
    grace_s = GRACE_S if stage.target_has(Need.GRACE) else None
    with stage.client() as client, ThreadPoolExecutor(count) as pool:
        job_id = client.must_start("sh", ["-c", script])
        _wait_first_byte(client, job_id)
        list(
            pool.map(
                lambda i: client.stop(job_id, label=f"stop {i}", grace_s=grace_s), range(count)
            )
        )
        client.stream(job_id, StreamPlan(keep_bytes=4096), label="whole")
        client.query(job_id, label="after")


def judge_concurrent_stops(history: History) -> Iterator[Finding]:
    """All succeed, and the job is told once."""
    codes = Counter(call.code for call in history.calls("stop "))
    yield equal("every one of many concurrent stops succeeds", list(codes), ["OK"])
    told = history.stream("whole").text.count("term")
    yield equal("the job is told to end once", told, 1)
    yield equal("and killed after the grace", end_of(history.call("after"))[0], "signaled")


# Of the racing jobs: one that is stopped well before its own end, and one well after it.
EARLY_STOP: Final = 9
LATE_STOP: Final = 1
LATE_STOP_S: Final = 0.5


def run_stop_race(stage: Stage) -> None:
    """Stops that meet the natural end of their jobs."""
    count = stage.pick(full=60, small=12)
    # On both sides of the jobs' own ends, and at them.
    delays_s = [stage.random.uniform(0, 0.1) for _ in range(count)]
    delays_s[EARLY_STOP] = 0.0
    delays_s[LATE_STOP] = stage.patience(LATE_STOP_S)
    with stage.client() as client, ThreadPoolExecutor(4) as pool:

        def one(number: int) -> None:
            job_id = client.must_start("sh", ["-c", f"sleep 0.0{number % 10}; exit 5"])
            measured_window(delays_s[number])
            client.stop(job_id, label=f"stop {number}")
            client.query(job_id, label=f"first {number}")
            client.stream(job_id, label=f"stream {number}")
            client.query(job_id, label=f"second {number}")

        list(pool.map(one, range(count)))


def judge_stop_race(history: History) -> Iterator[Finding]:
    """One truthful final status each."""
    firsts, seconds = ([end_of(c) for c in history.calls(f"{w} ")] for w in ("first", "second"))
    truthful = {("exited", 5, 0), ("signaled", 0, 15), ("signaled", 0, 9)}
    by_itself = firsts.count(("exited", 5, 0))
    yield floor("jobs that ended by themselves", by_itself, 1)
    yield floor("jobs that were stopped", len(firsts) - by_itself, 1)
    odd = [end for end in firsts if end not in truthful]
    yield equal("a stop that meets the job's end leaves one truthful status", odd[:3], [])
    yield equal("and it never changes", Counter(firsts), Counter(seconds))
    codes = {call.code for call in history.calls("stop ")} - {"OK", "FAILED_PRECONDITION"}
    yield equal("the stop is answered as done, or as already ended", codes, set())
    streams = {stream.code for stream in history.streams("stream ")}
    yield equal("its streams end", streams, {"OK"})


def run_stop_twice(stage: Stage) -> None:
    """Stops of what has ended."""
    with stage.client() as client:
        running = client.must_start("sleep", ["100"])
        ended = client.must_start("sh", ["-c", "exit 6"])
        client.output(ended)
        for label, job_id in (("running", running), ("ended", ended)):
            client.query(job_id, label=f"{label} before")
            client.stop(job_id, label=f"stop 1 of {label}")
            client.query(job_id, label=f"{label} between")
            client.stop(job_id, label=f"stop 2 of {label}")
            client.query(job_id, label=f"{label} after")


def judge_stop_twice(history: History) -> Iterator[Finding]:
    """No error, and no other status."""
    for call in history.calls("stop "):
        promise = f"{call.label} job is answered as done, or as already ended"
        yield answered(promise, call, "OK", "FAILED_PRECONDITION")
    before = history.call("running before").response.get("status")
    yield equal("a running job says so", before, "running")
    for label, end in (("running", ("signaled", 0, 15)), ("ended", ("exited", 6, 0))):
        for when in ("between", "after"):
            promise = f"the status of the {label} job after a stop"
            yield equal(promise, end_of(history.call(f"{label} {when}")), end)


# Tells the state of a process, proc_pid_stat(5), once it is stopped, or when it does not stop.
STATE: Final = (
    "n=0; until s=$(cut -d ' ' -f 3 /proc/$0/stat) && [ \"$s\" = T ] || [ $n -ge 100 ]; "
    "do n=$((n+1)); sleep 0.05; done; echo $s"
)


def run_stopped_job(stage: Stage) -> None:
    """A job that stopped itself by SIGSTOP, and one that does so with children."""
    with stage.client() as client:
        for label, script in {
            "stopped": "echo $$; kill -STOP $$",
            "stopped tree": "sh -c 'kill -STOP $$' & echo $$; kill -STOP $$",
        }.items():
            job_id = client.must_start("sh", ["-c", script])
            plan = StreamPlan(stop_after_bytes=2, keep_bytes=20)
            pid = client.stream(job_id, plan, label="ready").text.strip()
            client.output(client.must_start("sh", ["-c", STATE, pid]), label=f"state of {label}")
            client.stop(job_id, label=f"stop {label}")
            client.query(job_id, label=f"after {label}")


def judge_stopped_job(history: History) -> Iterator[Finding]:
    """It ends all the same."""
    for stream in history.streams("state of "):
        state = stream.text.strip()
        yield assumed(f"a {stream.label[9:]} job has stopped", true=state == "T", got=state)
    for call in history.calls("stop "):
        yield answered(f"{call.label} job succeeds", call)
        yield at_most(f"seconds to {call.label}", call.ended_s - call.started_s, DEFAULT_GRACE_S)
    for call in history.calls("after "):
        yield equal(f"{call.label}: it has ended", end_of(call)[0], "signaled")


TREE: Final = (
    "for i in 1 2 3; do sh -c 'sleep 1000 & sleep 1000 & wait' & done; "
    # In each stat: field 2 is the name, field 5 the process group.
    "until [ $(cat /proc/[0-9]*/stat 2>/dev/null | "
    "awk -v group=$$ '$5 == group && $2 == \"(sleep)\"' | wc -l) = 6 ]; do sleep 0.05; done; "
    "trap '' TERM; echo $$; wait; while :; do sleep 0.2; done"
)


def run_stop_tree(stage: Stage) -> None:
    """A tree of children and grandchildren in the job's process group."""
    grace_s = GRACE_S if stage.target_has(Need.GRACE) else None
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", TREE])
        receiver = client.stream(job_id, StreamPlan(stop_after_bytes=2, keep_bytes=20), label="up")
        group = receiver.text.strip()
        client.stop(job_id, label="stop", grace_s=grace_s)
        # Field 5 is the process group, field 3 the state; a zombie is gone.
        look = f"cat /proc/[0-9]*/stat 2>/dev/null | awk '$5 == {group} && $3 != \"Z\"' | wc -l"
        stage.fact("left", client.output(client.must_start("sh", ["-c", look])).strip())


def judge_stop_tree(history: History) -> Iterator[Finding]:
    """Nobody is left."""
    yield holds(
        "the tree was there", kept=history.stream("up").received_bytes > 1,
        got=history.stream("up").code, want="its leader's number",
    )  # fmt: skip
    yield answered("the stop succeeds", history.call("stop"))
    yield equal("processes of the job's group after a stop", history.fact("left"), "0")


EXIT_BOUND_S: Final = 45.0  # two grace periods of two seconds, on a busy machine, emulated


def run_shutdown(stage: Stage) -> None:
    """SIGTERM for a server with jobs that end, jobs that resist, and streams of both."""
    variant = Variant(stop_grace_s=2) if "stop_grace_s" in stage.target.flags else Variant()
    with (
        stage.fresh_server(variant) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        pids, streams, receivers = [], [], []
        for label, script in {"obeys": "echo $$; exec sleep 1000", "resists": IGNORES_TERM}.items():
            job_id = client.must_start("sh", ["-c", script])
            pids.append(client.must_query(job_id).pid)
            receiver = client.receiver(job_id, StreamPlan(timeout_s=120), label=label)
            receivers.append(receiver)
            streams.append(pool.submit(receiver.run))
            receiver.first_byte.wait(stage.join_timeout_s)
        asked_s = stage.recorder.now_s()
        server.signal(signal.SIGTERM)
        exit_code = server.wait_exit(EXIT_BOUND_S)
        stage.fact("exit", {"code": exit_code, "seconds": stage.recorder.now_s() - asked_s})
        for receiver in receivers:
            if not receiver.ended.wait(5):
                receiver.cancel()
        for each in streams:
            each.result()
        stage.fact("pids", pids)
        alive = " ".join(f"/proc/{pid}/exe" for pid in pids)
        told = stage.host.run(f"ls {alive} 2>/dev/null | wc -l").stdout.strip()
        stage.fact("jobs left", told)


def judge_shutdown(history: History) -> Iterator[Finding]:
    """Jobs ended, streams ended with a status, exit code 0, in bounded time."""
    end = history.fact("exit")
    end = end if isinstance(end, dict) else {}
    yield equal("a server that gets SIGTERM exits with 0", end.get("code"), 0)
    seconds = end.get("seconds")
    yield at_most("seconds until it has", float(str(seconds)), EXIT_BOUND_S)
    pids = history.fact("pids")
    told = isinstance(pids, list) and all(isinstance(pid, int) and pid > 0 for pid in pids)
    yield holds("the server told its jobs' pids", kept=told, got=pids, want="numbers")
    yield equal("its jobs have ended", history.fact("jobs left"), "0")
    for label in ("obeys", "resists"):
        stream = history.stream(label)
        yield one_of(
            f"the stream of the job that {label} ends with a status", stream.code,
            ("OK", "UNAVAILABLE", "CANCELLED", "ABORTED"),
        )  # fmt: skip
        yield at_most("seconds until that stream ends", stream.ended_s - stream.started_s, 100)


CHECKS: Final = (
    Check(
        "lifecycle.escalates",
        "A job that ignores SIGTERM is killed after the grace period.",
        run_escalates, judge_escalates, frozenset(), ("35", "R-JOB-3"),
    ),
    Check(
        "lifecycle.last-words",
        "What a job says when it is told to end is kept, and its exit code is its own.",
        run_last_words, judge_last_words, frozenset(), ("36", "R-JOB-3"),
    ),
    Check(
        "lifecycle.concurrent-stops",
        "A hundred concurrent stops of one job all succeed; the job is told once.",
        run_concurrent_stops, judge_concurrent_stops, frozenset(), ("37",), 90,
    ),
    Check(
        "lifecycle.stop-race",
        "A stop that meets the natural end of a job leaves one truthful final status.",
        run_stop_race, judge_stop_race, frozenset(), ("38",), 90,
    ),
    Check(
        "lifecycle.stop-twice",
        "Stopping a job that has ended, or twice, changes nothing.",
        run_stop_twice, judge_stop_twice, frozenset(), ("39",),
    ),
    Check(
        "lifecycle.stopped-job",
        "A job that is stopped by SIGSTOP can be ended.",
        run_stopped_job, judge_stopped_job, frozenset(), ("42",), 90,
    ),
    Check(
        "lifecycle.stop-tree",
        "A stop ends children and grandchildren too, not just the main process.",
        run_stop_tree, judge_stop_tree, frozenset(), ("34", "R-JOB-3"),
    ),
    Check(
        "lifecycle.shutdown",
        "A server that gets SIGTERM ends its jobs and streams and exits with 0 in bounded time.",
        run_shutdown, judge_shutdown, frozenset({Need.LAUNCH, Need.HOST}), ("44",), 120,
    ),
)  # fmt: skip
