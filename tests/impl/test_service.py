"""The rpcs on top of a worker: what they pass on to it, and what they report of it."""

from typing import Any, Final
from unittest import mock

import grpc

from jobworker.v1 import jobworker_pb2 as pb
from worker_service.cgroup import IoMax, Limits, Usage
from worker_service.courier import Courier
from worker_service.follow import Batching, ByteBudget
from worker_service.gate import Doorkeeper
from worker_service.job import JobStatus, State
from worker_service.log import OutputLog
from worker_service.service import JobWorkerService
from worker_service.spawn import Command
from worker_service.worker import Worker

LIMITS: Final = Limits(
    cpu_millicores=370,
    memory_max_bytes=1 << 30,
    io_weight=321,
    io_max=(IoMax("254:0", 1, 2, 3, 4),),
    pids_max=77,
)
LIMITS_MESSAGE: Final = pb.ResourceLimits(
    cpu_millicores=370,
    memory_max_bytes=1 << 30,
    io_weight=321,
    io_max=[
        pb.IoMax(
            device="254:0",
            read_bytes_per_second=1,
            write_bytes_per_second=2,
            read_operations_per_second=3,
            write_operations_per_second=4,
        )
    ],
    pids_max=77,
)
COMMAND: Final = Command("sh", ("-c", "true"), {"NAME": "value"}, "/tmp")  # noqa: S108 - not used
STATUS: Final = JobStatus(
    job_id="761db04c-0150-4f0b-a6fd-5cab9b9a48bf",
    command=COMMAND,
    state=State.SIGNALED,
    pid=123,
    started_at_s=1000.5,
    ended_at_s=1001.25,
    exit_code=3,
    signal=9,
    limits=LIMITS,
    usage=Usage(1, 2, 3, 4, 5, 6, 7, 8, 9),
)
CONTEXT: Final[Any] = mock.create_autospec(grpc.ServicerContext)


def _service(worker: mock.Mock) -> JobWorkerService:
    doorkeeper = mock.create_autospec(Doorkeeper, instance=True)
    courier = mock.create_autospec(Courier, instance=True)
    return JobWorkerService(worker, Batching(), ByteBudget(1 << 20), doorkeeper, courier=courier)


def _worker() -> mock.Mock:
    worker: mock.Mock = mock.create_autospec(Worker, instance=True)
    worker.query.return_value = worker.start.return_value = STATUS
    log = worker.log.return_value = mock.create_autospec(OutputLog, instance=True)
    log.extent.return_value = mock.Mock(first_offset=4000, end_offset=5000)
    log.failure.return_value = "no memory"
    return worker


def test_query_reports_all_that_the_worker_knows_of_a_job() -> None:
    response = _service(_worker()).QueryJob(pb.QueryJobRequest(job_id=STATUS.job_id), CONTEXT)
    assert {field.name for field, _ in response.ListFields()} == set(
        pb.QueryJobResponse.DESCRIPTOR.fields_by_name
    )
    assert (response.status, response.pid) == ("signaled", 123)
    assert (response.exit_code, response.signal, response.oom_killed) == (3, 9, True)
    assert response.started_at.ToNanoseconds() == 1_000_500_000_000
    assert response.ended_at.ToNanoseconds() == 1_001_250_000_000
    assert response.limits == LIMITS_MESSAGE
    assert [value for _, value in response.usage.ListFields()] == list(range(1, 10))
    assert (response.log_first_offset, response.log_size_bytes) == (4000, 5000)
    assert response.output_error == "no memory"


def test_start_passes_on_the_command_and_the_limits() -> None:
    worker = _worker()
    request = pb.StartJobRequest(
        command_name="sh",
        command_args=["-c", "true"],
        environment={"NAME": "value"},
        working_directory="/tmp",  # noqa: S108 - not used
    )
    _service(worker).StartJob(request, CONTEXT)
    worker.start.assert_called_with(COMMAND, None)
    request.limits.CopyFrom(LIMITS_MESSAGE)
    response = _service(worker).StartJob(request, CONTEXT)
    worker.start.assert_called_with(COMMAND, LIMITS)
    assert response.job_id == STATUS.job_id
