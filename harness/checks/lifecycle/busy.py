"""More calls at once than the server has threads for: those beyond the maximum are refused."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.drive.client import Client, Reply
from harness.judge.promises import equal
from harness.record.history import History
from harness.record.terms import UNKNOWN_ID
from harness.record.verdict import Finding
from harness.targets.target import Variant

REFUSED: Final = "RESOURCE_EXHAUSTED"
CALLERS: Final = 16  # of a server that has one thread for them
ROUNDS_MAX: Final = 50
# Each rpc but the stream: a call with little work, and the status of one that is admitted.
CALLS: Final[dict[str, tuple[Callable[[Client, str], Reply], str]]] = {
    "StartJob": (lambda client, label: client.start("true", label=label), "OK"),
    "StopJob": (lambda client, label: client.stop(UNKNOWN_ID, label=label), "NOT_FOUND"),
    "QueryJob": (lambda client, label: client.query(UNKNOWN_ID, label=label), "NOT_FOUND"),
    "ListJobs": (lambda client, label: client.list_page(page_size=1, label=label), "OK"),
    "DeleteJob": (lambda client, label: client.delete(UNKNOWN_ID, label=label), "NOT_FOUND"),
}


def run_busy(stage: Stage) -> None:
    """Call each rpc from many threads at once, until one call is not admitted."""
    with (
        stage.fresh_server(Variant(unary_threads=1)) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        for rpc, (call, admitted) in CALLS.items():
            for _ in range(ROUNDS_MAX):
                replies = [pool.submit(call, client, rpc) for _ in range(CALLERS)]
                if any(reply.result().call.code != admitted for reply in replies):
                    break


def judge_busy(history: History) -> Iterator[Finding]:
    """Each call is admitted, or refused with the reason; and some are refused."""
    for rpc, (_, admitted) in CALLS.items():
        calls = history.calls(rpc)
        codes = sorted({call.code for call in calls})
        promise = f"of {CALLERS} calls of {rpc} at once, those beyond the maximum are refused"
        yield equal(promise, codes, sorted((admitted, REFUSED)))
        silent = sum(call.code == REFUSED and not call.detail for call in calls)
        yield equal(f"refusals of {rpc} without a reason", silent, 0)


BUSY: Final = Check(
    "lifecycle.busy",
    "Calls beyond the maximum are refused at once as RESOURCE_EXHAUSTED, with the reason.",
    run_busy,
    judge_busy,
    needs=frozenset({Need.LAUNCH, Need.UNARY_THREADS, Need.LISTING, Need.DELETION}),
    cites=("105",),
)

CHECKS: Final = (BUSY,)
