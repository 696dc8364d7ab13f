"""`vagrant up && make verify` by an unprivileged user, in a machine of the project's own box.

It installs Debian packages, and needs no registry of boxes. Settings for this test alone are in the
box (harness/vm/box-vagrantfile-session); the Vagrantfile is the ordinary one. The processor may be
emulated, so only a few checks run; a broken server shows that they can fail.
"""

import datetime as dt
import json
import os
from collections.abc import Iterator

import pytest

from harness.host.packages import ensure_programs
from harness.vm.box import PUBLIC_NAME, ensure_box
from tests.support.visitor import ROOT, Visitor, create_visitor

pytestmark = [pytest.mark.vagrant, pytest.mark.timeout(5400)]

PROGRAMS = {
    "vagrant": "vagrant",
    "/usr/share/doc/vagrant-libvirt": "vagrant-libvirt",
    "libvirtd": "libvirt-daemon",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so":
        "libvirt-daemon-driver-qemu",
    "qemu-system-x86_64": "qemu-system-x86",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "setpriv": "util-linux",
}  # fmt: skip

# Some of each area; most are of limits, which depend on the machine's kernel.
CHECKS = (
    "identity.roles", "lifecycle.exit-codes", "streams.late-joiner", "streams.live",
    "limits.defaults", "limits.cpu-half-core", "limits.memory", "limits.fork-bomb",
    "limits.born-inside", "limits.daemons-at-stop", "limits.leftovers", "limits.no-cgroup2",
)  # fmt: skip
AGAIN = ("limits.defaults", "streams.late-joiner")
# A server whose jobs have no ceiling on memory.
BREAK = 'sed -i \'s/("memory.max", str/("memory.low", str/\' impl/worker_service/cgroup.py'

MAKE_FAILED = 2  # make's exit code; its last line has the command's


@pytest.fixture
def visitor() -> Iterator[Visitor]:
    now = dt.datetime.now(dt.UTC)
    log = ROOT / "results" / f"vagrant-{now:%Y%m%dT%H%M%SZ}.log"
    with create_visitor(log) as user:
        try:
            yield user
        finally:
            user.run("vagrant destroy -f", 300)


def verdicts(visitor: Visitor, name: str = "latest") -> dict[str, str]:
    report = json.loads((visitor.checkout / "results" / name / "results.json").read_text())
    return {f"{each['target']}:{each['name']}": each["verdict"] for each in report["results"]}


def only(names: tuple[str, ...]) -> str:
    return "-k '^(" + "|".join(names).replace(".", "[.]") + ")(?![a-z-])'"


def test_vagrant_up_and_make_verify(visitor: Visitor) -> None:
    ensure_programs(PROGRAMS)
    assert os.geteuid() == 0, "building the box and switching users needs root"
    box = ensure_box(session=True, out=visitor.home / "box")

    def must(command: str, timeout_s: float, code: int = 0) -> str:
        done = visitor.run(command, timeout_s)
        assert done.returncode == code, done.stdout[-3000:]
        return done.stdout

    must(f"vagrant box add {box.catalogue}", 300)
    assert f"{PUBLIC_NAME} (libvirt, {box.version})" in must("vagrant box list", 60)
    must("make setup", 600)

    must("vagrant up", 1800)
    output = must("vagrant ssh -c 'id -un; cat /sys/fs/cgroup/cgroup.controllers'", 120)
    assert "vagrant" in output
    assert {"cpu", "memory", "io", "pids"} <= set(output.split())

    said = must(f'make verify ARGS="{only(CHECKS)}"', 3600)
    assert "verifying in the Vagrant machine: a Vagrant machine of this checkout runs (li" in said
    assert verdicts(visitor) == {f"local:{name}": "PASS" for name in CHECKS}
    inside = f'make verify ARGS="{only(AGAIN[:1])}"'.replace("'", "'\\''")
    said = must(f"vagrant ssh -c 'cd /vagrant && {inside}'", 1200)
    assert "verifying on this host: this machine was provisioned for running checks" in said
    assert "1 PASS" in said

    must("vagrant halt", 600)
    said = must(f'make verify ARGS="--in vagrant {only(AGAIN)}"', 300, code=MAKE_FAILED)
    assert "no Vagrant machine of this checkout runs; start it: vagrant up" in said
    must("vagrant up", 1800)
    must(f'make verify ARGS="{only(AGAIN)}"', 1800)
    assert verdicts(visitor) == {f"local:{name}": "PASS" for name in AGAIN}

    must(BREAK, 10)
    said = must(f'make verify ARGS="{only(("limits.memory",))}"', 1800, code=MAKE_FAILED)
    assert "verify] Error 1" in said
    assert verdicts(visitor) == {"local:limits.memory": "FAIL"}

    must("vagrant destroy -f", 300)
    said = must('make verify ARGS="--in vagrant"', 300, code=MAKE_FAILED)
    assert "verify] Error 2" in said
    assert [words for words in visitor.processes().values() if "qemu" in words] == []
