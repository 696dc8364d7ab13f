"""Crowds of readers that are late, slow, stopped, killed and cut: nobody is harmed by another."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.checks.common import (
    KIB,
    MIB,
    WriterJob,
    WriterStep,
    open_gate,
    server_memory_bytes,
    start_writer,
)
from harness.checks.streams.delivery import BURSTS, PYTHON
from harness.drive.receiver import StreamPlan
from harness.drive.streamers import Reader, crowd
from harness.host.clock import came_true, measured_window
from harness.judge.promises import (
    answered,
    assumed,
    at_least,
    at_most,
    equal,
    floor,
    unseen,
)
from harness.judge.streams import all_exact, by_job, most_at_once
from harness.record.history import History
from harness.record.verdict import Finding
from harness.targets.target import Variant

CROWD_TIMEOUT_S: Final = 240.0

# -- the bursty crowd -----------------------------------------------------------------------------

# Rounds of bursts and silences: some 14 MB, and a second of a job's own time.
BURSTY_ROUNDS: Final = 6
JOBS: Final = 3
# Of each job's readers: what makes them special, and how many of 20 are so.
KINDS: Final = {"steady": 13, "late": 3, "slow": 2, "cut": 2}
SLOW_BYTES_PER_S: Final = 2 * MIB
KILLED_WINDOW_S: Final = 1.0  # for a server to see that clients have gone


def _readers(stage: Stage, writers: list[WriterJob], each: int) -> list[Reader]:
    offsets = stage.target_has(Need.OFFSETS)

    def reader(kind: str, name: str, writer: WriterJob) -> Reader:
        cut = stage.random.randrange(1, writer.total_bytes)
        return Reader(
            f"{kind} {name}",
            writer.job_id,
            writer.seed,
            late_s=stage.random.uniform(0.1, 1.5) if kind == "late" else None,
            bytes_per_s=SLOW_BYTES_PER_S if kind == "slow" else None,
            cut_after_bytes=cut if kind == "cut" else None,
            offsets=offsets,
            timeout_s=CROWD_TIMEOUT_S,
        )

    return [
        reader(kind, f"{job_number}.{number}", writer)
        for job_number, writer in enumerate(writers)
        for kind, share in KINDS.items()
        for number in range(each * share // 20)
    ]


def run_bursty(stage: Stage) -> None:
    """Hundreds of readers of several bursty jobs; some are stopped dead, some killed."""
    each = stage.pick(full=100, small=20)
    steps = BURSTS * stage.pick(full=BURSTY_ROUNDS, small=1)
    files = stage.target.identities.files("user")
    with stage.client() as client:
        writers = [start_writer(stage, client, steps, gated=True) for _ in range(JOBS)]
        stage.fact("total", writers[0].total_bytes)
        readers = _readers(stage, writers, each)
        stage.fact("readers", len(readers))
        doomed = {
            fate: [
                Reader(
                    f"{fate} {number}.{i}", writer.job_id, writer.seed, timeout_s=CROWD_TIMEOUT_S
                )
                for number, writer in enumerate(writers)
                for i in range(each // 20)
            ]
            for fate in ("stopped", "killed")
        }
        address = stage.server.address
        with (
            crowd(address, files, doomed["stopped"], stage.recorder) as stopped,
            crowd(address, files, doomed["killed"], stage.recorder) as killed,
            crowd(address, files, readers, stage.recorder) as running,
        ):
            joined = [each.wait_joined(stage.join_timeout_s) for each in (stopped, killed, running)]
            stage.fact("joined", sum(joined))
            early = [each for each in readers if each.late_s is None]
            stage.fact("early", len(early) + sum(map(len, doomed.values())))
            stopped.pause()
            # While all the others wait for output: what a client's end does to them shows then.
            killed.kill()
            measured_window(stage.patience(KILLED_WINDOW_S))
            for writer in writers:
                open_gate(client, writer)
            running.go()
            client.query(writers[0].job_id, label="meanwhile")
            running.require_done(CROWD_TIMEOUT_S)


def judge_bursty(history: History) -> Iterator[Finding]:
    """Everyone who was not killed has everything."""
    total = int(history.number("total"))
    readers = int(history.number("readers"))
    joined, early = history.number("joined"), history.number("early")
    yield floor("readers before the first burst", joined, early)
    streams = [
        each for each in history.streams() if not each.label.startswith(("stopped", "killed"))
    ]
    firsts = [each for each in streams if not each.label.endswith("resumed")]
    yield equal("every reader's stream came to an end", len(firsts), readers)
    yield floor("readers at one moment", most_at_once(streams), readers * 0.6)
    for number, (_, of_job) in enumerate(by_job(streams)):
        promise = f"each reader of job {number} gets every byte"
        # Where a resumed stream begins is judged below, with where the first was cut.
        yield all_exact(promise, of_job, total, None)
    starts = {each.start_offset for each in firsts}
    yield equal("early and late joiners start with the first byte", starts, {0})
    cuts = {each.label: each.received_bytes for each in firsts if each.code == "CANCELLED"}
    begins = {each.label: each.start_offset for each in streams if each not in firsts}
    yield floor("readers that were cut and came back", len(begins), 1)
    moved = [name for name, at in cuts.items() if begins.get(f"{name} resumed", -1) != at]
    yield equal("readers that were cut go on where they were", moved[:3], [])
    yield answered("a query is answered meanwhile", history.call("meanwhile"))


# -- stalled readers ------------------------------------------------------------------------------

# What one stalled connection holds besides the log: windows, a message on its way, TLS.
STALLED_READER_BYTES: Final = 8 * MIB
READ_BESIDE_STALLED_S: Final = 15.0
# The log is in memory once; buffers that grow by copying would hold it twice and more.
MEMORY_SLACK_BYTES: Final = 48 * MIB


def run_stalled(stage: Stage) -> None:
    """Ten readers stopped dead, five that read on."""
    size_mib = stage.pick(full=96, small=12)
    steps: list[WriterStep] = [{"bytes": MIB, "write": MIB, "repeat": size_mib}]
    files = stage.target.identities.files("user")
    with stage.client() as client:
        writer = start_writer(stage, client, steps, gated=True)
        stage.fact("total", writer.total_bytes)
        counts = {"stalled": 10, "reading": 5}
        crowds = {
            name: [Reader(f"{name} {i}", writer.job_id, writer.seed) for i in range(count)]
            for name, count in counts.items()
        }
        address = stage.server.address
        with (
            crowd(address, files, crowds["stalled"], stage.recorder) as stalled,
            crowd(address, files, crowds["reading"], stage.recorder) as reading,
        ):
            stage.fact(
                "joined",
                stalled.wait_joined(stage.join_timeout_s)
                + reading.wait_joined(stage.join_timeout_s),
            )
            watch = _MemoryWatch(stage, writer.total_bytes)
            stalled.pause()
            open_gate(client, writer)
            opened_s = stage.recorder.now_s()
            came_true(lambda: watch.look() or reading.wait_done(0), stage.patience(60))
            stage.fact("read after", stage.recorder.now_s() - opened_s)
            stage.fact("bound", stage.patience(READ_BESIDE_STALLED_S))
            reading.require_done(1)
            watch.record()
            client.query(writer.job_id, label="meanwhile")
            client.must_start("true", label="start meanwhile")


class _MemoryWatch:
    """Samples what memory a server takes, where its process can be seen."""

    def __init__(self, stage: Stage, total: int) -> None:
        self._stage = stage
        self._limit_bytes = _stalled_limit_bytes(total)
        self._begun_s = stage.recorder.now_s()
        self._samples: list[tuple[float, int]] = []
        self._before = 0 if stage.server.pid is None else self._now_bytes()

    def _now_bytes(self) -> int:
        return server_memory_bytes(self._stage, self._stage.server)

    def look(self) -> bool:
        """Take a sample; returns False, to be one look of `came_true` among others."""
        if self._stage.server.pid is not None:
            at_s = self._stage.recorder.now_s() - self._begun_s
            self._samples.append((at_s, self._now_bytes() - self._before))
        return False

    def record(self) -> None:
        """Record the peak, and all for the picture; or that nothing could be seen."""
        if self._stage.server.pid is None:
            self._stage.fact("memory unseen", PROCESS_UNSEEN)
            return
        self._stage.fact("memory grown", max(grown for _, grown in self._samples))
        self._stage.fact(
            "usage of memory",
            {
                "title": "Memory that the server took beside ten stalled readers",
                "unit": "MiB",
                "limit": self._limit_bytes / MIB,
                "samples": [[at_s, grown / MIB] for at_s, grown in self._samples],
            },
        )


def _stalled_limit_bytes(total: int) -> int:
    return total + 10 * STALLED_READER_BYTES + MEMORY_SLACK_BYTES


def judge_stalled(history: History) -> Iterator[Finding]:
    """The others have everything, the job has ended, memory is bounded."""
    total = int(history.number("total"))
    yield floor("readers before the job goes on", history.number("joined"), 15)
    yield equal("readers that came to an end", len(history.streams("reading")), 5)
    promise = "readers beside ten stalled ones get every byte"
    yield all_exact(promise, history.streams("reading"), total)
    yield at_most(
        "seconds until the others have everything", history.number("read after"),
        history.number("bound"), "ten times what it takes; a stalled reader stays for minutes",
    )  # fmt: skip
    meanwhile = history.call("meanwhile")
    yield answered("a query is answered beside stalled readers", meanwhile)
    status = meanwhile.response.get("status")
    yield equal("the job is not held up by stalled readers", status, "exited")
    yield answered("a start is answered beside stalled readers", history.call("start meanwhile"))
    promise = "bytes of memory that the server took"
    if history.facts("memory unseen"):
        yield unseen(promise, PROCESS_UNSEEN)
        return
    why = f"the log once, 8 MiB for each stalled reader, {MEMORY_SLACK_BYTES // MIB} MiB"
    yield at_most(promise, history.number("memory grown"), _stalled_limit_bytes(total), why)


# -- retention ------------------------------------------------------------------------------------

RETENTION_BYTES: Final = MIB


def run_retention(stage: Stage) -> None:
    """A log of 1 MiB, a job that writes far more, a slow follower, a late reader."""
    size_mib = stage.pick(full=256, small=16)
    steps: list[WriterStep] = [{"bytes": MIB, "write": 64 * KIB, "repeat": size_mib}]
    with (
        stage.fresh_server(Variant(retention_bytes=RETENTION_BYTES)) as server,
        stage.client(server=server) as client,
    ):
        writer = start_writer(stage, client, steps, gated=True)
        stage.fact("total", writer.total_bytes)
        slow = StreamPlan(pattern=writer.pattern, bytes_per_s=4 * MIB)
        follower = client.receiver(writer.job_id, slow, label="slow follower")
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(follower.run)
            follower.first_byte.wait(stage.join_timeout_s)
            before = server_memory_bytes(stage, server)
            open_gate(client, writer)
            following.result()
        late = StreamPlan(pattern=writer.pattern)
        client.stream(writer.job_id, late, label="late")
        stage.fact("memory grown", server_memory_bytes(stage, server) - before)


def judge_retention(history: History) -> Iterator[Finding]:
    """Each is told exactly what it missed."""
    total = int(history.number("total"))
    late, follower = history.stream("late"), history.stream("slow follower")
    for stream in (late, follower):
        told = stream.missed_bytes + stream.received_bytes
        yield equal(f"missed and received bytes of the {stream.label} add up", told, total)
        yield equal(f"the {stream.label}'s bytes are right at their offsets", stream.wrong_at, None)
        yield equal(f"the {stream.label}'s offsets have no gap but those told", stream.gap, "")
        yield equal(f"the {stream.label} ends with the job", stream.code, "OK")
    yield equal("a late reader starts where the log does", late.start_offset, late.missed_bytes)
    yield at_least("bytes kept for a late reader", late.received_bytes, RETENTION_BYTES)
    yield floor("bytes that the slow follower missed", follower.missed_bytes, 1)
    if total > 2 * MEMORY_SLACK_BYTES:  # else the whole output would fit
        why = "allocators keep what they had; the output was many times this"
        grown = history.number("memory grown")
        yield at_most("bytes of memory for a log of 1 MiB", grown, MEMORY_SLACK_BYTES, why)


# -- a server that is paused ----------------------------------------------------------------------

PAUSE_S: Final = 2.0
PAUSED_AFTER_BYTES: Final = MIB  # of some 5 MiB in two seconds: amid the bursts
PAUSED_BURSTS: Final = 20
PAUSED_BURSTS_EMULATED: Final = 60  # two looks at such a machine take seconds
STOPPED: Final = ("T", "t")
STOPPED_S: Final = 5.0
PAUSED_READERS: Final = 10


def run_paused(stage: Stage) -> None:
    """A server that is stopped dead amid bursts, as a host that swaps or moves a machine does."""
    files = stage.target.identities.files("user")
    with (
        stage.fresh_server() as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        bursts = stage.pick(full=PAUSED_BURSTS, small=PAUSED_BURSTS_EMULATED)
        step: WriterStep = {"bytes": 256 * KIB, "pause_ms": 100, "repeat": bursts}
        writer = start_writer(stage, client, [step], gated=True)
        stage.fact("total", writer.total_bytes)
        plan = StreamPlan(pattern=writer.pattern, timeout_s=60)
        watcher = client.receiver(writer.job_id, plan, label="reader watched")
        readers = [
            Reader(f"reader {number}", writer.job_id, writer.seed, timeout_s=stage.patience(60))
            for number in range(PAUSED_READERS)
        ]
        with crowd(server.address, files, readers, stage.recorder) as running:
            watching = pool.submit(watcher.run)
            watcher.first_byte.wait(stage.join_timeout_s)
            stage.fact("joined", 1 + running.wait_joined(stage.join_timeout_s))
            open_gate(client, writer)
            came_true(
                lambda: watcher.ended.is_set() or watcher.received_bytes >= PAUSED_AFTER_BYTES,
                stage.patience(30),
            )
            server.signal(signal.SIGSTOP)
            try:
                # A thread that runs is stopped when it next has the processor.
                look = f"cut -d ' ' -f 3 /proc/{server.pid}/stat"
                came_true(lambda: stage.host.run(look).stdout.strip() in STOPPED, STOPPED_S)
                state = stage.host.run(look).stdout.strip()
                stage.fact("paused", [state, watcher.received_bytes])
                measured_window(PAUSE_S)
            finally:
                server.signal(signal.SIGCONT)
            running.require_done(stage.patience(60))
            watching.result()
        client.query(writer.job_id, label="afterwards")
        client.output(client.must_start("echo", ["afterwards"]), label="said afterwards")


def judge_paused(history: History) -> Iterator[Finding]:
    """Nothing is lost, nobody is cut, and the server goes on."""
    total = int(history.number("total"))
    yield floor("readers before the bursts", history.number("joined"), 1 + PAUSED_READERS)
    paused = history.fact("paused")
    state, received = paused if isinstance(paused, list) else (None, total)
    yield assumed("the server was stopped", true=state in STOPPED, got=state, want="T")
    amid = PAUSED_AFTER_BYTES <= int(str(received)) < total
    yield assumed("that was amid the bursts", true=amid, got=received, want=f"below {total}")
    streams = history.streams("reader ")
    yield equal("readers that came to an end", len(streams), 1 + PAUSED_READERS)
    yield all_exact("a pause of the server loses no reader a byte", streams, total)
    call = history.call("afterwards")
    yield answered("a query is answered after the pause", call)
    yield equal("the job ends well", call.response.get("status"), "exited")
    said = history.stream("said afterwards").text
    yield equal("a job can be started after the pause", said, "afterwards\n")


HOST: Final = frozenset({Need.PYTHON, Need.HOST, Need.LAUNCH})

CHECKS: Final = (
    Check(
        "streams.bursty",
        "Hundreds of readers of bursty jobs, some late, slow, cut, stopped dead or killed: "
        "everyone who stays gets every byte.",
        run_bursty, judge_bursty, PYTHON, ("63", "64", "66", "68", "70", "R-STREAM-2"), 300,
        alone=True,
    ),
    Check(
        "streams.stalled",
        "Ten readers that are stopped dead delay neither the job nor the others, and cost "
        "bounded memory.",
        run_stalled, judge_stalled, PYTHON, ("68", "R-STREAM-3"), 240, alone=True,
    ),
    Check(
        "streams.retention",
        "With a retention, memory is bounded and every reader is told exactly what it missed.",
        run_retention, judge_retention, HOST | {Need.RETENTION, Need.OFFSETS},
        ("67", "R-STREAM-7"), 240, alone=True,
    ),
    Check(
        "streams.paused-server",
        "A server that is stopped dead for seconds and goes on loses no byte and no reader.",
        run_paused, judge_paused, HOST, ("73", "R-STREAM-2"), 180, alone=True,
    ),
)  # fmt: skip
