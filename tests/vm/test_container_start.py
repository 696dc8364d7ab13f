"""The container's first program, in a cgroup namespace as a container engine makes one.

Not covered: the image and the engine; a guest has no network to fetch them.
"""

import pytest

from harness.drive.client import Client
from harness.drive.identities import IdentityStore
from harness.host.clock import poll_until
from harness.payloads import payload
from harness.record.history import Recorder
from harness.vm.guest import Guest
from jobworker.v1 import jobworker_pb2 as pb
from tests.support.deployment import DEPLOY, SETTINGS, install

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

MIB = 1024 * 1024
CGROUP = "/sys/fs/cgroup/container"
PORT = 50099
PROGRAM = "/usr/local/bin/container-start"
# What an engine and the image's init do: a cgroup for the container, as the root of its namespace,
# mounted writable; an init that waits for the program.
START = f"""\
set -e
mkdir {CGROUP}
echo $$ > {CGROUP}/cgroup.procs
echo $$ > /run/container.pid
exec unshare --cgroup --mount sh -ec '
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    {PROGRAM} --listen 10.0.2.15:{PORT} --ca ca.crt --cert server.crt --key server.key &
    echo $! > /run/server.pid
    wait $!'
"""
LOG = "/run/container.log"
START_TIMEOUT_S = 120.0


def test_server_leaves_the_containers_cgroup_to_its_jobs_whose_limits_bite(
    guest: Guest, identities: IdentityStore
) -> None:
    install(guest, identities)
    guest.put(PROGRAM, (DEPLOY / "container-start").read_bytes(), 0o755)
    guest.put("/run/start", START.encode())
    guest.require(f"cd {SETTINGS} && setsid -f sh /run/start > {LOG} 2>&1 < /dev/null")
    poll_until(
        lambda: "listening on" in guest.require(f"cat {LOG}") or None,
        START_TIMEOUT_S,
        "the server to listen",
        lambda: guest.require(f"cat {LOG}"),
    )
    init, server = (
        guest.require(f"cat /run/{name}.pid").strip() for name in ("container", "server")
    )
    port = guest.forward(PORT)
    try:
        with Client(
            f"127.0.0.1:{port}", identities.files("admin"), Recorder(), slow=True
        ) as client:
            command, words = payload("memory_hog", "200")
            limits = pb.ResourceLimits(memory_max_bytes=64 * MIB)
            job_id = client.must_start(command, words, limits=limits)
            client.output(job_id)
            job = client.must_query(job_id)
            waiting = client.must_start("sleep", ["100"])
            assert (job.status, job.signal, job.oom_killed) == ("signaled", 9, True)
            groups = guest.require(f"cat /proc/{init}/cgroup /proc/{server}/cgroup").split()
            assert groups == ["0::/container/server"] * 2
            assert guest.require(f"cat {CGROUP}/jobs/{waiting}/pids.current").strip() == "1"
    finally:
        guest.end_forward(port)
        guest.require(f"kill -TERM {server}")
        poll_until(
            lambda: guest.run(f"test -e /proc/{init}").exit_code or None, 60, "the server's end"
        )
    assert guest.run(f"ls -d {CGROUP}/jobs").stdout == ""
    guest.require(f"rmdir {CGROUP}/server {CGROUP}")
