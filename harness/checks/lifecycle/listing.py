"""Lists of jobs: complete however large they are, in pages, ordered, filtered, and stable."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypedDict, Unpack

from harness.checks.check import Check, Need, Stage
from harness.checks.common import KIB
from harness.dialects.channel import MESSAGE_MAX_BYTES
from harness.drive.client import Client
from harness.host.clock import seconds_until
from harness.judge.promises import answered, assumed, at_most, equal, floor
from harness.record.history import History, Observation
from harness.record.verdict import Finding

PAGES_MAX: Final = 1000


class Listing(TypedDict, total=False):
    """What is listed, as in the request."""

    page_size: int
    newest_first: bool
    status: str


@dataclass(frozen=True, slots=True)
class PagedList(Observation):
    """A list, page by page.

    Attributes:
        label: by which the judge finds it.
        pages: the ids of each page's jobs.
        code, detail: of the last call: OK, or why the list ended early.
        complete: whether the last page had no token for another.
    """

    label: str
    pages: tuple[tuple[str, ...], ...]
    code: str
    detail: str
    complete: bool

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all pages."""
        return tuple(job_id for page in self.pages for job_id in page)


def list_pages(
    stage: Stage,
    client: Client,
    label: str,
    after_first: Callable[[], None] = lambda: None,
    **listing: Unpack[Listing],
) -> PagedList:
    """Follow the pages of a list to the last one, and record it.

    Args:
        stage: records it.
        client: makes the calls.
        label: of the record.
        after_first: called between the first page and the second one.
        listing: what is listed.
    """
    pages: list[tuple[str, ...]] = []
    token, code, detail, complete = "", "OK", "", False
    while not complete and len(pages) < PAGES_MAX:
        reply = client.list_page(token, label=f"{label} {len(pages)}", **listing)
        code, detail = reply.call.code, reply.call.detail
        if not reply.ok:
            break
        pages.append(tuple(job.job_id for job in reply.message.jobs))
        token = reply.message.next_page_token
        complete = not token
        if len(pages) == 1:
            after_first()
    paged = PagedList(label, tuple(pages), code, detail, complete)
    stage.record(paged)
    return paged


# -- a list larger than a message -----------------------------------------------------------------

LARGE_JOBS: Final = 36
ARGUMENT_BYTES: Final = 127 * KIB  # Linux allows 128 KiB in one, and 2 MiB in all
ARGUMENTS: Final = 15
STARTS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class LargeJobs(Observation):
    """Jobs with large arguments.

    Attributes:
        ids: of all.
        arguments_bytes: how large the arguments of all together are.
    """

    ids: tuple[str, ...]
    arguments_bytes: int


def run_list_large(stage: Stage) -> None:
    """List jobs whose arguments together are larger than a client's largest message."""
    with stage.fresh_server() as server, stage.client(server=server) as client:
        arguments = ["x" * ARGUMENT_BYTES] * ARGUMENTS
        with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
            ids = tuple(pool.map(lambda _: client.must_start("true", arguments), range(LARGE_JOBS)))
        stage.record(LargeJobs(ids, len(ids) * ARGUMENT_BYTES * ARGUMENTS))
        list_pages(stage, client, "large")
        list_pages(stage, client, "newest", newest_first=True)


def judge_list_large(history: History) -> Iterator[Finding]:
    """Every job is listed, once, in either direction."""
    jobs = history.the(LargeJobs)
    yield floor("bytes of all arguments", jobs.arguments_bytes, MESSAGE_MAX_BYTES)
    lists = {each.label: each for each in history.all(PagedList)}
    for label, listed in lists.items():
        got = f"{listed.code}: {listed.detail}" if listed.detail else listed.code
        yield equal(f"a list of jobs with large arguments is answered ({label})", got, "OK")
        yield equal(f"its last page has no token ({label})", listed.complete, True)
        once = sorted(listed.ids) == sorted(jobs.ids)
        what = f"{len(listed.ids)} entries of {len(set(listed.ids))} jobs"
        want = f"{len(jobs.ids)} entries of {len(jobs.ids)} jobs"
        yield equal(f"it has every job once ({label})", want if once else what, want)


LIST_LARGE: Final = Check(
    "lifecycle.list-large",
    "A list is complete however large the jobs' arguments are together.",
    run_list_large,
    judge_list_large,
    needs=frozenset({Need.LAUNCH, Need.LISTING, Need.NATIVE}),
    cites=("106",),
)

# -- pages ----------------------------------------------------------------------------------------

PAGE_SIZE: Final = 2
ENDED_S: Final = 20.0
# How the jobs end, in the order of their starts.
SCRIPTS: Final = ("exited", "exited", "running", "signaled", "running", "exited", "signaled")
COMMANDS: Final = {"exited": "exit 3", "signaled": "kill -9 $$", "running": "exec sleep 300"}
STATUSES: Final = tuple(COMMANDS)
WRONG: Final[dict[str, dict[str, str]]] = {
    "a token that no page had": {"token": "no token"},
    "a status that no job has": {"status": "asleep"},
}


@dataclass(frozen=True, slots=True)
class ListedJobs(Observation):
    """The jobs of a server.

    Attributes:
        ids: in the order of their starts.
        statuses: of each, as a query reports it.
        late: that were started between two pages.
    """

    ids: tuple[str, ...]
    statuses: tuple[str, ...]
    late: tuple[str, ...]


def run_pages(stage: Stage) -> None:
    """List seven jobs in each way, then again while jobs are started and deleted."""
    with stage.fresh_server() as server, stage.client(server=server) as client:
        ids = tuple(client.must_start("sh", ["-c", COMMANDS[status]]) for status in SCRIPTS)

        def statuses() -> tuple[str, ...]:
            return tuple(client.must_query(job_id).status for job_id in ids)

        seconds_until(lambda: statuses() == SCRIPTS, stage.patience(ENDED_S))
        list_pages(stage, client, "whole")
        list_pages(stage, client, "oldest", page_size=PAGE_SIZE)
        list_pages(stage, client, "newest", page_size=PAGE_SIZE, newest_first=True)
        for status in STATUSES:
            list_pages(stage, client, status, page_size=1, status=status)
        for label, words in WRONG.items():
            client.list_page(words.get("token", ""), status=words.get("status", ""), label=label)
        seen = statuses()
        late: list[str] = []

        def disturb_newest() -> None:
            late.append(client.must_start("true"))

        def disturb_oldest() -> None:
            late.append(client.must_start("true"))
            if stage.target_has(Need.DELETION):
                client.delete(ids[PAGE_SIZE - 1])  # the last job of the first page

        list_pages(
            stage, client, "newest, disturbed", disturb_newest,
            page_size=PAGE_SIZE, newest_first=True,
        )  # fmt: skip
        list_pages(stage, client, "oldest, disturbed", disturb_oldest, page_size=PAGE_SIZE)
        stage.record(ListedJobs(ids, seen, tuple(late)))


def judge_pages(history: History) -> Iterator[Finding]:
    """Order, size, filter; every job once, whatever happens meanwhile; bad requests refused."""
    jobs = history.the(ListedJobs)
    yield assumed("the jobs are as planned", true=jobs.statuses == SCRIPTS, got=jobs.statuses)
    numbers = {job_id: number for number, job_id in enumerate((*jobs.ids, *jobs.late))}
    lists = {each.label: each for each in history.all(PagedList)}
    order = tuple(range(len(SCRIPTS)))
    wanted = {"whole": order, "oldest": order, "newest": order[::-1]}
    wanted |= {status: tuple(n for n in order if SCRIPTS[n] == status) for status in STATUSES}
    for label, want in wanted.items():
        got = tuple(numbers.get(job_id, -1) for job_id in lists[label].ids)
        yield equal(f"jobs listed, by the order of their starts ({label})", got, want)
        yield equal(f"the last page has no token ({label})", lists[label].complete, True)
    empty = [f"{each.label}: {each.pages}" for each in lists.values() if () in each.pages]
    yield equal("a page has a token only if a job follows it", empty, [])
    for label in ("oldest", "newest"):
        largest = max(map(len, lists[label].pages), default=0)
        yield at_most(f"jobs on a page of {PAGE_SIZE} ({label})", largest, PAGE_SIZE)
    for label, want in (("oldest, disturbed", order), ("newest, disturbed", order[::-1])):
        got = tuple(n for each in lists[label].ids if (n := numbers.get(each, -1)) in order)
        promise = f"jobs listed while jobs are started and deleted ({label})"
        yield equal(promise, got, want)
    for label in WRONG:
        yield answered(f"{label} is refused", history.call(label), "INVALID_ARGUMENT")
    silent = [label for label in WRONG if not history.call(label).detail]
    yield equal("refusals without a reason", silent, [])


PAGES: Final = Check(
    "lifecycle.pages",
    "Pages of a list have every job once, in order, as filtered, while jobs come and go.",
    run_pages,
    judge_pages,
    needs=frozenset({Need.LAUNCH, Need.PAGES, Need.NATIVE}),
    cites=("106", "115"),
)

CHECKS: Final = (LIST_LARGE, PAGES)
