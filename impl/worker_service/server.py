"""Assembles the server and runs it until a signal stops it."""

import faulthandler
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from jobworker.v1 import jobworker_pb2, jobworker_pb2_grpc
from worker_service.config import Settings
from worker_service.courier import Courier
from worker_service.deny import DenyList
from worker_service.errors import ConfigurationError, HostExhaustedError
from worker_service.follow import Admission, Batching, ByteBudget
from worker_service.gate import Doorkeeper, Gate, audit
from worker_service.grpc_internals import request_calls
from worker_service.hierarchy import Hierarchy
from worker_service.job_user import JobUser
from worker_service.pool import Pool
from worker_service.rule import split_address
from worker_service.service import JobWorkerService
from worker_service.stderr import StderrHandler
from worker_service.systemd import READY, STOPPING, notify
from worker_service.tls import CertificateFiles, Reloader, check_refuses_tls12
from worker_service.wire import encode_output
from worker_service.worker import Worker, WorkerSettings

if TYPE_CHECKING:  # needs the extra `metrics`
    from worker_service.metrics import MetricsServer

logger = logging.getLogger(__name__)

# How long calls may take to return after all jobs have ended; then they are cancelled.
_CALLS_GRACE_S: Final = 5.0
# And how long gRPC, and then the threads, may take after that to finish them.
_CALLS_END_MAX_S: Final = 10.0
# A running job with limits uses five, an ended one none.
_DESCRIPTORS_BESIDE_STREAMS: Final = 8192
# Threads that only refuse calls while all others are busy, or if the host allows no more.
_SPARE_THREADS: Final = 16
# These, gRPC's own (it aborts without them; by the number of processors up to 24) and the others.
_THREADS_MIN: Final = _SPARE_THREADS + 32
# Of each method, accepted at a time: of a thousand that arrive beside as many streams, the last
# waits 16 rounds of gRPC's queue.
_CALLS_AT_A_TIME: Final = 64
# Calls that wait for that: beyond, gRPC cancels them without a reason (by default from 1000 on, at
# random). As many as the server admits may begin at once, and as many more, to be refused.
_WAITING_CALLS_MIN: Final = 4096
_EVERY_ADDRESS: Final = ("0.0.0.0", "[::]")  # noqa: S104 - compared, not bound
# The signals that stop the server: SIGTERM always; the others unless the server inherits them as
# ignored, which `nohup` does with SIGHUP, and a shell without job control with SIGINT and SIGQUIT
# of its background processes. `serve --help` states the rule.
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SERVICE_NAME: Final = jobworker_pb2.DESCRIPTOR.services_by_name["JobWorker"].full_name


def _calls_max(settings: Settings) -> int:
    return settings.max_streams + 2 * settings.unary_threads + _SPARE_THREADS


def channel_options(settings: Settings) -> list[tuple[str, int]]:
    """Return gRPC's options for a server; `config.Settings` explains what each affects."""

    def milliseconds(seconds: float) -> int:
        return int(seconds * 1000)

    waiting_calls = max(_WAITING_CALLS_MIN, 2 * _calls_max(settings))
    return [
        ("grpc.server.max_pending_requests", waiting_calls),
        ("grpc.server.max_pending_requests_hard_limit", waiting_calls),
        # Otherwise two servers could share one port, and silently split its clients.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", milliseconds(settings.keepalive_time)),
        ("grpc.keepalive_timeout_ms", milliseconds(settings.keepalive_timeout)),
        # gRPC's actual wait for the answer; its default of 60 s would override the above.
        ("grpc.http2.ping_timeout_ms", milliseconds(settings.keepalive_timeout)),
        ("grpc.max_connection_idle_ms", milliseconds(settings.max_connection_idle)),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.max_receive_message_length", settings.max_receive_size),
        ("grpc.http2.lookahead_bytes", settings.stream_window),
        ("grpc.http2.bdp_probe", int(settings.connection_window)),
        ("grpc.http2.max_frame_size", settings.frame_size),
        ("grpc.server_handshake_timeout_ms", milliseconds(settings.handshake_timeout)),
    ]


def reachable_host(host: str) -> str:
    """Return the host to connect to for a host that the server listens on."""
    # gRPC's socket for [::] accepts IPv4, too, even on a host without IPv6.
    return "127.0.0.1" if host in _EVERY_ADDRESS else host


def batching(settings: Settings) -> Batching:
    """Return when a server sends pending output.

    A full message is sent at once, and so is half of the retention: the other half has room for the
    output that arrives before a reader that keeps up has read the first.
    """
    flush_bytes = min(settings.flush_size, settings.message_size)
    if settings.log_retention:
        flush_bytes = max(1, min(flush_bytes, settings.log_retention // 2))
    return Batching(
        flush_interval_s=settings.flush_interval,
        flush_bytes=flush_bytes,
        message_max_bytes=settings.message_size,
    )


class Server:
    """A worker behind gRPC. Construct, `start`, later `stop`; or use it as a context manager.

    Raises:
        ConfigurationError, LimitsUnavailableError: it cannot start; the text says what to change.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._certificates = Reloader(
            CertificateFiles(ca=settings.ca, certificate=settings.cert, key=settings.key)
        )
        denied = settings.deny_serials
        self._doorkeeper = Doorkeeper(DenyList(denied) if denied is not None else None)
        self._hierarchy = Hierarchy.open(settings.cgroup_root) if settings.limits else None
        try:
            self.worker = Worker(
                WorkerSettings(
                    stop_grace_s=settings.stop_grace,
                    job_user=None if settings.job_user is None else JobUser.find(settings.job_user),
                    log_retention_bytes=settings.log_retention or None,
                    output_memory_bytes=settings.output_memory,
                    job_ttl_s=settings.job_ttl,
                ),
                self._hierarchy,
            )
        except BaseException:
            self._close_hierarchy()
            raise
        self.admission = Admission(settings.max_streams)
        self._calls_max = _calls_max(settings)
        self._pool = Pool(self._calls_max, _SPARE_THREADS)
        self._gate = Gate(
            self.admission, self._doorkeeper, settings.unary_threads, self._pool.idle_threads
        )
        self._health = health.HealthServicer(experimental_non_blocking=False)
        self._budget = ByteBudget(settings.in_flight)
        when = batching(settings)
        self._courier = Courier(
            encode_output, when.flush_interval_s, when.flush_bytes, when.message_max_bytes
        )
        self._service = JobWorkerService(
            self.worker, when, self._budget, self._doorkeeper, courier=self._courier
        )
        self._server = self._build()
        self.metrics: MetricsServer | None = None
        try:
            self.metrics = self._serve_metrics()
            self.port = self._listen()
        except ConfigurationError:
            self._close_metrics()
            self._gate.close()
            self._courier.close()
            self._pool.shutdown(wait=False)
            self.worker.close()
            self._close_hierarchy()
            raise
        self._host, _ = split_address(settings.listen)
        self.address = f"{self._host}:{self.port}"

    def start(self) -> None:
        """Start serving. Return once connections are accepted and TLS 1.2 was refused."""
        self._server.start()
        request_calls(self._server, _CALLS_AT_A_TIME)
        logger.info("testing that TLS 1.2 is refused; gRPC logs that as a failed handshake")
        check_refuses_tls12(f"{reachable_host(self._host)}:{self.port}")
        for name in ("", _SERVICE_NAME):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float | None = None) -> bool:
        """End all jobs, which ends their streams, then the calls. Bounded; safe to call twice.

        Returns:
            Whether everything has ended; if not, some threads still run.
        """
        self._health.enter_graceful_shutdown()
        jobs_ended = self._close_worker(grace_s)
        ended = self._end_calls()
        self._pool.shutdown(wait=False, cancel_futures=True)
        emptied = self._pool.join(_CALLS_END_MAX_S)
        self._close_metrics()
        self._gate.close()
        self._courier.close()
        self._close_hierarchy()
        return jobs_ended and ended and emptied

    def _end_calls(self) -> bool:
        """Refuse calls, and cancel after a grace those that have not returned."""
        try:
            return self._server.stop(_CALLS_GRACE_S).wait(_CALLS_GRACE_S + _CALLS_END_MAX_S)
        except RuntimeError:
            logger.exception("the host allows no thread that waits for calls; they are cancelled")
        try:
            self._pool.submit(self._server.stop, None).result(_CALLS_END_MAX_S)
        except TimeoutError:
            return False
        return True

    def _listen(self) -> int:
        listen = self._settings.listen
        try:
            return self._server.add_secure_port(listen, self._certificates.credentials())
        except RuntimeError as error:
            raise ConfigurationError(
                f"cannot listen on {listen}: the port is in use or the address is not on this "
                "machine; choose another with --listen"
            ) from error

    def _close_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
            self.metrics = None

    def _serve_metrics(self) -> "MetricsServer | None":
        if self._settings.metrics is None:
            return None
        try:
            from worker_service.metrics import (  # noqa: PLC0415 - needs an extra
                MetricsServer,
                Sources,
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"--metrics needs the package prometheus-client ({error}): "
                "pip install 'jobworker[metrics]'"
            ) from error
        return MetricsServer(
            self._settings.metrics,
            Sources(
                worker=self.worker,
                calls=self._gate.counts,
                streams=self.admission,
                readers=self._service.readers,
                budget=self._budget,
                certificates=self._certificates,
            ),
        )

    def _close_worker(self, grace_s: float | None) -> bool:
        try:
            self.worker.close(grace_s)
        except TimeoutError:
            logger.exception("the jobs' thread did not end")
            return False
        return True

    def _close_hierarchy(self) -> None:
        if self._hierarchy is not None:
            self._hierarchy.close()
            self._hierarchy = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(grace_s=0)

    def _build(self) -> grpc.Server:
        settings = self._settings
        server = grpc.server(
            self._pool,  # type: ignore[arg-type] # gRPC only submits to it
            interceptors=[self._gate],
            options=channel_options(settings),
            # A call beyond it is refused at once; otherwise it would wait for a thread, unseen.
            maximum_concurrent_rpcs=self._calls_max,
        )
        jobworker_pb2_grpc.add_JobWorkerServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection:
            names = (_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until a signal of `_STOP_SIGNALS`; a second one kills the jobs without waiting.

    Args:
        settings: the server's settings.
        announce: called once with the address, when connections are accepted.

    Raises:
        ConfigurationError, HostExhaustedError, LimitsUnavailableError: it cannot start.
    """
    stop_signals = _prepare_signals()  # before the first thread, which inherits what is blocked
    _require_threads(_THREADS_MIN)
    stderr = StderrHandler()
    try:
        logging.basicConfig(
            handlers=[stderr],
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
        )
        logging.captureWarnings(True)  # otherwise they would wait for standard error
        audit.setLevel(logging.INFO)  # audit lines are written at every log level
        _raise_descriptor_limit(settings.max_streams + _DESCRIPTORS_BESIDE_STREAMS)
        if not _serve(settings, stop_signals, announce):
            _exit_despite_threads(stderr)
    finally:
        stderr.close()


def _serve(
    settings: Settings, stop_signals: set[signal.Signals], announce: Callable[[str], None]
) -> bool:
    """Serve until a signal; return whether everything has ended."""
    server = Server(settings)
    stop_requested = threading.Event()
    threading.Thread(
        target=_wait_for_signals, args=(stop_signals, server.worker, stop_requested),
        name="signals", daemon=True,
    ).start()  # fmt: skip
    if not settings.limits:
        logger.warning(
            "RUNNING WITHOUT LIMITS (--no-limits): jobs can use all CPU, memory and disk, and "
            "processes that leave a job's process group outlive it"
        )
    try:
        server.start()
        announce(server.address)
        notify(READY)
        stop_requested.wait()
    finally:
        notify(STOPPING)
        ended = server.stop()
        logger.info("stopped")
    return ended


def _require_threads(count: int) -> None:
    """Check that the host allows so many threads: gRPC aborts if it cannot start its own.

    Raises:
        HostExhaustedError: it allows fewer.
    """
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, name="room")
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise HostExhaustedError(
            f"the host allows only {len(started)} threads more ({error}), and the server needs "
            f"{count} to start: raise the limit of processes (ulimit -u, pids.max, TasksMax=)"
        ) from error
    finally:
        end.set()
        for thread in started:
            thread.join()


def _prepare_signals() -> set[signal.Signals]:
    """Set what the server needs, whatever it inherited; return the signals that stop it.

    SIGPIPE is not among them: Python ignores it in every process.
    """
    # If it is ignored, the kernel reaps each job's process, and its exit status is lost (wait(2)).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stop_signals = {
        number
        for number in _STOP_SIGNALS
        if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN
    }
    # Blocked in all threads from here on (jobs get a mask of their own), and one thread waits for
    # them. Handlers would interrupt other code and nest, and a signal after their removal kills.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    return stop_signals


def _wait_for_signals(
    stop_signals: set[signal.Signals], worker: Worker, stop_requested: threading.Event
) -> None:
    logger.info("%s: stopping", signal.Signals(signal.sigwait(stop_signals)).name)
    stop_requested.set()
    # A closed terminal sends SIGHUP twice, from the kernel and from the shell: no sign of haste.
    again = signal.Signals(signal.sigwait(stop_signals - {signal.SIGHUP})).name
    logger.info("%s again: killing the jobs that have not ended", again)
    worker.kill_all()


def _exit_despite_threads(stderr: StderrHandler) -> NoReturn:
    """End the process although threads still run: all jobs have ended, so nothing is lost."""
    logger.error(
        "threads still run %s s after the jobs ended; the stack of each:", _CALLS_END_MAX_S
    )
    faulthandler.dump_traceback(all_threads=True)
    stderr.close()
    os._exit(1)


def _raise_descriptor_limit(wanted: int) -> None:
    """Allow one descriptor per stream. Jobs inherit the limit, so it is not unlimited."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logger.warning(
            "descriptors are limited to %d, but --max-streams needs %d; raise the hard limit "
            "(ulimit -Hn, LimitNOFILE=) or lower --max-streams", allowed, wanted,
        )  # fmt: skip
