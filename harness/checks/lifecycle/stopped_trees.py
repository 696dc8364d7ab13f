"""The stop of a job with children and grandchildren."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import WAITS, count_marked, mark_of_jobs
from harness.checks.lifecycle.left_over import count_left, count_left_over
from harness.checks.lifecycle.stopping import requested_grace_s
from harness.drive.receiver import StreamPlan
from harness.judge.promises import answered, at_least, equal
from harness.record.history import History, Observation
from harness.record.verdict import Finding

# Three children with two grandchildren each. Its arguments are a mark, which every process gets as
# an argument, too, and WAITS. For a harness without access to the server's machine, every process
# prints its number, of seven digits. A line ends with dots: what its reader misses at the end of
# the output is not of a number.
TREE: Final = (
    'for i in 1 2 3; do sh -c \'sh -c "$1" "$0" & first=$!; sh -c "$1" "$0" & '
    'printf "%07d %07d %07d ....\\n" $$ $first $!; wait\' "$0" "$1" & done; '
    f"trap '' TERM; printf '%07d ....\\n' $$; wait; {WAITS}"
)
_NUMBER: Final = re.compile(r"\d{7}")
TREE_PROCESSES: Final = 10
# Of its output, without the ends of lines: some servers drop them.
TREE_BYTES: Final = 96


@dataclass(frozen=True, slots=True)
class TreeAfterStop(Observation):
    """The tree's processes, and how many are left: text, since a job may have printed it."""

    processes: int
    left: str


def run_stop_tree(stage: Stage) -> None:
    """Stop a tree of children and grandchildren, and count who is left on the server's machine.

    If they cannot be seen there, they are the processes whose numbers the tree printed, as another
    job of the same server counts them.
    """
    grace_s = requested_grace_s(stage)
    with mark_of_jobs(stage) as mark, stage.client() as client:
        job_id = client.must_start("sh", ["-c", TREE, mark, WAITS])
        running = 0
        if stage.target_has(Need.HOST):
            running = count_marked(stage, mark, f"-ge {TREE_PROCESSES}", stage.join_timeout_s)
        if running:
            client.stop(job_id, label="stop", grace_s=grace_s)
            left = str(count_left(stage, mark))
        else:
            plan = StreamPlan(stop_after_bytes=TREE_BYTES, keep_bytes=2 * TREE_BYTES)
            numbers = _NUMBER.findall(client.stream(job_id, plan, label="up").text)
            running = len(numbers)
            client.stop(job_id, label="stop", grace_s=grace_s)
            look = count_left_over(map(int, numbers))
            left = client.output(client.must_start("sh", ["-c", look])).strip()
        stage.record(TreeAfterStop(running, left))


def judge_stop_tree(history: History) -> Iterator[Finding]:
    """Promise that no process is left."""
    tree = history.the(TreeAfterStop)
    yield at_least("processes of the tree that were running", tree.processes, TREE_PROCESSES)
    yield answered("the stop succeeds", history.call("stop"))
    yield equal("processes of the tree after a stop", tree.left, "0")


STOP_TREE: Final = Check(
    "lifecycle.stop-tree",
    "A stop ends children and grandchildren too, not just the main process.",
    run_stop_tree,
    judge_stop_tree,
    cites=("34", "R-JOB-3"),
)

CHECKS: Final = (STOP_TREE,)
