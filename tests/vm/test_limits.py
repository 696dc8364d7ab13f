"""Limits that bite, in a real kernel: cgroup v2, processes born inside, everything gone afterwards.

Tolerances are those of the kernel's own cgroup tests, wider where emulation needs it.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.vm.conftest import GuestServer
from worker_service.cgroup import IoMax, Limits
from worker_service.client import CallError, Client, Job

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

ROOT = "/sys/fs/cgroup/jobworker"
MIB = 1024 * 1024
Shell = Callable[[str], str]

CPU_TOLERANCE = 0.15  # of the quota: kselftest takes 10 % for its shortest run
CPU_WINDOW_S = 4.0
IO_TOLERANCE = 0.35  # of the time: a few seconds' transfer in which each started slice counts whole

HOGS = "import os\nfor _ in range({count} - 1):\n    if os.fork() == 0: break\nwhile True: pass"


def output(client: Client, job_id: str) -> str:
    return b"".join(piece.data for piece in client.stream(job_id, timeout_s=120)).decode()


def ended(client: Client, job_id: str) -> Job:
    """Wait for a job's end by following it, and return its final status."""
    output(client, job_id)
    return client.query(job_id)


def start_python(client: Client, program: str, limits: Limits | None = None) -> str:
    return client.start("python3", ["-I", "-S", "-c", program], limits=limits)


def cpu_usage(client: Client, job_id: str) -> int:
    usage = client.query(job_id).usage
    assert usage is not None
    return usage.cpu_usage_us


def test_a_job_has_the_defaults_when_nothing_is_asked(client: Client, in_guest: Shell) -> None:
    job_id = client.start("sleep", ["100"])
    files = "cpu.max memory.max memory.swap.max memory.oom.group io.weight pids.max"
    told = in_guest(f"cd {ROOT}/{job_id} && for f in {files}; do cat $f 2>/dev/null; done")
    assert told.split("\n")[:2] == ["50000 100000", "104857600"]
    assert "default 500" in told
    assert client.query(job_id).limits == Limits(500, 100 * MIB, 500)
    client.stop(job_id, grace_s=0)


def test_a_job_is_in_its_cgroup_at_its_first_instruction_also_many_at_once(
    client: Client,
) -> None:
    def run(_: int) -> tuple[str, str]:
        job_id = client.start("cat", ["/proc/self/cgroup"])
        return job_id, output(client, job_id)

    with ThreadPoolExecutor(10) as pool:
        for job_id, told in pool.map(run, range(50)):
            assert told == f"0::/jobworker/{job_id}\n"


@pytest.mark.parametrize(("millicores", "hogs"), [(500, 1), (1000, 2), (2000, 3)])
def test_cpu_is_held_to_its_quota(client: Client, millicores: int, hogs: int) -> None:
    limits = Limits(cpu_millicores=millicores)
    job_id = start_python(client, HOGS.format(count=hogs), limits)
    before_us, before_s = cpu_usage(client, job_id), time.monotonic()
    time.sleep(CPU_WINDOW_S)  # the measured window itself, not a synchronisation
    after_us, after_s = cpu_usage(client, job_id), time.monotonic()
    cores = (after_us - before_us) / 1e6 / (after_s - before_s)
    usage = client.query(job_id).usage
    client.stop(job_id, grace_s=0)
    expected = millicores / 1000
    # Two cores are all that the guest has, and its emulator has to share them with everybody.
    if expected < 2:
        assert abs(cores - expected) <= CPU_TOLERANCE * expected
        assert usage is not None
        assert usage.cpu_throttled_periods > 0
    else:
        assert 1.2 < cores <= expected * (1 + CPU_TOLERANCE)


def test_too_much_memory_kills_the_whole_job_and_its_status_says_so(
    client: Client, server: GuestServer
) -> None:
    program = "import os\nos.fork()\nheld = bytearray(300 * 2**20)\nwhile True: pass"
    job = ended(client, start_python(client, program, Limits(memory_max_bytes=50 * MIB)))
    assert (job.status, job.signal, job.oom_killed) == ("signaled", 9, True)
    assert "OOM" in job.message
    assert job.usage is not None
    assert job.usage.memory_peak_bytes <= 50 * MIB
    assert client.query(job.job_id).status == "signaled"  # and the server goes on
    assert server.guest.run(f"test -e {ROOT}/{job.job_id}").exit_code == 1


def test_memory_within_the_limit_is_no_trouble(client: Client) -> None:
    program = "held = b'x' * (60 * 2**20); print(len(held))"
    job_id = start_python(client, program, Limits(memory_max_bytes=100 * MIB))
    assert output(client, job_id) == f"{60 * MIB}\n"
    assert client.query(job_id).exit_code == 0


def test_more_processes_than_allowed_cannot_be_forked(client: Client) -> None:
    program = (
        "import os, time\nmade = 0\ntry:\n    while True:\n"
        "        if os.fork() == 0: time.sleep(100)\n        made += 1\n"
        "except BlockingIOError: print(made, flush=True)"
    )
    assert output(client, start_python(client, program, Limits(pids_max=5))) == "4\n"


def test_a_fork_bomb_is_ended_while_the_server_answers(client: Client, in_guest: Shell) -> None:
    limits = Limits(pids_max=200, memory_max_bytes=200 * MIB)
    job_id = client.start("sh", ["-c", "bomb() { bomb | bomb & }; bomb; sleep 100"], limits=limits)
    for _ in range(3):
        assert client.query(job_id).job_id == job_id
    started_s = time.monotonic()
    client.stop(job_id, grace_s=0)
    assert time.monotonic() - started_s < 10
    assert in_guest(f"ls -d {ROOT}/{job_id} 2>/dev/null || echo gone") == "gone\n"


def test_a_tree_of_daemons_dies_with_its_job(client: Client, in_guest: Shell) -> None:
    script = "for i in 1 2 3 4 5 6; do setsid sh -c 'setsid sleep 12321 & sleep 12321' & done; wait"
    job_id = client.start("sh", ["-c", script])
    told = ""
    deadline_s = time.monotonic() + 30
    while told.count("\n") < 12 and time.monotonic() < deadline_s:
        told = in_guest("pgrep -f '^sleep 1232[1]' || true")
    assert told.count("\n") == 12
    client.stop(job_id, grace_s=0)
    assert in_guest("pgrep -f '^sleep 1232[1]' || true") == ""


def test_a_daemon_does_not_outlive_the_main_process(client: Client, in_guest: Shell) -> None:
    job_id = client.start("sh", ["-c", "setsid sleep 45654 & echo started; exit 3"])
    started_s = time.monotonic()
    assert output(client, job_id) == "started\n"
    assert time.monotonic() - started_s < 10
    assert client.query(job_id).exit_code == 3
    assert in_guest("pgrep -f '^sleep 4565[4]' || true") == ""


def test_cgroups_that_a_job_makes_are_removed_with_it(client: Client, in_guest: Shell) -> None:
    script = (
        f"cd {ROOT}/$(basename $(cut -d: -f3 /proc/self/cgroup)) && mkdir -p sub/subsub && "
        "echo $$ > sub/subsub/cgroup.procs && echo made && sleep 100"
    )
    job_id = client.start("sh", ["-c", script])
    assert next(client.stream(job_id)).data == b"made\n"
    assert in_guest(f"find {ROOT}/{job_id} -type d").count("\n") == 3
    client.stop(job_id, grace_s=0)
    assert in_guest(f"ls {ROOT} | grep {job_id} || true") == ""


def test_300_jobs_leave_no_cgroup(client: Client, in_guest: Shell) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda _: client.start("true"), range(300)))
        finals = list(pool.map(lambda job_id: ended(client, job_id), jobs))
    assert {(job.status, job.exit_code) for job in finals} == {("exited", 0)}
    assert in_guest(f"find {ROOT} -mindepth 1 -type d") == ""


def test_writing_is_held_to_its_bytes_a_second(client: Client) -> None:
    limits = Limits(io_max=(IoMax("/dev/vdc", write_bytes_per_second=MIB),))
    words = ["if=/dev/zero", "of=/dev/vdc", "bs=64k", "count=64", "oflag=direct"]
    job = ended(client, client.start("dd", words, limits=limits))
    assert job.exit_code == 0
    assert job.started_at is not None
    assert job.ended_at is not None
    seconds = (job.ended_at - job.started_at).total_seconds()
    assert seconds == pytest.approx(4.0, rel=IO_TOLERANCE)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(cpu_millicores=0), grpc.StatusCode.INVALID_ARGUMENT),
        (Limits(io_weight=10_001), grpc.StatusCode.INVALID_ARGUMENT),
        (Limits(io_max=(IoMax("/dev/nope", 1),)), grpc.StatusCode.INVALID_ARGUMENT),
        (Limits(io_max=(IoMax("250:250", 1),)), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_a_limit_that_cannot_be_is_refused_and_leaves_nothing(
    client: Client, in_guest: Shell, limits: Limits, code: grpc.StatusCode
) -> None:
    with pytest.raises(CallError) as refused:
        client.start("true", limits=limits)
    assert refused.value.code is code
    assert in_guest(f"find {ROOT} -mindepth 1 -type d") == ""


def test_twenty_limited_jobs_keep_their_own_limits(client: Client, in_guest: Shell) -> None:
    jobs = {
        client.start("sleep", ["100"], limits=Limits(cpu_millicores=10 * number)): number
        for number in range(1, 21)
    }
    for job_id, number in jobs.items():
        assert in_guest(f"cat {ROOT}/{job_id}/cpu.max") == f"{1000 * number} 100000\n"
    for job_id in jobs:
        client.stop(job_id, grace_s=0)
