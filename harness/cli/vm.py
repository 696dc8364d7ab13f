"""`python -m harness vm`: the guest, for people."""

import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click

from harness.host.repository import ROOT
from harness.record.verdict import BrokenError
from harness.vm import persistent_vm
from harness.vm.box import PUBLIC_NAME, built_box
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

# From the start of QEMU's process, with image and saved guest there, to the first command's answer.
COLD_BOOT_MAX_S: Final = 20.0
RESTORE_MAX_S: Final = 8.0


@click.group()
def vm() -> None:
    """Build, boot and use a Linux guest with cgroup v2, with or without KVM."""


@vm.command()
def build() -> None:
    """Build the guest's image, if it is not there yet, and tell where it is."""
    click.echo(str(built_image().directory))


@vm.command()
@click.option(
    "--session",
    is_flag=True,
    help="For a user without rights on the system's libvirt, with or without KVM.",
)
@click.option("--name", default=PUBLIC_NAME, show_default=True, help="What to offer it as.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=ROOT / "build/box",
    help="Where to; default: build/box, which whoever has the checkout may read.",
)  # fmt: skip
def box(name: str, out: Path, *, session: bool) -> None:
    """Build the project's own Vagrant box for libvirt, and a catalogue that offers it."""
    made = built_box(name, session=session, out=out)
    size_mib = made.file.stat().st_size / 1024**2
    click.echo(f"{made.file} ({size_mib:.0f} MiB), {made.name} {made.version}")
    click.echo(f"  vagrant box add {made.catalogue}     then: vagrant up")
    click.echo(f"  or: JOBWORKER_VAGRANT_BOX_URL={made.catalogue} vagrant up")


def _in_standing(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose a guest which stands already."""
    command = click.option(
        "--standing", is_flag=True, help="Use the guest that stands; there must be just one."
    )(command)
    return click.option("--in", "name", metavar="NAME", help="Use the guest of this name.")(command)


@contextmanager
def _some_guest(kind: str, name: str | None, *, standing: bool, fresh: bool) -> Iterator[Guest]:
    """Use a guest that stands, or boot one for as long as the context lasts."""
    if name is not None and standing:
        raise click.UsageError("--in names the guest already; leave --standing out")
    if (name is not None or standing) and fresh:
        raise click.UsageError("--fresh boots a guest of its own; leave out --in and --standing")
    with ExitStack() as stack:
        if name is not None or standing:
            guest = stack.enter_context(persistent_vm.attached(name or persistent_vm.the_only()))
        else:
            guest = stack.enter_context(booted(kind, fresh=fresh))
        guest.put_project()
        yield guest


@vm.command()
@_in_standing
@click.option("--fresh", is_flag=True, help="Boot cold, even when a saved guest is there.")
@click.argument("command", nargs=-1, required=True)
def run(command: tuple[str, ...], *, name: str | None, standing: bool, fresh: bool) -> None:
    """Run a shell COMMAND in a guest, with the project in ~/project, and end with its exit code."""
    with _some_guest("run", name, standing=standing, fresh=fresh) as guest:
        done = guest.run(" ".join(command), timeout_s=3600)
    click.echo(done.stdout, nl=False)
    click.echo(done.stderr, nl=False, err=True)
    sys.exit(done.exit_code)


@vm.command()
@_in_standing
def shell(*, name: str | None, standing: bool) -> None:
    """Open a shell in a guest, with the project in ~/project; one of its own is gone after it."""
    with _some_guest("shell", name, standing=standing, fresh=False) as guest:
        subprocess.run([*guest.ssh_command(), "-t"], check=False)


_PORTS: Final = click.option(
    "--forward", "ports", multiple=True, metavar="PORT", type=click.IntRange(1, 65535),
    help="Make a port of the guest reachable on loopback; may be given more than once.",
)  # fmt: skip


@vm.command()
@_PORTS
@click.option("--fresh", is_flag=True, help="Boot cold, even when a saved guest is there.")
@click.argument("name", default=persistent_vm.DEFAULT_NAME)
def boot(name: str, *, ports: tuple[int, ...], fresh: bool) -> None:
    """Boot a guest that stays, called NAME (by default "guest"), and tell how to reach it."""
    standing = persistent_vm.boot(name, ports, fresh=fresh)
    with persistent_vm.attached(name) as guest:
        guest.put_project()
        command = shlex.join(guest.ssh_command(shared=False))
    click.echo(f"guest {name} is up after {standing.boot_s:.1f} s, the project in ~/project")
    click.echo(f"  python -m harness vm run --in {name} COMMAND")
    click.echo(f"  python -m harness vm shell --in {name}")
    click.echo(f"  {command}")
    for inside, outside in standing.forwards.items():
        click.echo(f"  its port {inside} is 127.0.0.1:{outside}")
    click.echo(f"  python -m harness vm down {name}")


@vm.command(hidden=True)
@_PORTS
@click.option("--fresh", is_flag=True)
@click.argument("name")
def hold(name: str, *, ports: tuple[int, ...], fresh: bool) -> None:
    """Hold a guest that stays; `boot` starts this in the background."""
    persistent_vm.hold(name, ports, fresh=fresh)


@vm.command()
@click.option("--all", "every", is_flag=True, help="End every guest that stays.")
@click.argument("name", required=False)
def down(name: str | None, *, every: bool) -> None:
    """End a guest that stays (by default "guest"), also one that has died, and clean up."""
    if every and name is not None:
        raise click.UsageError("--all ends every guest; leave the name out")
    chosen = persistent_vm.names() if every else [name or persistent_vm.DEFAULT_NAME]
    for each in chosen:
        click.echo(f"guest {each} {persistent_vm.down(each)}")
    if not chosen:
        click.echo("no guest stands")


@vm.command("list")
def list_guests() -> None:
    """List the guests that stay."""
    for name in persistent_vm.names():
        click.echo(f"{name:20} {_described(name)}")


def _described(name: str) -> str:
    try:
        standing = persistent_vm.find(name)
    except BrokenError as error:
        return str(error)
    if standing is None:
        return "booting, or died at it"
    if not standing.is_alive():
        return f"died; `vm down {name}` cleans up"
    up_s = time.time() - standing.booted_at_s
    ports = "".join(f", {inside} is {at}" for inside, at in standing.forwards.items())
    return f"up {up_s:.0f} s, ssh is port {standing.ssh_port}{ports}"


@vm.command()
def clean() -> None:
    """Remove all images, saved guests and boxes from the cache."""
    if standing := persistent_vm.names():
        raise BrokenError(
            f"the cache is in use by the guests {', '.join(standing)}; `vm down --all` ends them"
        )
    for kind in ("vm", "box"):
        shutil.rmtree(cache_directory(kind))


@vm.command()
@click.option("--boots", default=20, show_default=True, help="Cold boots in a row.")
@click.option("--restores", default=20, show_default=True, help="Restores in a row.")
def reliability(boots: int, restores: int) -> None:
    """Boot and restore many times in a row, each with a short stress; fail if one fails or is slow.

    Slow is a cold boot of more than 20 s to the first command, and a restore of more than 8 s.
    Other load on the host counts against them.
    """
    with booted("first"):
        pass  # so that there is a saved guest to restore
    failures = 0
    for fresh, count in ((True, boots), (False, restores)):
        times_s = []
        kind, within_s = ("cold boot", COLD_BOOT_MAX_S) if fresh else ("restore", RESTORE_MAX_S)
        for number in range(1, count + 1):
            up_s, problem = _stressed(fresh=fresh)
            if not problem and up_s > within_s:
                problem = f"is slow: it must be up within {within_s:.0f} s"
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
    started_s, up_s = time.monotonic(), None
    try:
        with booted("stress", fresh=fresh) as guest:
            up_s = time.monotonic() - started_s
            return up_s, _stress(guest, fresh=fresh)
    except BrokenError as error:
        return up_s or time.monotonic() - started_s, f"BROKEN {error}"


def _stress(guest: Guest, *, fresh: bool) -> str:
    if guest.restored == fresh:
        return "was booted, not restored" if guest.restored is False else "was restored, not booted"
    said = guest.require(STRESS)
    guest.machine.require_alive()
    return "" if said.rstrip().endswith("STRESSED") else f"stress ended early: {said[-200:]}"
