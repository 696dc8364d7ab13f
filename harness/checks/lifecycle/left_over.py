"""What a stop left of a job: its processes, whatever the server reports of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Need, Stage
from harness.checks.common import OF_A_SCRIPT, count_marked
from harness.drive.client import Client
from harness.judge.promises import equal
from harness.record.history import History, Observation
from harness.record.verdict import Finding

# A process that was killed may take a moment to be gone.
GONE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ProcessesAfterStop(Observation):
    """How many processes of a job a stop left, as the server's machine shows them."""

    label: str
    left: int


def stop_and_count(
    stage: Stage,
    client: Client,
    job_id: str,
    mark: str,
    *,
    label: str,
    grace_s: float | None = None,
) -> None:
    """Stop a job and query it; count its processes that have a mark, if they can be seen."""
    client.stop(job_id, label=f"stop {label}", grace_s=grace_s)
    client.query(job_id, label=f"after {label}")
    if stage.target_has(Need.HOST):
        stage.record(ProcessesAfterStop(label, count_left(stage, mark)))


def count_left(stage: Stage, mark: str) -> int:
    """Count the processes that have a mark and are not gone soon."""
    return count_marked(stage, mark, "-eq 0", stage.patience(GONE_S))


def none_is_left(history: History, label: str) -> Iterator[Finding]:
    """Promise that a stop left no process of a job, if they could be seen."""
    for each in history.all(ProcessesAfterStop):
        if each.label == label:
            yield equal(f"processes of a {label} job after its stop", each.left, 0)


def count_left_over(numbers: Iterable[int]) -> str:
    """Return a shell script that counts which of a tree's processes are left.

    Where each job numbers its processes itself, the job that looks has the same numbers: it and its
    children do not count.
    """
    stats = " ".join(f"/proc/{number}/stat" for number in numbers)
    left_over = f"{OF_A_SCRIPT} && $1 != me && $4 != me"
    return f"cat {stats} /dev/null 2>/dev/null | awk -v me=$$ '{left_over}' | wc -l"
