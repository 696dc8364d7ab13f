"""The library: start, stop, query, list, stream and delete jobs. Usable without gRPC.

Threads: any number of callers, and one reactor that owns every job's state and is the only
writer of every log. Shared state and its guard: `_jobs`, `_started`, `_ended`, `_starting` and
`_closing` under `_lock`; `_expiring` belongs to the reactor's thread.
"""

import itertools
import logging
import os
import threading
import time
import uuid
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fcntl import F_SETPIPE_SZ, fcntl
from functools import partial
from operator import attrgetter
from typing import Final

from worker_service.cgroup import DEFAULT_LIMITS, Cgroup, Limits
from worker_service.errors import (
    HostExhaustedError,
    InvalidRequestError,
    JobNotFoundError,
    JobRunningError,
    LimitsUnavailableError,
    ShuttingDownError,
    StopTimedOutError,
)
from worker_service.hierarchy import Hierarchy
from worker_service.host_memory import memory_bytes
from worker_service.job import DRAIN_MAX_S, Job, JobStatus, Outcome, State
from worker_service.job_user import JobUser
from worker_service.log import OutputLog
from worker_service.output_memory import OutputMemory
from worker_service.reactor import Reactor
from worker_service.spawn import Child, Command, require_job_user, require_limits_supported, spawn
from worker_service.tree import CgroupTree, GroupTree, ProcessTree

logger = logging.getLogger(__name__)

# The kernel's maximum for unprivileged processes: it holds a burst while the reactor is busy.
PIPE_BYTES: Final = 1024 * 1024
# How long a killed process may take to end: one with a very low CPU limit takes seconds.
KILL_MAX_S: Final = 15.0
GRACE_MAX_S: Final = 3600.0
_RECLAIM_MAX_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of a worker.

    Attributes:
        stop_grace_s: seconds between SIGTERM and SIGKILL if a stop gives none.
        log_retention_bytes: the most recent output kept of each job; None keeps all.
        output_memory_bytes: the most output kept of all jobs together; None is a quarter of the
            memory that this process may use.
        job_user: whom jobs run as; None is the user of this process.
        default_limits: for the limits that a start does not give.
        job_ttl_s: seconds after its end for which a job is known; 0 is forever.
    """

    stop_grace_s: float = 10.0
    log_retention_bytes: int | None = None
    output_memory_bytes: int | None = None
    job_user: JobUser | None = None
    default_limits: Limits = DEFAULT_LIMITS
    job_ttl_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """A worker's jobs and their output at one moment.

    Attributes:
        started: jobs that were started.
        ended: of these, those that ended, by outcome.
        kept: jobs that are known, by state.
        output_bytes: what is kept of all jobs' output.
        output_max_bytes: the bound of `output_bytes`.
    """

    started: int
    ended: Mapping[Outcome, int]
    kept: Mapping[State, int]
    output_bytes: int
    output_max_bytes: int


class Worker:
    """Runs jobs until it is closed.

    Args:
        settings: see `WorkerSettings`.
        hierarchy: where the jobs' cgroups are created; None runs jobs without limits. The caller
            closes it, after the worker.

    Raises:
        LimitsUnavailableError: a hierarchy is given and the C library cannot start processes in it.
        ConfigurationError: no process can be started as the given user.
    """

    def __init__(self, settings: WorkerSettings, hierarchy: Hierarchy | None) -> None:
        if hierarchy is not None:
            require_limits_supported()
            _reclaim(hierarchy)
        if settings.job_user is not None:
            require_job_user(settings.job_user)
        self._settings = settings
        self._hierarchy = hierarchy
        self._lock = threading.Lock()
        self._none_starting = threading.Condition(self._lock)
        self._jobs: dict[str, Job] = {}  # in the order of their numbers
        self._numbers = itertools.count(1)
        self._started = 0
        self._ended = dict.fromkeys(Outcome, 0)
        # When each ended job expires: all live equally long, so they expire in the order of ends.
        self._expiring: deque[tuple[float, str]] = deque()
        self._starting = 0
        self._closing = False
        self._memory = OutputMemory(settings.output_memory_bytes or memory_bytes() // 4)
        self._reactor = Reactor("jobs")

    def start(self, command: Command, limits: Limits | None = None) -> JobStatus:
        """Start a job; the defaults apply to limits that are not given.

        Raises:
            InvalidRequestError, CommandNotFoundError, CannotExecuteError, HostExhaustedError:
                as `spawn.spawn`.
            LimitsUnavailableError: limits are requested and cannot be enforced.
            ShuttingDownError: the worker is closing.
        """
        effective_limits = self._effective_limits(limits)
        with self._lock:
            if self._closing:
                raise ShuttingDownError("the server is shutting down and starts no more jobs")
            self._starting += 1
        try:
            job, status = self._launch(command, effective_limits)
            self._begin(job)
        finally:
            with self._lock:
                self._starting -= 1
                self._none_starting.notify_all()
        return status

    def stop(
        self,
        job_id: str,
        grace_s: float | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> JobStatus:
        """Stop a job's whole tree and return its final status, also of an ended job.

        Args:
            job_id: the job.
            grace_s: seconds between SIGTERM and SIGKILL; None uses the settings'.
            given_up: whether to return the current status early; see `Job.wait_ended`.

        Raises:
            JobNotFoundError, InvalidRequestError: an argument is wrong.
            StopTimedOutError: the job was killed but did not end in time.
        """
        grace_s = self._settings.stop_grace_s if grace_s is None else grace_s
        if not 0 <= grace_s <= GRACE_MAX_S:
            raise InvalidRequestError(
                f"the grace period is {grace_s} s; it must be from 0 to {GRACE_MAX_S} s"
            )
        job = self.find(job_id)
        self._reactor.call_soon(lambda: job.request_stop(grace_s))
        ended = job.wait_ended(grace_s + KILL_MAX_S + DRAIN_MAX_S, given_up)
        if not ended and not given_up():
            raise StopTimedOutError(
                f"job {job_id} was killed {KILL_MAX_S} s ago but has not ended: "
                f"{job.kill_failure or 'the kernel still holds it'}; query it later"
            )
        return job.status()

    def query(self, job_id: str) -> JobStatus:
        """Return a job's status.

        Raises:
            JobNotFoundError, InvalidRequestError: the id is unknown or malformed.
        """
        return self.find(job_id).status_with_usage()

    def list_jobs(
        self, *, after: int | None = None, newest_first: bool = False, state: State | None = None
    ) -> Iterator[tuple[Job, JobStatus]]:
        """Yield the known jobs, each with its status, in the order of their starts.

        Args:
            after: the number of a job, known or not; begin with the one that follows it.
            newest_first: yield them in the opposite order.
            state: only those in this state.
        """
        with self._lock:
            jobs = list(self._jobs.values())
        number = attrgetter("number")
        if newest_first:
            end = len(jobs) if after is None else bisect_left(jobs, after, key=number)
            jobs = jobs[:end][::-1]
        elif after is not None:
            jobs = jobs[bisect_right(jobs, after, key=number) :]
        for job in jobs:
            status = job.status()
            if state is None or status.state is state:
                yield job, status

    def log(self, job_id: str) -> OutputLog:
        """Return a job's log.

        Raises:
            JobNotFoundError, InvalidRequestError: the id is unknown or malformed.
        """
        return self.find(job_id).log

    def delete(self, job_id: str) -> None:
        """Forget an ended job: its record now, its output a moment later.

        Raises:
            JobNotFoundError, InvalidRequestError: the id is unknown or malformed.
            JobRunningError: the job has not ended.
        """
        status = self.find(job_id).status()
        if status.state is State.RUNNING:
            raise JobRunningError(f"job {job_id} is running; stop it first")
        self._forget(status.job_id)

    def running(self) -> int:
        """Return how many jobs have not ended."""
        with self._lock:
            jobs = list(self._jobs.values())
        return sum(not job.wait_ended(0) for job in jobs)

    def counts(self) -> WorkerCounts:
        """Return how many jobs started, ended and are known, and what their output takes."""
        with self._lock:
            started, ended, jobs = self._started, dict(self._ended), list(self._jobs.values())
        kept = Counter(job.status().state for job in jobs)
        return WorkerCounts(
            started=started,
            ended=ended,
            kept={state: kept[state] for state in State},
            output_bytes=self._memory.total_bytes(),
            output_max_bytes=self._memory.limit_bytes,
        )

    def close(self, grace_s: float | None = None) -> None:
        """Refuse new jobs, stop the running ones (see `stop`) and end the threads.

        Logs remain readable. Safe to call twice.
        """
        grace_s = self._settings.stop_grace_s if grace_s is None else grace_s
        with self._lock:
            already_closing, self._closing = self._closing, True
            self._none_starting.wait_for(lambda: self._starting == 0, timeout=KILL_MAX_S)
            jobs = list(self._jobs.values())
        if already_closing:
            return
        for job in jobs:
            self._reactor.call_soon(lambda job=job: job.request_stop(grace_s))  # type: ignore[misc]
        deadline_s = time.monotonic() + grace_s + KILL_MAX_S + DRAIN_MAX_S
        for job in jobs:
            if not job.wait_ended(max(0.0, deadline_s - time.monotonic())):
                logger.error("job %s did not end at shutdown", job.status().job_id)
        self._reactor.stop(timeout_s=KILL_MAX_S)

    def kill_all(self) -> None:
        """Kill all running jobs, without a grace; do not wait for them."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            self._reactor.call_soon(lambda job=job: job.request_stop(0))  # type: ignore[misc]

    def find(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFoundError, InvalidRequestError: the id is unknown or malformed.
        """
        try:
            canonical = str(uuid.UUID(job_id))
        except ValueError as error:
            raise InvalidRequestError(
                f"job_id is {job_id[:100]!r}; it must be a UUID as `start` returned it"
            ) from error
        with self._lock:
            job = self._jobs.get(canonical)
        if job is None:
            forgets = "are forgotten when deleted"
            if self._settings.job_ttl_s:
                forgets += f", and {self._settings.job_ttl_s:g} s after their end (--job-ttl)"
            raise JobNotFoundError(
                f"no job has the id {canonical}; a server knows only jobs since its own start, and "
                f"they {forgets}"
            )
        return job

    def _forget(self, job_id: str) -> None:
        with self._lock:
            job = self._jobs.pop(job_id, None)
        if job is not None:
            self._reactor.call_soon(partial(self._memory.forget, job.log))

    def _on_end(self, job: Job) -> None:
        status = job.status()
        if job.number:  # otherwise the start failed
            with self._lock:
                self._ended[status.outcome] += 1
        ttl_s = self._settings.job_ttl_s
        if ttl_s:
            self._expiring.append((time.monotonic() + ttl_s, status.job_id))
            if len(self._expiring) == 1:
                self._reactor.call_later(ttl_s, self._expire)

    def _expire(self) -> None:
        """Forget the job that expires next, and only this one, so that output does not wait."""
        _, job_id = self._expiring.popleft()
        self._forget(job_id)
        if self._expiring:
            wait_s = self._expiring[0][0] - time.monotonic()
            self._reactor.call_later(max(0.0, wait_s), self._expire)

    def _effective_limits(self, given: Limits | None) -> Limits | None:
        given = given or Limits()
        if self._hierarchy is None:
            if given != Limits():
                raise LimitsUnavailableError(
                    "limits were requested, but this server runs without limits (--no-limits); "
                    "leave them out, or use a server on a cgroup v2 host"
                )
            return None
        given.validate()
        defaults = self._settings.default_limits
        return Limits(
            cpu_millicores=given.cpu_millicores or defaults.cpu_millicores,
            memory_max_bytes=given.memory_max_bytes or defaults.memory_max_bytes,
            io_weight=given.io_weight or defaults.io_weight,
            io_max=given.io_max or defaults.io_max,
            pids_max=given.pids_max or defaults.pids_max,
        )

    def _launch(self, command: Command, limits: Limits | None) -> tuple[Job, JobStatus]:
        """Start the process; on failure leave no pipe, no cgroup and no entry."""
        job_id = str(uuid.uuid4())
        cgroup = self._create_cgroup(job_id, limits)
        # Before the spawn, so that nothing after it can fail.
        tree: ProcessTree = CgroupTree(cgroup) if cgroup is not None else GroupTree()
        started_at_s = time.time()  # this thread may have to wait after the spawn
        try:
            output_fd, tree.main = _spawn_with_pipe(command, cgroup, self._settings.job_user)
        except BaseException:
            tree.discard()
            raise
        status = JobStatus(
            job_id=job_id,
            command=command,
            state=State.RUNNING,
            pid=tree.main.pid,
            started_at_s=started_at_s,
            limits=limits,
        )
        job = Job(
            status,
            process=tree.main,
            tree=tree,
            output_fd=output_fd,
            log=OutputLog(self._settings.log_retention_bytes),
            memory=self._memory,
            scheduler=self._reactor,
            on_end=self._on_end,
        )
        return job, status

    def _begin(self, job: Job) -> None:
        """Make a job known and watch it; on failure, end it and release all that it holds.

        On the starting thread: to wait for the reactor's would take two changes of threads.
        """
        job_id = job.status().job_id
        with self._lock:  # before it can end and expire
            job.number = next(self._numbers)
            self._jobs[job_id] = job
        try:
            failure = job.begin()
        except OSError as error:
            with self._lock:
                job.number = 0
                self._jobs.pop(job_id, None)
            self._reactor.call_soon(partial(job.abandon, error))
            job.wait_ended(KILL_MAX_S + DRAIN_MAX_S)
            self._reactor.call_soon(partial(self._memory.forget, job.log))
            raise HostExhaustedError(
                f"watching the job's end and output: {error.strerror}; the job was killed"
            ) from error
        with self._lock:  # now, since a counter of the metrics must not decrease
            self._started += 1
        if failure is not None:
            self._reactor.call_soon(partial(job.abandon, failure))

    def _create_cgroup(self, job_id: str, limits: Limits | None) -> Cgroup | None:
        if self._hierarchy is None or limits is None:
            return None
        return self._hierarchy.create(job_id, limits)


def _spawn_with_pipe(
    command: Command, cgroup: Cgroup | None, user: JobUser | None
) -> tuple[int, Child]:
    """Start the process with a pipe for its output; return the pipe's read end."""
    try:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise HostExhaustedError(f"a pipe for the job's output: {error.strerror}") from error
    try:
        os.set_blocking(read_fd, False)
        try:
            fcntl(write_fd, F_SETPIPE_SZ, PIPE_BYTES)
        except PermissionError:
            # The user's limit on pipe memory is reached (pipe(7)): this one stays small, and the
            # job only waits more often.
            logger.info("a pipe of %d bytes was refused; the job gets a smaller one", PIPE_BYTES)
        child = spawn(command, write_fd, cgroup, user)
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    return read_fd, child


def _reclaim(hierarchy: Hierarchy) -> None:
    """Kill the jobs that a crashed server left running, and remove their cgroups."""
    for cgroup in hierarchy.leftovers():
        logger.warning("removing cgroup %s of an earlier server", cgroup.path)
        cgroup.kill()
        if not cgroup.wait_empty(_RECLAIM_MAX_S):
            logger.error("cgroup %s still has processes and is kept", cgroup.path)
            continue
        cgroup.remove()
