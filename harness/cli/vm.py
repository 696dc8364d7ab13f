"""`python -m harness vm`: build, boot and use the VM by hand."""

import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click

from harness.host.processes import run_interactively
from harness.host.repository import ROOT
from harness.program import arguments
from harness.record.verdict import BrokenError
from harness.vm import persistent_vm
from harness.vm.box import PUBLIC_NAME, ensure_box
from harness.vm.guest import Guest, boot_guest
from harness.vm.image import cache_directory, ensure_image

# Busy processors, short processes, full memory, cgroups created and killed: each of these has
# crashed an emulated or restored guest.
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

# From the start of QEMU to the first command's answer, with the image and the saved guest cached.
COLD_BOOT_MAX_S: Final = 20.0
RESTORE_MAX_S: Final = 8.0

PORT: Final = arguments.whole(1, 65535)
COUNT: Final = arguments.whole(0, 1000)


@click.group()
def vm() -> None:
    """Build, boot and use Linux VMs with cgroup v2.

    QEMU runs them with KVM where it works, else by emulation.
    """


@vm.command()
def build() -> None:
    """Build the VM image and print its directory.

    A cached image is not built again.
    """
    click.echo(str(ensure_image().directory))


@vm.command()
@click.option(
    "--session",
    is_flag=True,
    help="Build for a user without access to the system's libvirt, with or without KVM.",
)
@click.option(
    "--name",
    default=PUBLIC_NAME,
    show_default=True,
    metavar="NAME",
    help="The box's name in the catalogue.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=ROOT / "build/box",
    help="Output directory; default: build/box in the checkout.",
)  # fmt: skip
def box(name: str, out: Path, *, session: bool) -> None:
    """Build the project's Vagrant box for libvirt.

    Also writes a catalogue for `vagrant box add`. Needs root.
    """
    built = ensure_box(name, session=session, out=out)
    size_mib = built.file.stat().st_size / 1024**2
    click.echo(f"{built.file} ({size_mib:.0f} MiB), {built.name} {built.version}")
    click.echo(f"  vagrant box add {built.catalogue}     then: vagrant up")
    click.echo(f"  or: JOBWORKER_VAGRANT_BOX_URL={built.catalogue} vagrant up")


def _running_vm_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose a running VM."""
    command = click.option(
        "--running", is_flag=True, help="Use the running VM; exactly one must exist."
    )(command)
    return click.option("--in", "name", metavar="NAME", help="Use the running VM called NAME.")(
        command
    )


_FRESH: Final = click.option(
    "--fresh", is_flag=True, help="Boot cold instead of restoring the saved VM."
)


@contextmanager
def _open_guest(kind: str, name: str | None, *, running: bool, fresh: bool) -> Iterator[Guest]:
    """Connect to a running VM, or boot one that ends with the context."""
    if name is not None and running:
        raise click.UsageError("--in already chooses a VM; leave --running out")
    if (name is not None or running) and fresh:
        raise click.UsageError("--fresh boots a new VM; leave out --in and --running")
    with ExitStack() as stack:
        if name is not None or running:
            chosen = name or persistent_vm.require_only_name()
            guest = stack.enter_context(persistent_vm.attach(chosen))
        else:
            guest = stack.enter_context(boot_guest(kind, fresh=fresh))
        guest.put_project()
        yield guest


@vm.command()
@_running_vm_options
@_FRESH
@click.argument("command", nargs=-1, required=True)
def run(command: tuple[str, ...], *, name: str | None, running: bool, fresh: bool) -> None:
    """Run a shell COMMAND in a VM and exit with its exit code.

    The VM is booted for this command unless --in or --running chooses one. The project is in
    ~/project.
    """
    with _open_guest("run", name, running=running, fresh=fresh) as guest:
        done = guest.run(" ".join(command), timeout_s=3600)
    click.echo(done.stdout, nl=False)
    click.echo(done.stderr, nl=False, err=True)
    sys.exit(done.exit_code)


@vm.command()
@_running_vm_options
def shell(*, name: str | None, running: bool) -> None:
    """Open a shell in a VM.

    The VM is booted for this shell, and ends with it, unless --in or --running chooses one. The
    project is in ~/project.
    """
    with _open_guest("shell", name, running=running, fresh=False) as guest:
        run_interactively([*guest.ssh_command(), "-t"])


_PORTS: Final = click.option(
    "--forward", "ports", multiple=True, metavar="PORT", type=PORT,
    help="Forward a loopback port of this host to PORT of the VM; repeatable.",
)  # fmt: skip


@vm.command()
@_PORTS
@_FRESH
@click.argument("name", default=persistent_vm.DEFAULT_NAME)
def boot(name: str, *, ports: tuple[int, ...], fresh: bool) -> None:
    """Boot a VM that runs until `vm down`.

    NAME is its name (default: guest).
    """
    booted = persistent_vm.boot(name, ports, fresh=fresh)
    with persistent_vm.attach(name) as guest:
        guest.put_project()
        command = shlex.join(guest.ssh_command(shared=False))
    click.echo(f"VM {name} booted in {booted.boot_s:.1f} s; the project is in ~/project")
    click.echo(f"  python -m harness vm run --in {name} COMMAND")
    click.echo(f"  python -m harness vm shell --in {name}")
    click.echo(f"  {command}")
    for inside, outside in booted.forwards.items():
        click.echo(f"  port {inside} of the VM is 127.0.0.1:{outside}")
    click.echo(f"  python -m harness vm down {name}")


@vm.command(hidden=True)
@_PORTS
@click.option("--fresh", is_flag=True)
@click.argument("name")
def hold(name: str, *, ports: tuple[int, ...], fresh: bool) -> None:
    """Boot a VM and wait; `vm boot` starts this in the background."""
    persistent_vm.hold(name, ports, fresh=fresh)


@vm.command()
@click.option("--all", "every", is_flag=True, help="End every running VM.")
@click.argument("name", required=False)
def down(name: str | None, *, every: bool) -> None:
    """End a VM, or clean up after one that has died.

    NAME is its name (default: guest).
    """
    if every and name is not None:
        raise click.UsageError("--all ends every VM; leave NAME out")
    chosen = persistent_vm.names() if every else [name or persistent_vm.DEFAULT_NAME]
    for each in chosen:
        click.echo(f"VM {each} {persistent_vm.down(each)}")
    if not chosen:
        click.echo("no VM is running")


@vm.command("list")
def list_guests() -> None:
    """List running VMs, and dead ones that remain.

    `vm down` removes a dead VM.
    """
    for name in persistent_vm.names():
        click.echo(f"{name:20} {_describe(name)}")


def _describe(name: str) -> str:
    try:
        found = persistent_vm.find(name)
    except BrokenError as error:
        return str(error)
    if found is None:
        return "booting, or failed to boot"
    if not found.is_alive():
        return f"died; `vm down {name}` removes it"
    up_s = time.time() - found.booted_at_s
    ports = "".join(f", port {inside} on port {at}" for inside, at in found.forwards.items())
    return f"up {up_s:.0f} s, ssh on port {found.ssh_port}{ports}"


@vm.command()
def clean() -> None:
    """Remove VM images, saved VMs and boxes from the cache."""
    if running := persistent_vm.names():
        raise BrokenError(
            f"these VMs use the cache: {', '.join(running)}; `vm down --all` ends them"
        )
    for kind in ("vm", "box"):
        shutil.rmtree(cache_directory(kind))


@vm.command()
@click.option("--boots", type=COUNT, default=20, show_default=True, help="Number of cold boots.")
@click.option("--restores", type=COUNT, default=20, show_default=True, help="Number of restores.")
def reliability(boots: int, restores: int) -> None:
    """Boot and restore VMs in a loop, and count failures.

    Each VM runs a short stress test. Exit code 1 if one fails or is too slow: a cold boot must
    answer within 20 s, a restored VM within 8 s. Run it on an idle host.
    """
    with boot_guest("first"):
        pass  # saves the guest that is then restored
    failures = 0
    for fresh, count in ((True, boots), (False, restores)):
        times_s = []
        kind, within_s = ("cold boot", COLD_BOOT_MAX_S) if fresh else ("restore", RESTORE_MAX_S)
        for number in range(1, count + 1):
            up_s, problem = _boot_and_stress(fresh=fresh)
            if not problem and up_s > within_s:
                problem = f"too slow: the limit is {within_s:.0f} s"
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


def _boot_and_stress(*, fresh: bool) -> tuple[float, str]:
    """Boot a guest and stress it; return the boot's duration and the problem, "" if none."""
    started_s, up_s = time.monotonic(), None
    try:
        with boot_guest("stress", fresh=fresh) as guest:
            up_s = time.monotonic() - started_s
            return up_s, _stress(guest, fresh=fresh)
    except BrokenError as error:
        return up_s or time.monotonic() - started_s, f"BROKEN {error}"


def _stress(guest: Guest, *, fresh: bool) -> str:
    if guest.restored == fresh:
        return "was booted, not restored" if guest.restored is False else "was restored, not booted"
    output = guest.require(STRESS)
    guest.machine.require_alive()
    return "" if output.rstrip().endswith("STRESSED") else f"stress ended early: {output[-200:]}"
