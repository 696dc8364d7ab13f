"""The server's use of its settings: gRPC's options, batching, the address that it connects to."""

import threading
from dataclasses import fields
from typing import Final

import pytest

from tests.support.log import append
from tests.support.service import Certificates, running_server
from worker_service.config import Settings
from worker_service.follow import ByteBudget, follow
from worker_service.log import Chunk, OutputLog
from worker_service.rule import Kind, Rule
from worker_service.server import batching, channel_options, reachable_host

NUMBERS: Final = frozenset({Kind.SIZE, Kind.DURATION, Kind.NUMBER})


def bounds(*, highest: bool) -> dict[str, float]:
    """Return every number among the settings at its lowest or highest accepted value."""
    rules: dict[str, Rule] = {each.name: each.metadata["rule"] for each in fields(Settings)}
    return {
        name: rule.highest if highest else rule.lowest
        for name, rule in rules.items()
        if rule.kind in NUMBERS
    }


def test_server_starts_with_every_setting_at_its_bound(certificates: Certificates) -> None:
    for highest in (False, True):
        extremes = bounds(highest=highest)
        assert all(
            -(2**31) <= value < 2**31
            for _, value in channel_options(Settings(**extremes))  # type: ignore[arg-type]
        )
        with running_server(certificates, **extremes) as server:
            server.stop(grace_s=0)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "127.0.0.1", "localhost"])  # noqa: S104
def test_server_connects_to_the_address_that_it_listens_on(
    certificates: Certificates, host: str
) -> None:
    with running_server(certificates, listen=f"{host}:0") as server:
        assert server.address == f"{host}:{server.port}"


@pytest.mark.parametrize(
    ("host", "reachable"),
    [("10.0.0.0", "10.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("[::]", "127.0.0.1")],  # noqa: S104
)
def test_reachable_host_replaces_only_the_unspecified_addresses(host: str, reachable: str) -> None:
    assert reachable_host(host) == reachable


@pytest.mark.parametrize(
    ("settings", "flush_bytes"),
    [
        (Settings(), 256 * 1024),
        (Settings(message_size=65536), 65536),
        (Settings(log_retention=100_000), 50_000),
        (Settings(log_retention=1), 1),
        (Settings(log_retention=2**30), 256 * 1024),
    ],
)
def test_flush_size_is_at_most_a_message_and_half_of_the_retention(
    settings: Settings, flush_bytes: int
) -> None:
    assert batching(settings).flush_bytes == flush_bytes


def test_reader_that_keeps_up_misses_nothing_of_a_retention_below_the_flush_size() -> None:
    settings = Settings(log_retention=100_000, flush_interval=60.0)
    log = OutputLog(settings.log_retention)
    received = threading.Event()
    wanted_offset = 0
    chunks: list[Chunk] = []

    def read() -> None:
        lease = lambda: 3600.0  # noqa: E731 - a certificate that stays valid
        for chunk in follow(log.reader_at(0), batching(settings), ByteBudget(2**20), lease=lease):
            chunks.append(chunk)
            if chunk.offset + len(chunk.data) == wanted_offset:
                received.set()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        wanted_offset += 50_000
        append(log, bytes(50_000))
        assert received.wait(10)
        received.clear()
    log.close()
    reader.join()
    assert [chunk.missed_bytes for chunk in chunks] == [0] * len(chunks)
    assert sum(len(chunk.data) for chunk in chunks) == 500_000
