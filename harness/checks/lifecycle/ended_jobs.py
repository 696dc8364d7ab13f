"""What an ended job still costs its server: memory for its record and output, no descriptor."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import KIB, server_counts
from harness.judge.promises import answered, at_most, equal, floor
from harness.record.history import History, Observation
from harness.record.verdict import Finding

# As many jobs as the server can have descriptors, so that one for each would be too many.
JOBS: Final = 130
JOBS_SMALL: Final = 60
JOBS_AT_ONCE: Final = 4
# More than a pipe holds, and more than a server would keep with the job's record.
OUTPUT_BYTES: Final = 300 * KIB
# A server may open some of its own while it works: a connection, a timer, a device.
SPARE_DESCRIPTORS: Final = 8


@dataclass(frozen=True, slots=True)
class EndedJobs(Observation):
    """Jobs that ran to their end, on a server with few descriptors.

    Attributes:
        statuses: of each job that started, in the order of their starts.
        sizes_bytes: of the output that the server counted, of each.
        refused: the statuses of the starts that failed.
        descriptors_before, descriptors_after: of the server.
    """

    statuses: tuple[str, ...]
    sizes_bytes: tuple[int, ...]
    refused: tuple[str, ...]
    descriptors_before: int
    descriptors_after: int


def run_ended_descriptors(stage: Stage) -> None:
    """Run as many jobs as the server can have descriptors, and one more."""
    count = stage.pick(full=JOBS, small=JOBS_SMALL)
    with (
        stage.fresh_server(descriptors=count) as server,
        stage.client(server=server) as client,
    ):
        client.output(client.must_start("true"))
        before = server_counts(stage, server).descriptors

        def run(number: int) -> tuple[str, int, str]:
            words = ["-c", str(OUTPUT_BYTES), "/dev/zero"]
            reply = client.start("head", words, label=f"start {number}")
            if not reply.ok:
                return "", 0, reply.call.code
            job_id = reply.message.job_id
            client.stream(job_id, label=f"output {number}")
            answer = client.must_query(job_id)
            return answer.status, answer.log_size_bytes, ""

        with ThreadPoolExecutor(JOBS_AT_ONCE) as pool:
            jobs = list(pool.map(run, range(count)))
        client.start("true", label="one more")
        after = server_counts(stage, server).descriptors
        started = [(status, size) for status, size, refusal in jobs if not refusal]
        stage.record(
            EndedJobs(
                statuses=tuple(status for status, _ in started),
                sizes_bytes=tuple(size for _, size in started),
                refused=tuple(refusal for _, _, refusal in jobs if refusal),
                descriptors_before=before,
                descriptors_after=after,
            )
        )


def judge_ended_descriptors(history: History) -> Iterator[Finding]:
    """Every start succeeds, and the server has as many descriptors as before."""
    seen = history.the(EndedJobs)
    yield floor("jobs", len(seen.statuses) + len(seen.refused), JOBS_SMALL)
    yield equal("starts that are refused", seen.refused[:3], ())
    yield answered("a job starts after all of them", history.call("one more"))
    yield equal("all of them end", set(seen.statuses), {"exited"})
    yield equal("with all of their output", set(seen.sizes_bytes), {OUTPUT_BYTES})
    bound = seen.descriptors_before + SPARE_DESCRIPTORS
    why = f"as many as before these jobs, and {SPARE_DESCRIPTORS} spare"
    yield at_most(
        "descriptors of a server whose jobs have ended", seen.descriptors_after, bound, why
    )


ENDED_DESCRIPTORS: Final = Check(
    "lifecycle.ended-descriptors",
    "An ended job holds no descriptor, however much it wrote: starts go on.",
    run_ended_descriptors,
    judge_ended_descriptors,
    needs=frozenset({Need.LAUNCH, Need.HOST, Need.OFFSETS, Need.LOG_SIZES}),
    cites=("94",),
)

CHECKS: Final = (ENDED_DESCRIPTORS,)
