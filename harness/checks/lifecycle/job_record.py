"""What a query and a list report of a job: its command, pid, end and output; both say the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import newest_jobs
from harness.drive.client import message_of
from harness.drive.receiver import StreamPlan
from harness.judge.promises import answered, equal, floor
from harness.record.history import History, Observation, Stream
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

# Prints its pid, and ends as its argument says.
SCRIPT: Final = 'echo $$; eval "$1"'
ENDED: Final = {"that exits": "echo more; exit 3", "that is killed": "kill -9 $$"}
RUNNING: Final = "that runs"
LINE_BYTES: Final = 20  # of one length, since a message may end within it
RUNS: Final = f"printf '%{LINE_BYTES - 1}d\\n' $$; exec sleep 100"
ENDS: Final = {"that exits": ("exited", 3, 0), "that is killed": ("signaled", 0, 9)}


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a server reports of one job, in a query or a list.

    Attributes:
        status, pid, exit_code, signal, log_size_bytes, log_first_offset: as in the API. The times
            are `lifecycle.times`' own.
    """

    status: str
    pid: int
    exit_code: int
    signal: int
    log_size_bytes: int
    log_first_offset: int


@dataclass(frozen=True, slots=True)
class ReportedJob(Observation):
    """One job as it is reported.

    Attributes:
        label: of the job.
        command: its words.
        queried: as a query reports it.
        output_error: why output was lost; None: absent.
        oom_killed: as in the API.
        reports_cgroup: whether its limits are present, and whether its usage is.
        has_cgroup: whether the server has limits.
        listed: as the list reports it; None: it is not listed.
        listed_command: its words in the list.
    """

    label: str
    command: tuple[str, ...]
    queried: JobReport
    output_error: str | None
    oom_killed: bool
    reports_cgroup: tuple[bool, bool]
    has_cgroup: bool
    listed: JobReport | None
    listed_command: tuple[str, ...]


def run_record(stage: Stage) -> None:
    """Run jobs to their end, then query and list them, and one that is running."""
    with stage.client() as client:
        commands: dict[str, tuple[str, ...]] = {
            label: ("sh", "-c", SCRIPT, "sh", end) for label, end in ENDED.items()
        }
        commands[RUNNING] = ("/bin/sh", "-c", RUNS)
        ids = {
            label: client.must_start(command, arguments)
            for label, (command, *arguments) in commands.items()
        }
        for label in ENDED:
            client.output(ids[label], label=label)
        plan = StreamPlan(stop_after_bytes=LINE_BYTES, keep_bytes=100)
        client.stream(ids[RUNNING], plan, label=RUNNING)
        listed = newest_jobs(client)
        for label, job_id in ids.items():
            queried = client.must_query(job_id)
            summary = listed.get(job_id)
            words = () if summary is None else (summary.command_name, *summary.command_args)
            stage.record(
                ReportedJob(
                    label,
                    commands[label],
                    _report(queried),
                    queried.output_error if queried.HasField("output_error") else None,
                    queried.oom_killed,
                    (queried.HasField("limits"), queried.HasField("usage")),
                    stage.target_has(Need.LIMIT_FIELDS),
                    None if summary is None else _report(summary),
                    words,
                )
            )
        client.stop(ids[RUNNING], grace_s=0)


def _report(job: pb.QueryJobResponse | pb.JobSummary) -> JobReport:
    return JobReport(
        job.status, job.pid, job.exit_code, job.signal, job.log_size_bytes, job.log_first_offset
    )


def judge_record(history: History) -> Iterator[Finding]:
    """Promise what the jobs themselves print, and the same in a query and in the list."""
    jobs = {job.label: job for job in history.all(ReportedJob)}
    yield floor("jobs that are reported", len(jobs), len(ENDED) + 1)
    for label, job in jobs.items():
        printed = history.stream(label).text.split()
        yield equal(f"the pid of a job {label} is its own", [str(job.queried.pid)], printed[:1])
        yield equal(f"a list shows the command of a job {label}", job.listed_command, job.command)
        yield equal(f"a list shows a job {label} as a query does", job.listed, job.queried)
        yield equal(f"a job {label} lost no output", job.output_error, None)
        yield equal(f"no OOM killer ended a job {label}", job.oom_killed, want=False)
        promise = f"limits and usage of a job {label} are reported if the server has limits"
        yield equal(promise, job.reports_cgroup, (job.has_cgroup, job.has_cgroup))
        if label in ENDS:
            yield from _judge_ended(label, job.queried, history.stream(label))
    running = jobs[RUNNING].queried
    end = (running.status, running.exit_code, running.signal)
    yield equal("a job that runs has no end", end, ("running", 0, 0))
    stop = history.call("stop")
    yield answered("it stops", stop)
    success = message_of(stop, pb.StopJobResponse).success
    yield equal("the answer to the stop says so", success, want=True)


def _judge_ended(label: str, job: JobReport, output: Stream) -> Iterator[Finding]:
    end = (job.status, job.exit_code, job.signal)
    yield equal(f"the end of a job {label}", end, ENDS[label])
    size = (job.log_first_offset, job.log_size_bytes)
    wanted = (0, output.received_bytes)
    yield equal(f"the first and the end offset of a job {label}", size, wanted)


RECORD: Final = Check(
    "lifecycle.record",
    "A query and a list report each job's command, pid, end and output exactly.",
    run_record,
    judge_record,
    needs=frozenset({Need.LISTING, Need.OFFSETS, Need.LOG_SIZES}),
    cites=("R-JOB-2",),
)

CHECKS: Final = (RECORD,)
