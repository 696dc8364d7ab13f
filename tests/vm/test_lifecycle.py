"""Servers that die, hosts without cgroup v2, weights; guests that must never look like a pass."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.clock import poll_until
from harness.verdict import BrokenError
from harness.vm.guest import PYTHONPATH, booted
from tests.vm.conftest import GuestServer
from worker_service.cgroup import IoMax, Limits
from worker_service.client import Client

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

ROOT = "/sys/fs/cgroup/jobworker"
Shell = Callable[[str], str]

# What 64 KiB readers reach with iocost as below: 10 for 1000 to 100; the least that still shows it.
WEIGHT_RATIO_LEAST = 4.0
WEIGHT_WINDOW_S = 4.0
IOCOST_MODEL = (
    "ctrl=user model=linear rbps=4000000 rseqiops=64 rrandiops=64 "
    "wbps=4000000 wseqiops=64 wrandiops=64"
)
IOCOST_QOS = "enable=1 ctrl=user rpct=0 rlat=0 wpct=0 wlat=0 min=100.00 max=100.00"


def bytes_read(client: Client, job_id: str) -> int:
    usage = client.query(job_id).usage
    assert usage is not None
    return usage.io_read_bytes


def test_a_heavier_job_gets_more_of_the_disk(client: Client, in_guest: Shell) -> None:
    [device] = in_guest("cat /sys/block/vdc/dev").split()
    in_guest(f"echo '{device} {IOCOST_MODEL}' > /sys/fs/cgroup/io.cost.model")
    in_guest(f"echo '{device} {IOCOST_QOS}' > /sys/fs/cgroup/io.cost.qos")
    try:
        words = "while :; do dd if=/dev/vdc of=/dev/null bs=64k iflag=direct 2>/dev/null; done"
        light, heavy = (
            client.start("sh", ["-c", words], limits=Limits(io_weight=weight))
            for weight in (100, 1000)
        )
        before = [bytes_read(client, job_id) for job_id in (light, heavy)]
        time.sleep(WEIGHT_WINDOW_S)  # the measured window itself
        after = [bytes_read(client, job_id) for job_id in (light, heavy)]
        for job_id in (light, heavy):
            client.stop(job_id, grace_s=0)
    finally:
        in_guest(f"echo '{device} enable=0' > /sys/fs/cgroup/io.cost.qos")
    read_light, read_heavy = (end - start for start, end in zip(before, after, strict=True))
    assert read_light > 0
    assert read_heavy / read_light >= WEIGHT_RATIO_LEAST


def test_reading_is_held_to_its_operations_a_second(client: Client) -> None:
    limits = Limits(io_max=(IoMax("/dev/vdc", read_operations_per_second=20),))
    words = ["if=/dev/vdc", "of=/dev/null", "bs=4k", "count=80", "iflag=direct"]
    job_id = client.start("dd", words, limits=limits)
    for _ in client.stream(job_id, timeout_s=60):
        pass
    job = client.query(job_id)
    assert job.started_at is not None
    assert job.ended_at is not None
    assert (job.ended_at - job.started_at).total_seconds() == pytest.approx(4.0, rel=0.35)


def test_leftovers_of_a_killed_server_are_reclaimed_by_the_next(
    stopped_server: GuestServer,
) -> None:
    server = stopped_server
    flags = ("--cgroup-root", "/sys/fs/cgroup/second")
    address = f"127.0.0.1:{server.guest.forward(50052)}"
    second = GuestServer(server.guest, server.certificates, address)
    with second.running(*flags, port=50052), second.client() as client:
        jobs = [client.start("sh", ["-c", "setsid sleep 7890 & sleep 7890"]) for _ in range(5)]
        in_guest = server.guest.require

        def sleepers() -> int:
            return in_guest("pgrep -f '^sleep 789[0]' || true").count("\n")

        poll_until(lambda: sleepers() == 10 or None, 30, "ten processes")
        # The shell's own command line must not be found: hence the brackets.
        in_guest("pkill -KILL -f '[c]group-root /sys/fs/cgroup/second'")
        left = in_guest("ls -d /sys/fs/cgroup/second/*-*-*-*-*").split()
        assert {Path(path).name for path in left} == set(jobs)
        assert sleepers() == 10  # and nobody is there to end them
    with second.running(*flags, port=50052):
        assert (
            in_guest("ls -d /sys/fs/cgroup/second/*-*-*-*-* 2>/dev/null || echo none") == "none\n"
        )
        assert sleepers() == 0


def serve_once(server: GuestServer, flags: str) -> str:
    """Start a server that must refuse, and return what it says."""
    done = server.guest.run(
        f"cd project && PYTHONPATH={PYTHONPATH} timeout 60 python3 -m worker_service serve "
        f"--listen 10.0.2.15:50053 --ca /root/ca.crt --cert /root/server.crt "
        f"--key /root/server.key {flags}"
    )
    assert done.exit_code == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_cgroup_root_in_use_is_refused(server: GuestServer) -> None:
    assert "in use by another server" in serve_once(server, f"--cgroup-root {ROOT}")


def test_a_host_without_cgroup_v2_is_refused(server: GuestServer) -> None:
    # A mount namespace in which /sys/fs/cgroup is what it is on a cgroup v1 host: a tmpfs.
    done = server.guest.run(
        "unshare -m sh -c 'mount -t tmpfs none /sys/fs/cgroup && cd project && "
        f"PYTHONPATH={PYTHONPATH} timeout 60 python3 -m worker_service serve "
        "--listen 10.0.2.15:50053 --ca /root/ca.crt --cert /root/server.crt "
        "--key /root/server.key'"
    )
    assert done.exit_code == 1
    assert "no cgroup v2 hierarchy" in done.stderr
    assert "--no-limits" in done.stderr


def test_a_guest_that_dies_is_broken_and_shows_its_console() -> None:
    with booted("dying") as guest:
        guest.run("echo 1 > /proc/sys/kernel/sysrq; (sleep 1; echo c > /proc/sysrq-trigger) &")
        with pytest.raises(BrokenError, match="Kernel panic"):
            guest.run("sleep 60", timeout_s=60)


def test_a_command_that_does_not_end_is_broken() -> None:
    with booted("hanging") as guest, pytest.raises(BrokenError, match="did not end within 1 s"):
        guest.run("sleep 60", timeout_s=1)


def test_two_guests_at_once_do_not_meet() -> None:
    def told(name: str) -> str:
        with booted(name) as guest:
            guest.put("/root/name", name.encode())
            return guest.get("/root/name").decode()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(told, ["one", "two"])) == ["one", "two"]


ORPHAN = """
import os, signal
from harness.vm.guest import booted
with booted("orphan") as guest:
    print(guest.machine.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_guest_does_not_outlive_a_harness_that_is_killed() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=200, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    machine = Path(f"/proc/{int(killed.stdout)}")
    poll_until(lambda: None if machine.exists() else True, 30, "the machine's end")
