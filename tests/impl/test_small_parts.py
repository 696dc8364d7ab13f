"""The reactor, the wire, the settings, and what a role's text must be."""

import dataclasses
import datetime as dt
import os
import select
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.v1 import jobworker_pb2 as pb
from worker_service import wire
from worker_service.cgroup import IoMax, Limits, Usage
from worker_service.config import Settings, load_toml, parse_duration, parse_size
from worker_service.errors import (
    ConfigurationError,
    NotPermittedError,
)
from worker_service.identity import Identity, Role, _is_text, authorize
from worker_service.log import Chunk
from worker_service.messages import all_requests
from worker_service.options import _parse_io_max
from worker_service.reactor import READABLE, Reactor

U64 = st.integers(0, 2**64 - 1)


@given(offset=U64, data=st.binary(max_size=300), missed=U64)
def test_hand_made_messages_are_what_protobuf_makes(offset: int, data: bytes, missed: int) -> None:
    encoded = wire.encode_output(Chunk(offset, data, missed))
    expected = pb.StreamLogsResponse(message=data, offset=offset, missed_bytes=missed)
    assert pb.StreamLogsResponse.FromString(encoded) == expected
    assert len(encoded) == len(expected.SerializeToString())


POSITIVE = st.none() | st.integers(1, 2**31)


@given(
    limits=st.builds(
        Limits,
        cpu_millicores=POSITIVE,
        memory_max_bytes=POSITIVE,
        io_weight=POSITIVE,
        io_max=st.lists(st.builds(IoMax, st.text(max_size=9), POSITIVE, POSITIVE)).map(tuple),
        pids_max=POSITIVE,
    )
)
def test_limits_survive_the_wire(limits: Limits) -> None:
    message = wire.limits_to_message(limits)
    assert message is not None
    assert wire.limits_from_message(message) == limits


def test_usage_survives_the_wire_and_has_the_protocols_fields() -> None:
    usage = Usage(*range(1, 10))
    message = wire.usage_to_message(usage)
    assert message is not None
    assert wire.usage_from_message(message) == usage
    assert {field.name for field in pb.ResourceUsage.DESCRIPTOR.fields} == set(Usage.__slots__)


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    running = Reactor("test")
    yield running
    running.stop(10)


def on_reactor(reactor: Reactor, call: Callable[[], object]) -> None:
    """Run something on the reactor's thread and wait for it."""
    done = threading.Event()

    def run() -> None:
        call()
        done.set()

    reactor.call_soon(run)
    assert done.wait(10)


def test_a_timer_fires_and_a_cancelled_one_does_not(reactor: Reactor) -> None:
    fired = threading.Event()
    cancelled = threading.Event()

    def schedule() -> None:
        reactor.call_later(0.01, cancelled.set).cancel()
        reactor.call_later(0.02, fired.set)

    on_reactor(reactor, schedule)
    assert fired.wait(10)
    assert not cancelled.is_set()


def test_a_readable_descriptor_calls_back_until_it_is_unwatched(reactor: Reactor) -> None:
    read_fd, write_fd = os.pipe()
    calls: list[bytes] = []
    twice = threading.Event()

    def readable() -> None:
        calls.append(os.read(read_fd, 1))
        if len(calls) == 2:
            reactor.unwatch(read_fd)
            twice.set()

    on_reactor(reactor, lambda: reactor.watch(read_fd, READABLE, readable))
    os.write(write_fd, b"abc")
    assert twice.wait(10)
    on_reactor(reactor, lambda: None)
    assert calls == [b"a", b"b"]
    os.close(read_fd)
    os.close(write_fd)


def test_a_callback_that_fails_does_not_end_the_others(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise KeyError("no such key")

    reactor.call_soon(fail)
    on_reactor(reactor, lambda: None)
    assert "KeyError" in caplog.text


def test_work_for_a_reactor_that_has_ended_goes_nowhere() -> None:
    reactor = Reactor("ended")
    reactor.stop(10)
    # Descriptors get the lowest free numbers, the reactor's own among them if it gave it back.
    strangers = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(20)]
    try:
        reactor.call_soon(lambda: None)
        assert select.select(strangers, [], [], 0) == ([], [], [])
    finally:
        for fd in strangers:
            os.close(fd)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("65536", 65536), ("64KiB", 65536), ("64k", 65536), ("64kB", 64000),
     ("1.5 MiB", 1572864), ("100MB", 10**8), ("1G", 2**30)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.5", 0.5), ("5ms", 0.005), ("20s", 20), ("10min", 600), ("10m", 600), ("1h", 3600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "-1", "1e9999", "nan", "5 parsecs", "KiB", "1__0"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8:0:rbps=1MiB,wiops=100", IoMax("8:0", 2**20, None, None, 100)),
        ("/dev/vda:wbps=5", IoMax("/dev/vda", None, 5)),
    ],
)
def test_io_ceilings(text: str, expected: IoMax) -> None:
    assert _parse_io_max(text) == expected


@pytest.mark.parametrize("text", ["", "8:0", "/dev/vda", "/dev/vda:rbps", "/dev/vda:speed=1"])
def test_what_is_no_ceiling_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example"):
        _parse_io_max(text)


def test_the_defaults_are_the_originals() -> None:
    settings = Settings()
    assert (settings.keepalive_time, settings.keepalive_timeout) == (600, 20)
    assert settings.max_connection_idle == 1800


def test_a_settings_file_that_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    with pytest.raises(ConfigurationError, match="No such file"):
        load_toml(path)
    path.write_text("max-streams = \n")
    with pytest.raises(ConfigurationError) as error:
        load_toml(path)
    assert isinstance(error.value.__cause__, tomllib.TOMLDecodeError)


@pytest.mark.parametrize("listen", ["x", ":1", "host:", "host:99999", "host:-1"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(ConfigurationError, match="must be HOST:PORT"):
        Settings(listen=listen)


def test_every_setting_says_what_it_is() -> None:
    for field in dataclasses.fields(Settings):
        assert field.metadata["help"].endswith(".")


@pytest.mark.parametrize(
    ("der", "expected"),
    [
        (b"\x0c\x05Admin", True), (b"\x13\x04User", True), (b"\x16\x01x", True),
        (b"", False), (b"\x0c", False), (b"\x0c\x00", False), (b"\x0c\x01 ", False),
        (b"\x0c\x06Admin", False), (b"\x0c\x04Admin", False), (b"\x02\x01\x01", False),
        (b"\x0c\x01\xff", False), (b"\x0c\x81\x05Admin", False), (b"Admin", False),
    ],
)  # fmt: skip
def test_a_roles_text_is_one_string_of_der_with_something_in_it(der: bytes, expected: bool) -> None:
    assert _is_text(der) is expected


def test_a_method_that_nobody_listed_is_refused() -> None:
    now = dt.datetime.now(dt.UTC)
    admin = Identity(1, now, now, Role.ADMIN)
    assert authorize(admin, "/jobworker.v1.JobWorker/StartJob") is Role.ADMIN
    with pytest.raises(NotPermittedError):
        authorize(admin, "/jobworker.v1.JobWorker/AddedTomorrow")


class _ResetBehindItsEnd:
    """Requests as gRPC hands them out of a call that is reset: an end, and the reset behind it."""

    def __init__(self) -> None:
        self._left: list[object] = ["a request", StopIteration(), grpc.RpcError("reset")]

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        answer = self._left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_requests_that_a_reset_ends_do_not_pass_for_requests_that_ended() -> None:
    requests = all_requests(_ResetBehindItsEnd())
    assert next(requests) == "a request"
    with pytest.raises(grpc.RpcError, match="reset"):
        next(requests)
    assert list(all_requests(iter(["a request"]))) == ["a request"]
