"""A server without free descriptors, on a real cgroup: jobs end, and no output is lost."""

import pytest

from harness.drive.client import Client
from harness.drive.identities import IdentityStore
from harness.host.repository import ROOT
from harness.record.history import Recorder
from harness.targets.guest import GuestTarget
from harness.vm.guest import Guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

OUTPUT_BYTES = 600_000  # more than a log keeps without a descriptor, less than a pipe holds
GO = "/root/no-descriptor-is-left"
WAIT = f"until [ -e {GO} ]; do sleep 0.1; done; "


def set_descriptors(guest: Guest, pid: int | None, maximum: int) -> None:
    """Limit the descriptors of a running process; open ones stay open."""
    guest.require(
        f"python3 -c 'import resource as r; n = r.RLIMIT_NOFILE; "
        f"r.prlimit({pid}, n, ({maximum}, r.prlimit({pid}, n)[1]))'"
    )


def test_jobs_end_without_loss_while_the_server_has_no_free_descriptor(
    guest: Guest, identities: IdentityStore
) -> None:
    target = GuestTarget(guest, identities, ROOT)
    with (
        target.launch() as server,
        Client(server.address, identities.files("admin"), Recorder(), slow=True) as client,
    ):
        script = f"setsid sleep 8652 & head -c {OUTPUT_BYTES} /dev/zero | tr '\\0' x"
        writer = client.must_start("sh", ["-c", WAIT + script])
        glutton = client.must_start("sh", ["-c", WAIT + "tail /dev/zero"])
        lasting = client.must_start("sh", ["-c", "setsid sleep 8653 & sleep 8654"])
        set_descriptors(guest, server.pid, 3)
        guest.require(f"touch {GO}")
        assert client.output(writer) == "x" * OUTPUT_BYTES
        assert client.must_query(writer).exit_code == 0
        client.output(glutton)
        assert client.must_query(glutton).oom_killed
        client.must_stop(lasting, grace_s=0)
        assert guest.run("pgrep -xf 'sleep 865[234]'").stdout == ""
        assert guest.require(f"find {server.cgroup_root} -mindepth 1 -type d") == ""
        set_descriptors(guest, server.pid, 4096)
        assert client.output(client.must_start("echo", ["well"])) == "well\n"
