"""Metrics for Prometheus: the server's state at the moment of a scrape, by HTTP on a loopback port.

Nothing is counted for the metrics' sake while jobs run and output is sent: each scrape reads what
the server knows anyway. docs/metrics.md lists the metrics.

Bounds: one connection at a time, on one thread; others wait in a backlog of five. A connection is
closed `ANSWER_MAX_S` after it was accepted, whatever its client does. A request line has at most
64 KiB, and so has each of at most 100 headers (Python's http.server).
"""

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import HTTPServer
from socketserver import TCPServer
from typing import Any, Final, Protocol, override

from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker_service.audit import CallCounts
from worker_service.errors import ConfigurationError
from worker_service.follow import Admission, ByteBudget, Readers
from worker_service.rule import split_address
from worker_service.timers import Timers
from worker_service.worker import Worker

logger = logging.getLogger(__name__)

# From the accepted connection to its end: a scrape of a server with a thousand streams takes
# milliseconds. Silent connections delay others: the queue of the kernel is six long, and Prometheus
# gives up after 10 s.
ANSWER_MAX_S: Final = 1.0
_END_MAX_S: Final = 5.0
_ACCEPT_RETRY_S: Final = 1.0


class Certificates(Protocol):
    """The server's certificates; see `tls.Reloader`."""

    def expiries_s(self) -> Mapping[str, float]:
        """Return when each expires, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What the metrics are read from; each may be read by any thread."""

    worker: Worker
    calls: CallCounts
    streams: Admission
    readers: Readers
    budget: ByteBudget
    certificates: Certificates


class StateCollector(Collector):
    """Reads the metrics from their sources at each scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    @override
    def collect(self) -> Iterator[Metric]:
        yield from self._jobs()
        yield from self._calls()
        yield from self._output()
        expiry = GaugeMetricFamily(
            "jobworker_certificate_expiry_timestamp_seconds",
            "When the certificates in use expire; of several CAs, the one that is valid longest.",
            labels=["certificate"],
        )
        for name, at_s in self._sources.certificates.expiries_s().items():
            expiry.add_metric([name], at_s)
        yield expiry

    def _jobs(self) -> Iterator[Metric]:
        counts = self._sources.worker.counts()
        jobs = GaugeMetricFamily(
            "jobworker_jobs", "Jobs that the server knows, by state.", labels=["state"]
        )
        for state, number in counts.kept.items():
            jobs.add_metric([state], number)
        yield jobs
        yield CounterMetricFamily(
            "jobworker_jobs_started", "Jobs that were started.", value=counts.started
        )
        ended = CounterMetricFamily(
            "jobworker_jobs_ended", "Jobs that have ended, by outcome.", labels=["outcome"]
        )
        for outcome, number in counts.ended.items():
            ended.add_metric([outcome], number)
        yield ended
        yield GaugeMetricFamily(
            "jobworker_output_memory_bytes", "Output that is kept in memory, of all jobs.",
            value=counts.output_bytes,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "jobworker_output_memory_max_bytes", "Its bound, --output-memory.",
            value=counts.output_max_bytes,
        )  # fmt: skip

    def _calls(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "jobworker_calls", "Calls that have ended, by rpc and status.", labels=["rpc", "code"]
        )
        refusals = CounterMetricFamily(
            "jobworker_refusals", "Calls that the server ended with an error, by its kind.",
            labels=["rpc", "code", "reason"],
        )  # fmt: skip
        sums: dict[tuple[str, str], int] = {}
        for (rpc, code, reason), number in sorted(self._sources.calls.ended().items()):
            sums[rpc, code] = sums.get((rpc, code), 0) + number
            if reason:
                refusals.add_metric([rpc, code, reason], number)
        for labels, number in sums.items():
            calls.add_metric(labels, number)
        yield calls
        yield refusals

    def _output(self) -> Iterator[Metric]:
        sources = self._sources
        counts = sources.readers.counts()
        for name, text, value in (
            ("jobworker_streams", "Streams that are open.", sources.streams.taken()),
            ("jobworker_streams_max", "Their bound, --max-streams.", sources.streams.maximum),
            ("jobworker_stream_lag_bytes", "Output that open streams have still to get, in all.",
             counts.behind_bytes),
            ("jobworker_stream_lag_max_bytes", "The same, of the stream that is behind most.",
             counts.behind_max_bytes),
            ("jobworker_in_flight_bytes", "Output in unsent messages.",
             sources.budget.held_bytes()),
            ("jobworker_in_flight_max_bytes", "Their bound for all streams, --in-flight.",
             sources.budget.limit_bytes),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, text, value=value)
        yield CounterMetricFamily(
            "jobworker_sent_bytes", "Output that was sent to streams.", value=counts.read_bytes
        )


class MetricsServer:
    """Serves the metrics until it is closed.

    Args:
        address: HOST:PORT, a loopback address; port 0 picks one.
        sources: what is served.

    Raises:
        ConfigurationError: the address cannot be used.
    """

    def __init__(self, address: str, sources: Sources) -> None:
        registry = CollectorRegistry()
        registry.register(StateCollector(sources))
        ProcessCollector(registry=registry)
        self._timers = Timers()
        try:
            self._http = _HttpServer(address, registry, self._timers)
        except OSError as error:
            self._timers.close()
            raise ConfigurationError(
                f"cannot listen on {address}: {error.strerror}; choose another with --metrics"
            ) from error
        self.port: int = self._http.server_port
        self._thread = threading.Thread(target=self._http.run, name="metrics", daemon=True)
        self._thread.start()
        logger.info("metrics on port %d of %s", self.port, address)

    def close(self) -> None:
        """Stop serving, within seconds, in the middle of an answer if need be."""
        self._http.end()
        self._thread.join(_END_MAX_S)
        self._timers.close()
        self._http.server_close()


class _HttpServer(HTTPServer):
    """One connection at a time, each with a time limit.

    Shared state: `_ending` is an event; `_connection` is one reference, written by the thread that
    runs, which `end` reads after it has set `_ending`, so that it finds any connection that began
    before.
    """

    allow_reuse_port = False  # otherwise two servers could share a port

    def __init__(self, address: str, registry: CollectorRegistry, timers: Timers) -> None:
        host, port = split_address(address)
        if host.startswith("["):
            self.address_family = socket.AF_INET6
        self._timers = timers
        self._ending = threading.Event()
        self._connection: socket.socket | None = None
        super().__init__((host.strip("[]"), port), MetricsHandler.factory(registry))

    @override
    def server_bind(self) -> None:
        # The base class would look up the host's name, for as long as a resolver takes.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def run(self) -> None:
        """Serve until `end`; nothing polls, as `serve_forever` does."""
        while not self._ending.is_set():
            self.handle_request()

    def end(self) -> None:
        """Make `run` return."""
        self._ending.set()
        for each in (self.socket, self._connection):
            if each is not None:
                _shut_down(each)

    @override
    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError:  # no descriptor is left: the connection stays, so this would repeat at once
            self._ending.wait(_ACCEPT_RETRY_S)
            raise

    @override
    def finish_request(self, request: Any, client_address: Any) -> None:
        self._connection = request
        cut: Callable[[], float] = partial(_cut, request)
        try:
            with self._timers.calling(cut, ANSWER_MAX_S):
                if not self._ending.is_set():
                    super().finish_request(request, client_address)
        finally:
            self._connection = None

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, OSError):  # the client was cut off, or has gone
            logger.debug("a request for metrics: %s", error)
        else:
            logger.error("a request for metrics failed", exc_info=error)


def _cut(connection: socket.socket) -> float:
    _shut_down(connection)
    return float("inf")


def _shut_down(connection: socket.socket) -> None:
    """Wake the thread that waits for a socket; one that is closed already has none."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        logger.debug("shutting down a socket of the metrics: %s", error)
