"""`python -m harness vm`: the guest, for people."""

import shutil
import statistics
import subprocess
import sys
import time
from typing import Final

import click

from harness.verdict import BrokenError
from harness.vm.guest import Guest, booted
from harness.vm.image import built_image, cache_directory

# Both processors busy, processes coming and going, memory filled, cgroups made and killed: what
# broke emulators and restored guests before.
STRESS: Final = """
set -e
for i in 1 2; do (while :; do :; done) & done
for i in $(seq 300); do /bin/true; done
python3 -c 'held = [bytearray(2**20) for _ in range(300)]; print(sum(map(len, held)))'
mkdir -p /sys/fs/cgroup/stress
for i in $(seq 20); do
    mkdir /sys/fs/cgroup/stress/$i
    sh -c "echo \\$\\$ > /sys/fs/cgroup/stress/$i/cgroup.procs; sleep 100 & sleep 100" &
done
sleep 1
for i in $(seq 20); do
    echo 1 > /sys/fs/cgroup/stress/$i/cgroup.kill
    until rmdir /sys/fs/cgroup/stress/$i 2>/dev/null; do :; done
done
kill %1 %2
echo STRESSED
"""


@click.group()
def vm() -> None:
    """Build, boot and use a Linux guest with cgroup v2, with or without KVM."""


@vm.command()
def build() -> None:
    """Build the guest's image, if it is not there yet, and tell where it is."""
    click.echo(str(built_image().directory))


@vm.command()
@click.option("--fresh", is_flag=True, help="Boot cold, even when a saved guest is there.")
@click.argument("command", nargs=-1, required=True)
def run(command: tuple[str, ...], *, fresh: bool) -> None:
    """Run a shell COMMAND in a guest, with the project in ~/project, and end with its exit code."""
    with booted("run", fresh=fresh) as guest:
        guest.put_project()
        done = guest.run(" ".join(command), timeout_s=3600)
    click.echo(done.stdout, nl=False)
    click.echo(done.stderr, nl=False, err=True)
    sys.exit(done.exit_code)


@vm.command()
def shell() -> None:
    """Open a shell in a guest, with the project in ~/project; the guest is gone after it."""
    with booted("shell") as guest:
        guest.put_project()
        subprocess.run([*guest.ssh_command(), "-t"], check=False)


@vm.command()
def clean() -> None:
    """Remove all images and saved guests from the cache."""
    shutil.rmtree(cache_directory())


@vm.command()
@click.option("--boots", default=20, show_default=True, help="Cold boots in a row.")
@click.option("--restores", default=20, show_default=True, help="Restores in a row.")
def reliability(boots: int, restores: int) -> None:
    """Boot and restore many times in a row, each with a short stress; fail if one fails."""
    with booted("first"):
        pass  # so that there is a saved guest to restore
    failures = 0
    for fresh, count in ((True, boots), (False, restores)):
        times_s = []
        kind = "cold boot" if fresh else "restore"
        for number in range(1, count + 1):
            up_s, problem = _stressed(fresh=fresh)
            times_s.append(up_s)
            failures += bool(problem)
            click.echo(f"{kind} {number}/{count}: {up_s:.1f} s {problem or 'ok'}")
        if times_s:
            click.echo(
                f"{count} {kind}s: median {statistics.median(times_s):.1f} s, "
                f"slowest {max(times_s):.1f} s"
            )
    click.echo(f"{failures} failures")
    sys.exit(1 if failures else 0)


def _stressed(*, fresh: bool) -> tuple[float, str]:
    """Bring a guest up, stress it, and return how long the first took and what went wrong."""
    started_s = time.monotonic()
    try:
        with booted("stress", fresh=fresh) as guest:
            up_s = time.monotonic() - started_s
            return up_s, _stress(guest, fresh=fresh)
    except BrokenError as error:
        return time.monotonic() - started_s, f"BROKEN {error}"


def _stress(guest: Guest, *, fresh: bool) -> str:
    if guest.restored == fresh:
        return "was booted, not restored" if guest.restored is False else "was restored, not booted"
    said = guest.require(STRESS)
    guest.machine.require_alive()
    return "" if said.rstrip().endswith("STRESSED") else f"stress ended early: {said[-200:]}"
