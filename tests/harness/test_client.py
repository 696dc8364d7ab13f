"""The recording client, and the probes of capabilities, with servers that answer oddly."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest

from harness.checks.check import Need, Scale
from harness.drive.client import Client
from harness.drive.identities import IdentityStore, make_identities
from harness.drive.receiver import StreamPlan
from harness.host.cert_files import CertFiles  # noqa: TC001
from harness.host.ports import free_port
from harness.record.history import Outcome, Recorder
from harness.record.verdict import BrokenError, UnmetError
from harness.run.capabilities import probe_capabilities
from harness.targets.address import AddressTarget
from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc

JOB_ID = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"


class OddServer(jobworker_pb2_grpc.JobWorkerServicer):  # type: ignore[misc] # no types
    """Answers each rpc with a given function; it has no jobs."""

    def __init__(self, **answers: Callable[[Any, grpc.ServicerContext], Any]) -> None:
        for rpc, answer in answers.items():
            setattr(self, rpc, answer)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))


@contextmanager
def serving(identities: IdentityStore, odd: OddServer) -> Iterator[str]:
    files: CertFiles = identities.files("server")
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.cert.read_bytes())], files.ca.read_bytes(), True
    )
    with ThreadPoolExecutor(4, thread_name_prefix="rpc_odd") as pool:
        server = grpc.server(pool)
        jobworker_pb2_grpc.add_JobWorkerServicer_to_server(odd, server)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "all_proxy"])
def test_call_never_goes_through_a_proxy_of_the_environment(
    variable: str, identities: IdentityStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    odd = OddServer(QueryJob=lambda _request, _context: pb.QueryJobResponse(status="running"))
    with (
        serving(identities, odd) as address,
        Client(address, identities.files("admin"), Recorder()) as client,
    ):
        assert client.must_query(JOB_ID).status == "running"


def refusing(code: grpc.StatusCode) -> Callable[[Any, grpc.ServicerContext], None]:
    def refuse(_: object, context: grpc.ServicerContext) -> None:
        context.abort(code, "as given")

    return refuse


def test_unavailable_from_a_reached_server_is_a_broken_promise(
    identities: IdentityStore,
) -> None:
    odd = OddServer(StartJob=refusing(grpc.StatusCode.UNAVAILABLE))
    with (
        serving(identities, odd) as address,
        Client(address, identities.files("admin"), Recorder()) as client,
        pytest.raises(UnmetError, match="as given"),
    ):
        client.must_start("true")


def test_deadline_exceeded_is_the_answer_of_a_server_that_gives_it_before_the_deadline(
    identities: IdentityStore,
) -> None:
    odd = OddServer(StopJob=refusing(grpc.StatusCode.DEADLINE_EXCEEDED))
    with (
        serving(identities, odd) as address,
        Client(address, identities.files("admin"), Recorder()) as client,
    ):
        assert client.stop(JOB_ID).call.outcome is Outcome.ERROR
        with pytest.raises(UnmetError, match="got DEADLINE_EXCEEDED: as given"):
            client.must_stop(JOB_ID)


def test_a_server_that_stops_after_an_answer_has_broken_a_promise(
    identities: IdentityStore,
) -> None:
    odd = OddServer(QueryJob=lambda _request, _context: pb.QueryJobResponse(status="running"))
    with ExitStack() as running:
        address = running.enter_context(serving(identities, odd))
        with Client(address, identities.files("admin"), Recorder()) as client:
            client.must_query(JOB_ID)
            running.close()
            with pytest.raises(UnmetError, match="UNAVAILABLE"):
                client.must_query(JOB_ID)


def test_a_server_that_was_never_reached_is_broken(identities: IdentityStore) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    with (
        Client(nowhere, identities.files("admin"), Recorder()) as client,
        pytest.raises(BrokenError, match="cannot be reached"),
    ):
        client.must_start("true")


def _started(_request: object, _context: object) -> pb.StartJobResponse:
    return pb.StartJobResponse(job_id=JOB_ID)


def _one_line(text: bytes) -> Callable[[Any, Any], Iterator[pb.StreamLogsResponse]]:
    def stream(_request: object, _context: object) -> Iterator[pb.StreamLogsResponse]:
        yield pb.StreamLogsResponse(message=text)

    return stream


def _state(**fields: Any) -> Callable[[Any, Any], pb.QueryJobResponse]:
    return lambda _request, _context: pb.QueryJobResponse(status="exited", **fields)


ORIGINAL = {
    "StartJob": _started,
    "QueryJob": _state(),
    "StreamLogs": _one_line(b""),
    "StopJob": lambda _request, _context: pb.StopJobResponse(success=True),
}
INTERNAL = refusing(grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize(
    ("need", "answers", "there"),
    [
        (Need.LIMIT_FIELDS, {}, False),  # ignored, as the original does
        (Need.LIMIT_FIELDS, {"StartJob": refusing(grpc.StatusCode.FAILED_PRECONDITION)}, False),
        (Need.LIMIT_FIELDS, {"StartJob": INTERNAL}, True),
        (Need.LIMIT_FIELDS, {"QueryJob": _state(limits=pb.ResourceLimits(cpu_millicores=1))}, True),
        (Need.CGROUPS, {}, False),
        (Need.CGROUPS, {"QueryJob": _state(limits=pb.ResourceLimits())}, True),
        (Need.JOB_ENVIRONMENT, {}, False),
        (Need.JOB_ENVIRONMENT, {"StreamLogs": _one_line(b"something else\n")}, True),
        (Need.OFFSETS, {}, False),
        (Need.OFFSETS, {"StreamLogs": INTERNAL}, True),
        (Need.LISTING, {}, False),
        (Need.LISTING, {"ListJobs": INTERNAL}, True),
        (Need.GRACE, {"StopJob": INTERNAL}, True),
    ],
)
def test_a_feature_that_fails_is_not_absent(
    need: Need, answers: dict[str, Any], there: bool, identities: IdentityStore
) -> None:
    with serving(identities, OddServer(**(ORIGINAL | answers))) as address:
        target = AddressTarget(address, identities)
        with target.shared() as server:
            found = probe_capabilities(target, server, Scale.FULL)
    assert (found[need] == "") == there, found[need]


def _never_ending(_request: object, context: grpc.ServicerContext) -> Iterator[Any]:
    ended = threading.Event()
    context.add_callback(ended.set)
    yield pb.StreamLogsResponse(message=b"all of it")
    ended.wait()


def _silent_then_more(_request: object, _context: object) -> Iterator[Any]:
    yield pb.StreamLogsResponse(message=b"all ")
    yield pb.StreamLogsResponse(message=b"of it")


@pytest.mark.parametrize("status", ["exited", "signaled"])
def test_output_is_read_although_its_stream_does_not_end(
    status: str, identities: IdentityStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.drive.client.QUIET_S", 0.05)
    query = lambda _request, _context: pb.QueryJobResponse(status=status)  # noqa: E731
    odd = OddServer(StreamLogs=_never_ending, QueryJob=query)
    recorder = Recorder()
    with (
        serving(identities, odd) as address,
        Client(address, identities.files("admin"), recorder) as client,
    ):
        assert client.output(JOB_ID) == "all of it"
    [stream] = recorder.history().streams()
    assert (stream.outcome, stream.code, stream.unended) == (Outcome.OK, "OK", True)
    assert recorder.history().calls() == []  # what the reader asked is no record of the check


def test_end_of_a_stream_is_timed_while_the_server_is_asked_for_its_job(
    identities: IdentityStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.drive.client.QUIET_S", 0.01)
    asked, slow_s = threading.Event(), 3.0

    def ends_when_asked(_request: object, _context: object) -> Iterator[Any]:
        yield pb.StreamLogsResponse(message=b"all of it")
        asked.wait(30)

    def slowly(_request: object, _context: object) -> pb.QueryJobResponse:
        asked.set()
        threading.Event().wait(slow_s)
        return pb.QueryJobResponse(status="exited")

    recorder = Recorder()
    with (
        serving(identities, OddServer(StreamLogs=ends_when_asked, QueryJob=slowly)) as address,
        Client(address, identities.files("admin"), recorder) as client,
    ):
        assert client.output(JOB_ID) == "all of it"
    [stream] = recorder.history().streams()
    assert not stream.unended
    assert stream.ended_s - stream.started_s < slow_s


def test_stream_of_a_running_job_is_awaited_to_its_deadline(
    identities: IdentityStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.drive.client.QUIET_S", 0.05)
    query = lambda _request, _context: pb.QueryJobResponse(status="running")  # noqa: E731
    odd = OddServer(StreamLogs=_never_ending, QueryJob=query)
    with (
        serving(identities, odd) as address,
        Client(address, identities.files("admin"), Recorder()) as client,
        pytest.raises(UnmetError, match="a stream ends with its job; got 9 bytes, no end"),
    ):
        client.stream(JOB_ID, StreamPlan(timeout_s=1))


def test_stream_that_ends_is_not_marked(identities: IdentityStore) -> None:
    recorder = Recorder()
    with (
        serving(identities, OddServer(StreamLogs=_silent_then_more, QueryJob=_state())) as address,
        Client(address, identities.files("admin"), recorder) as client,
    ):
        assert client.output(JOB_ID) == "all of it"
    [stream] = recorder.history().streams()
    assert not stream.unended


@pytest.mark.parametrize(
    ("stream", "statuses"),
    [
        (_silent_then_more, ["running", "running", "exited"]),
        (_never_ending, ["running", "exited", "signaled", "exited"]),
    ],
)
def test_end_of_a_job_is_awaited_without_a_record(
    stream: Callable[[Any, Any], Iterator[Any]],
    statuses: list[str],
    identities: IdentityStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.drive.client.QUIET_S", 0.05)
    left = statuses.copy()
    query = lambda _request, _context: pb.QueryJobResponse(status=left.pop(0))  # noqa: E731
    recorder = Recorder()
    with (
        serving(identities, OddServer(StreamLogs=stream, QueryJob=query)) as address,
        Client(address, identities.files("admin"), recorder) as client,
    ):
        client.wait_ended(JOB_ID)
    assert left == []
    assert recorder.history().records == ()
