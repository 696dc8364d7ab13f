"""The systemd unit, as it is delivered, in a guest whose init is systemd."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.drive.client import Client
from harness.drive.identities import IdentityStore
from harness.host.clock import poll_until
from harness.host.repository import ROOT
from harness.payloads import payload
from harness.record.history import Recorder
from harness.vm.guest import Guest, boot_systemd_guest
from jobworker.v1 import jobworker_pb2 as pb
from tests.support.deployment import DEPLOY, SETTINGS, install

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

UNIT = "worker-service.service"
CGROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"
PORT = 50051
MIB = 1024 * 1024
START_TIMEOUT_S = 90.0  # an emulated processor imports gRPC for half a minute
SCRAPE = """
import urllib.request
with urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=20) as answer:
    print(answer.read().decode())
"""


@dataclass(frozen=True, slots=True)
class Service:
    """The unit in a guest, started."""

    guest: Guest
    address: str
    identities: IdentityStore

    def client(self) -> Client:
        return Client(self.address, self.identities.files("admin"), Recorder(), slow=True)

    def property(self, name: str) -> str:
        return self.guest.require(f"systemctl show --value -p {name} {UNIT}").strip()

    def systemctl(self, verb: str) -> None:
        self.guest.require(f"systemctl {verb} {UNIT}", START_TIMEOUT_S)

    def journal(self) -> str:
        self.guest.require("journalctl --sync")
        return self.guest.require(f"journalctl --no-pager -o cat -u {UNIT}")

    def left(self, words: str) -> str:
        """Return the processes with a command line, and the jobs' cgroups."""
        return self.guest.run(
            f"pgrep -xf '{words}'; find {CGROUP}/jobs -mindepth 1 -type d 2>/dev/null"
        ).stdout


@pytest.fixture(scope="module")
def service(identities: IdentityStore) -> Iterator[Service]:
    with boot_systemd_guest("systemd") as guest:
        install(guest, identities)
        install_unit(guest)
        guest.require(f"systemctl start {UNIT}", START_TIMEOUT_S)
        port = guest.forward(PORT)
        yield Service(guest, f"127.0.0.1:{port}", identities)


def install_unit(guest: Guest) -> None:
    # The host reaches the guest by its network.
    config = (DEPLOY / "config.toml").read_text()
    listening = config.replace('listen = "127.0.0.1', 'listen = "0.0.0.0')
    assert listening != config
    guest.put(f"{SETTINGS}/config.toml", listening.encode())
    guest.put(f"/etc/systemd/system/{UNIT}", (DEPLOY / UNIT).read_bytes())
    users = (DEPLOY / "worker-service.sysusers").read_bytes()
    guest.put("/usr/lib/sysusers.d/worker-service.conf", users)
    guest.require("systemd-sysusers && systemctl daemon-reload")


def test_unit_is_verified_without_a_complaint_and_scores_as_documented(service: Service) -> None:
    done = service.guest.run(f"systemd-analyze verify /etc/systemd/system/{UNIT}")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    said = service.guest.run(f"systemd-analyze security --no-pager {UNIT}").stdout
    [score] = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert f"exposure level is {score} " in page, said


def test_server_is_in_a_leaf_beside_its_jobs_and_has_all_controllers(service: Service) -> None:
    pid = service.property("MainPID")
    cgroup = service.guest.require(f"cat /proc/{pid}/cgroup").strip()
    assert cgroup == f"0::/system.slice/{UNIT}/server"
    enabled = service.guest.require(f"cat {CGROUP}/jobs/cgroup.subtree_control").split()
    assert set(enabled) >= {"cpu", "io", "memory", "pids"}


def test_jobs_are_another_user_without_privileges_who_sees_no_home_and_no_key(
    service: Service,
) -> None:
    script = (
        "id -un; grep -h CapBnd /proc/self/status; grep -h NoNewPrivs /proc/self/status; "
        "ls /root 2>&1; cat /etc/worker-service/server.key 2>&1; touch /etc/x 2>&1; "
        "touch /tmp/mine && ls /tmp; cat /proc/self/oom_score_adj"
    )
    with service.client() as client:
        lines = client.output(client.must_start("sh", ["-c", script])).splitlines()
    assert lines[0] == "worker-jobs"
    assert int(lines[1].split()[1], 16) == 0b1110_0011  # chown, dac_override, kill, setgid, setuid
    assert lines[2].split()[1] == "1"
    assert lines[3:] == [
        "ls: cannot open directory '/root': Permission denied",
        "cat: /etc/worker-service/server.key: Permission denied",
        "touch: cannot touch '/etc/x': Read-only file system",
        "mine",
        "0",
    ]


def test_memory_limit_bites_and_the_service_goes_on(service: Service) -> None:
    before = service.property("MainPID")
    with service.client() as client:
        command, words = payload("memory_hog", "200")
        limits = pb.ResourceLimits(memory_max_bytes=64 * MIB)
        job_id = client.must_start(command, words, limits=limits)
        client.output(job_id)
        job = client.must_query(job_id)
        assert client.output(client.must_start("echo", ["alive"])) == "alive\n"
    assert (job.status, job.signal, job.oom_killed) == ("signaled", 9, True)
    assert service.property("ActiveState") == "active"
    assert service.property("MainPID") == before
    assert service.property("NRestarts") == "0"
    scraped = service.guest.require(f"python3 -c '{SCRAPE}'")
    assert 'jobworker_jobs_ended_total{outcome="oom-killed"} 1.0\n' in scraped


def test_pids_limit_bites(service: Service) -> None:
    with service.client() as client:
        command, words = payload("fork_counter")
        job_id = client.must_start(command, words, limits=pb.ResourceLimits(pids_max=5))
        assert client.output(job_id) == "4 11\n"  # EAGAIN


def test_restart_leaves_no_process_and_no_cgroup(service: Service) -> None:
    with service.client() as client:
        job_id = client.must_start("sh", ["-c", "setsid sleep 8642 & exec sleep 8642"])
        poll_until(lambda: service.left("sleep 8642").count("\n") >= 3 or None, 60, "the job")
        assert job_id in service.left("sleep 8642")
    before = service.property("MainPID")
    service.systemctl("restart")
    assert service.left("sleep 8642") == ""
    assert service.property("MainPID") != before
    with service.client() as client:
        assert client.output(client.must_start("echo", ["again"])) == "again\n"


def test_killed_server_is_started_again_and_leaves_no_process_and_no_cgroup(
    service: Service,
) -> None:
    with service.client() as client:
        client.must_start("sh", ["-c", "setsid sleep 8643 & exec sleep 8643"])
    before = service.property("MainPID")
    service.guest.require(f"kill -KILL {before}")

    def again() -> bool | None:
        active = service.property("ActiveState") == "active"
        return True if active and service.property("MainPID") not in {"0", before} else None

    poll_until(again, START_TIMEOUT_S, "the service to be started again")
    assert service.left("sleep 8643") == ""
    assert service.property("NRestarts") == "1"


def test_stop_is_orderly_and_the_journal_has_the_audit(service: Service) -> None:
    with service.client() as client:
        job_id = client.must_start("sh", ["-c", "trap 'exit 7' TERM; sleep 8644 & wait"])
    asked_s = time.monotonic()
    service.systemctl("stop")
    took_s = time.monotonic() - asked_s
    assert service.property("Result") == "success"
    assert service.property("ExecMainStatus") == "0"
    assert took_s < 30  # the job ends at once, so the grace is not used up
    assert service.left("sleep 8644") == ""
    assert service.guest.run(f"ls -d {CGROUP}").stdout == ""
    journal = service.journal()
    assert re.search(rf"rpc=StartJob command='sh' job={job_id} role=admin .* code=OK", journal)
    assert "INFO worker_service.server SIGTERM: stopping" in journal
    assert "INFO worker_service.server stopped" in journal
