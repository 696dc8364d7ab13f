"""The table of jobs over the API: pages, deletion, expiry, and output that was lost."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from tests.support.command import command_environment, failed, runner, succeeded
from tests.support.service import (
    Certificates,
    channel_for,
    client_for,
    running_server,
    wait_until,
)
from worker_service import service as service_module
from worker_service.client import CallError, Client
from worker_service.server import Server

JOBS = 7
UNKNOWN_ID = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"


@pytest.fixture
def server(certificates: Certificates) -> Iterator[Server]:
    """A server without earlier jobs."""
    with running_server(certificates) as running:
        yield running


@pytest.fixture
def stub(server: Server, certificates: Certificates) -> Iterator[Any]:
    with channel_for(server.address, certificates.admin) as connection:
        yield jobworker_pb2_grpc.JobWorkerStub(connection)


def ended(admin: Client, *words: str) -> str:
    """Run a job to its end."""
    job_id = admin.start(words[0], words[1:])
    for _ in admin.stream(job_id):
        pass
    return job_id


def ids(page: pb.ListJobsResponse) -> list[str]:
    return [job.job_id for job in page.jobs]


@pytest.mark.parametrize("newest_first", [False, True])
def test_client_follows_the_pages(
    admin: Client, monkeypatch: pytest.MonkeyPatch, newest_first: bool
) -> None:
    started = [ended(admin, "true") for _ in range(JOBS)]
    for page_jobs in (1, 3, JOBS, JOBS + 1):
        monkeypatch.setattr(service_module, "_PAGE_JOBS", page_jobs)
        listed = [job.job_id for job in admin.list_jobs(newest_first=newest_first)]
        assert listed == (started[::-1] if newest_first else started)


def test_only_the_last_page_has_no_token(admin: Client, stub: Any) -> None:
    assert stub.ListJobs(pb.ListJobsRequest()) == pb.ListJobsResponse()
    started = [ended(admin, "true") for _ in range(4)]
    first = stub.ListJobs(pb.ListJobsRequest(page_size=2))
    assert ids(first) == started[:2]
    assert first.next_page_token
    last = stub.ListJobs(pb.ListJobsRequest(page_size=2, page_token=first.next_page_token))
    assert (ids(last), last.next_page_token) == (started[2:], "")


@pytest.mark.parametrize("newest_first", [False, True])
def test_deletions_and_starts_between_pages_skip_and_repeat_no_other_job(
    admin: Client, stub: Any, newest_first: bool
) -> None:
    started = [ended(admin, "true") for _ in range(6)]
    order = started[::-1] if newest_first else started
    first = stub.ListJobs(pb.ListJobsRequest(page_size=3, newest_first=newest_first))
    assert ids(first) == order[:3]
    for deleted in (order[0], order[2], order[3]):  # the token's own job, and both neighbours
        admin.delete(deleted)
    newer = ended(admin, "true")
    rest = stub.ListJobs(
        pb.ListJobsRequest(page_token=first.next_page_token, newest_first=newest_first)
    )
    assert ids(rest) == order[4:] + ([] if newest_first else [newer])


def test_page_ends_before_its_size_does_not_fit_a_message(
    admin: Client, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_PAGE_MAX_BYTES", 2500)
    for size in (1000, 1000, 1000, 5000, 5000, 10):
        ended(admin, "true", "x" * size)
    pages = [stub.ListJobs(pb.ListJobsRequest())]
    while (token := pages[-1].next_page_token) and len(pages) < 10:
        pages.append(stub.ListJobs(pb.ListJobsRequest(page_token=token)))
    assert [[len(job.command_args[0]) for job in page.jobs] for page in pages] == [
        [1000, 1000],
        [1000],
        [5000],
        [5000],
        [10],
    ]


def test_largest_default_page_passes_a_default_client(admin: Client, stub: Any) -> None:
    arguments = ["x" * 100_000] * 19  # near what the kernel accepts of one program
    for _ in range(3):
        admin.start("true", arguments)
    token, sizes = "", list[int]()
    while token or not sizes:
        page = stub.ListJobs(pb.ListJobsRequest(page_token=token))
        sizes.append(len(page.jobs))
        assert page.ByteSize() <= 4 * 1024 * 1024
        token = page.next_page_token
    assert sizes == [1, 1, 1]


@pytest.mark.parametrize("token", ["x", "1", "-1", "00000000-1", "{own}", "{own}x", "{own}\u0661"])
def test_token_of_another_answer_is_an_invalid_argument(
    server: Server, admin: Client, stub: Any, token: str
) -> None:
    ended(admin, "true")
    ended(admin, "true")
    own = stub.ListJobs(pb.ListJobsRequest(page_size=1)).next_page_token.partition("-")[0] + "-"
    with pytest.raises(grpc.RpcError) as refused:
        stub.ListJobs(pb.ListJobsRequest(page_token=token.format(own=own)))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "must be the next_page_token of this server's previous answer" in str(refused.value)
    del server


def test_list_filters_by_status(admin: Client) -> None:
    exited, running = ended(admin, "true"), admin.start("sleep", ["100"])
    signaled = ended(admin, "sh", "-c", "kill -9 $$")
    for status, job_id in (("exited", exited), ("running", running), ("signaled", signaled)):
        assert [job.job_id for job in admin.list_jobs(status=status)] == [job_id]
    with pytest.raises(CallError, match="running, exited, signaled") as refused:
        admin.list_jobs(status="Running")
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_list_shows_an_ended_job_as_a_query_does(admin: Client) -> None:
    job_id = ended(admin, "sh", "-c", "exit 3")
    [listed] = admin.list_jobs()
    queried = admin.query(job_id)
    assert listed == replace(
        queried, command=("sh", "-c", "exit 3"), message="", limits=None, usage=None
    )
    assert queried.ended_at is not None


def test_list_shows_which_output_is_kept(certificates: Certificates) -> None:
    with (
        running_server(certificates, log_retention=1000) as server,
        client_for(server.address, certificates.admin) as admin,
    ):
        job_id = ended(admin, "head", "-c", "5000", "/dev/zero")
        [listed] = admin.list_jobs()
        queried = admin.query(job_id)
        assert listed.log_size_bytes == queried.log_size_bytes == 5000
        assert listed.log_first_offset == queried.log_first_offset == 4000
        run = runner(command_environment(server.address, certificates))
        assert "  4000..5000  " in run("list").stdout
        assert run("query", job_id).stdout.splitlines() == [
            f"job with id {job_id} has stopped.",
            "Its output is kept from byte 4000 to 5000.",
        ]


def test_delete_forgets_an_ended_job_only(
    admin: Client, user: Client, certificates: Certificates, server: Server
) -> None:
    running, done = admin.start("sleep", ["100"]), ended(admin, "true")
    for client, job_id, code, text in (
        (user, done, grpc.StatusCode.PERMISSION_DENIED, "DeleteJob"),
        (admin, running, grpc.StatusCode.FAILED_PRECONDITION, "is running; stop it first"),
        (admin, UNKNOWN_ID, grpc.StatusCode.NOT_FOUND, "no job has the id"),
        (admin, "x", grpc.StatusCode.INVALID_ARGUMENT, "must be a UUID"),
    ):
        with pytest.raises(CallError, match=text) as refused:
            client.delete(job_id)
        assert refused.value.code is code
    run = runner(command_environment(server.address, certificates))
    assert failed(run("delete", running), 1, "stop it first", "FAILED_PRECONDITION")
    assert succeeded(run("delete", done), f"job with id {done} deleted.\n")
    assert failed(run("query", done), 3, "NOT_FOUND")
    other = ended(admin, "true")
    assert json.loads(run("delete", "--json", other).stdout) == {"job_id": other, "deleted": True}
    assert [job.job_id for job in admin.list_jobs()] == [running]


def test_open_stream_of_a_deleted_job_gets_the_missed_bytes_and_ends(
    server: Server, admin: Client, user: Client
) -> None:
    size = 64 * 1024 * 1024  # more than any window holds
    job_id = admin.start("head", ["-c", str(size), "/dev/zero"])
    wait_until(lambda: not admin.query(job_id).running, "the job to end")
    stream = user.stream(job_id, timeout_s=60)
    received = len(next(stream).data)
    log = server.worker.log(job_id)
    admin.delete(job_id)
    wait_until(lambda: log.held_bytes() == 0, "the output to be freed")
    missed = 0
    for output in stream:
        received += len(output.data)
        missed += output.missed_bytes
    assert missed > 0
    assert received + missed == size


def test_ended_jobs_expire_and_not_found_names_the_setting(certificates: Certificates) -> None:
    with (
        running_server(certificates, job_ttl=0.2) as server,
        client_for(server.address, certificates.admin) as admin,
    ):
        running, done = admin.start("sleep", ["100"]), ended(admin, "true")
        wait_until(lambda: [job.job_id for job in admin.list_jobs()] == [running], "the expiry")
        with pytest.raises(CallError, match=r"0\.2 s after their end \(--job-ttl\)") as refused:
            admin.query(done)
        assert refused.value.code is grpc.StatusCode.NOT_FOUND


def test_query_reports_lost_output(
    server: Server, admin: Client, certificates: Certificates
) -> None:
    job_id = admin.start("sh", ["-c", "echo kept; sleep 100"])
    next(admin.stream(job_id))
    job = server.worker.find(job_id)
    server.worker._reactor.call_soon(lambda: job.abandon(OSError("no memory")))
    wait_until(lambda: not admin.query(job_id).running, "the job to end")
    queried = admin.query(job_id)
    lost = "output after offset 5 was lost: no memory; the job was killed"
    assert queried.output_error == lost
    assert queried.message == f"ended with signal 9; {lost}"
    assert admin.query(ended(admin, "true")).output_error == ""
    run = runner(command_environment(server.address, certificates))
    assert f"Warning: {lost}.\n" in run("query", job_id).stdout
    done = run("stream", "--no-follow", job_id)
    assert (done.returncode, done.stdout) == (1, "kept\n")
    assert "DATA_LOSS" in done.stderr


def test_command_lists_in_both_orders_and_by_status(
    server: Server, admin: Client, certificates: Certificates
) -> None:
    first, second = ended(admin, "true"), ended(admin, "false")
    running = admin.start("sleep", ["100"])
    run = runner(command_environment(server.address, certificates))

    def listed(*options: str) -> list[str]:
        header, *rows = run("list", *options).stdout.splitlines()
        assert header.startswith("JOB ID ")
        return [row.split()[0] for row in rows]

    assert listed() == [first, second, running]
    assert listed("--newest-first") == [running, second, first]
    assert listed("--newest-first", "--status", "exited") == [second, first]
    assert listed("--status", "signaled") == []
    assert failed(run("list", "--status", "x"), 1, "running, exited, signaled", "INVALID_ARGUMENT")
