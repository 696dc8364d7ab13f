"""The project's own Vagrant box for libvirt: the guest's recipe as a disk, packed for Vagrant.

It has Debian's systemd and sshd, the user that Vagrant logs in as, and everything that `make
verify` needs, including the locked Python packages: `vagrant up` needs no network and no registry.
The disk is cached by the hash of its recipe, as the guest's image is; packing it takes seconds.

Not covered: providers other than libvirt, processors other than x86-64, kernel updates (the disk
boots the kernel that it was built with).
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from harness.host.packages import ensure_programs
from harness.host.processes import run
from harness.host.repository import ROOT
from harness.record.verdict import BrokenError
from harness.vm import debian
from harness.vm.image import cache_directory, locked, remove_half_built
from harness.vm.machine import KERNEL_ARGUMENTS

PUBLIC_NAME: Final = "cloud-image/debian-13"  # as in Vagrantfile
DISK_BYTES: Final = 8 * 1024**3
_DISK_GIB: Final = DISK_BYTES // 1024**3
_SECTOR_BYTES: Final = 512
_FIRST_SECTOR: Final = 2048  # of the root partition; the boot loader is in the sectors before it
_PACKAGES: Final = (
    debian.KERNEL_PACKAGE, "dbus", "iproute2", "openssh-server", "sudo", "systemd-resolved",
    "systemd-sysv", "udev",
)  # fmt: skip
_MODULES: Final = ("virtio_blk",)
# GRUB 2.06 cannot read the features that a newer mke2fs enables by default.
_EXT4_FEATURES: Final = "^metadata_csum_seed,^orphan_file"
# clearcpuid: keeps the kernel from using cmpxchg16b, which QEMU 7.2 emulates wrongly; programs see
# it still, since numpy requires it. maxcpus=1: see machine.py; jobworker-box.service enables all.
_KERNEL_ARGUMENTS: Final = (
    KERNEL_ARGUMENTS.replace("rdinit=/init ", "") + " clearcpuid=cx16 net.ifnames=0"
)
_GRUB_MODULES: Final = ("biosdisk", "part_msdos", "ext2", "linux")
_GRUB_CONFIG: Final = f"""\
set root=(hd0,msdos1)
linux /boot/vmlinuz {_KERNEL_ARGUMENTS}
initrd /boot/initrd
boot
"""
_BOOT_CODE_BYTES: Final = 440  # of the first sector; the partition table follows
_GRUB_DIRECTORY: Final = Path("/usr/lib/grub/i386-pc")

# Program -> Debian package that has it.
HOST_PROGRAMS: Final = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "openssl": "openssl",
    "qemu-img": "qemu-utils",
    "sfdisk": "fdisk",
    "grub-mkimage": "grub-common",
    str(_GRUB_DIRECTORY / "boot.img"): "grub-pc-bin",
}

ORDINARY_VAGRANTFILE: Final = "box-vagrantfile"
SESSION_VAGRANTFILE: Final = "box-vagrantfile-session"
_RECIPE_FILES: Final = ("box.py", "debian.py", "box-setup", "box-initrd-init", debian.PROVISION)


@dataclass(frozen=True, slots=True)
class Box:
    """A box and the catalogue that offers it under a name.

    Attributes:
        name: as Vagrant lists it.
        version: derived from the recipe; a later one is not always greater.
        file: for `vagrant box add`.
        catalogue: JSON in the format of a registry's answer.
    """

    name: str
    version: str
    file: Path
    catalogue: Path


def ensure_box(name: str = PUBLIC_NAME, *, session: bool = False, out: Path | None = None) -> Box:
    """Return the box for the current recipe; build it if it is not in the cache.

    Args:
        name: the name in the catalogue.
        session: for a user without access to the system's libvirt, with or without KVM.
        out: directory for the box and its catalogue; None is the cache.

    Raises:
        BrokenError: it cannot be built.
    """
    ensure_programs(HOST_PROGRAMS)
    if os.geteuid() != 0:
        raise BrokenError("a box is built as root (its files belong to root): sudo make box")
    # Read once: a lock file that changes during the build must not change the recipe.
    lock = (ROOT / "requirements.lock").read_bytes()
    recipe = hashlib.sha256(_recipe(lock)).hexdigest()
    disk = cache_directory("box") / recipe[:16] / "box.img"
    with locked(disk.parent.with_suffix(".lock")):
        if not disk.is_file():
            remove_half_built(disk.parent.parent)
            _build(disk, lock)
        return _pack(disk, recipe, name, session=session, out=out or disk.parent)


def _recipe(lock: bytes) -> bytes:
    parts = [debian.script_path(name).read_bytes() for name in _RECIPE_FILES]
    parts += [KERNEL_ARGUMENTS.encode(), lock]
    return b"\0".join(parts)


def _build(disk: Path, locked_packages: bytes) -> None:
    """Build in a temporary directory beside the disk's, and rename it when it is complete."""
    work = Path(tempfile.mkdtemp(prefix="building-", dir=disk.parent.parent))
    try:
        _say("building the box (once; takes minutes): Python packages")
        wheels, lock = work / "wheels", work / "requirements.lock"
        lock.write_bytes(locked_packages)
        _fetch_wheels(wheels, lock)
        _say("  Debian packages, and the Python packages in them")
        root = work / "root"
        setup = f'sh {debian.script_path("box-setup")} "$1" {wheels} {lock}'
        packages = [*_PACKAGES, *debian.packages_for(debian.CHECKOUT)]
        debian.bootstrap(root, packages, [setup, debian.provision_hook(debian.SERVICE)])
        shutil.rmtree(wheels)
        lock.unlink()
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
        _say("  kernel, initrd and disk")
        debian.make_initrd(root, "box-initrd-init", _MODULES, root / "boot/initrd")
        debian.kernel_of(root).rename(root / "boot/vmlinuz")
        _make_disk(root, work)
        shutil.rmtree(root)
        work.chmod(0o755)
        work.rename(disk.parent)
        _say("  done")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _fetch_wheels(wheels: Path, lock: Path) -> None:
    """Download every locked package for the machine's Python."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--require-hashes"]
    command += [*debian.wheel_options(), "-d", str(wheels), "-r", str(lock)]
    run(command, debian.BUILD_TIMEOUT_S).require("pip")


def _make_disk(root: Path, work: Path) -> None:
    """Write a compressed disk that a BIOS boots."""
    raw = work / "raw"
    offset_bytes = _FIRST_SECTOR * _SECTOR_BYTES
    debian.make_ext4(root, raw, DISK_BYTES, offset_bytes=offset_bytes, features=_EXT4_FEATURES)
    table = f"label: dos\nstart={_FIRST_SECTOR}, type=83, bootable\n"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    environment = {**os.environ, "PATH": path}
    run(["sfdisk", "-q", raw], 60, text_in=table, environment=environment).require("sfdisk")
    _install_grub(raw, work)
    run(
        ["qemu-img", "convert", "-c", "-W", "-m", "8", "-f", "raw", "-O", "qcow2",
         raw, work / "box.img"],
        debian.BUILD_TIMEOUT_S,
    ).require("qemu-img")  # fmt: skip
    raw.unlink()


def _install_grub(raw: Path, work: Path) -> None:
    """Write GRUB where a BIOS starts it, without a device or a mount as grub-install needs."""
    config, core = work / "grub.cfg", work / "core.img"
    config.write_text(_GRUB_CONFIG)
    command: list[str | Path] = ["grub-mkimage", "-O", "i386-pc", "-o", core, "-c", config]
    run([*command, "-p", "/boot/grub", *_GRUB_MODULES], 60).require("grub-mkimage")
    image = core.read_bytes()
    if len(image) > (_FIRST_SECTOR - 1) * _SECTOR_BYTES:
        raise BrokenError(
            f"GRUB's core ({len(image)} bytes) does not fit before the root partition"
        )
    with raw.open("r+b") as disk:
        disk.write((_GRUB_DIRECTORY / "boot.img").read_bytes()[:_BOOT_CODE_BYTES])
        disk.seek(_SECTOR_BYTES)
        disk.write(image)
    config.unlink()
    core.unlink()


def _pack(disk: Path, recipe: str, name: str, *, session: bool, out: Path) -> Box:
    """Pack a disk and its Vagrantfile into a box, and write the catalogue beside it."""
    out.mkdir(parents=True, exist_ok=True)
    vagrantfile = debian.script(SESSION_VAGRANTFILE if session else ORDINARY_VAGRANTFILE)
    variant = hashlib.sha256(f"{recipe}{vagrantfile}".encode()).hexdigest()
    version = f"13.{int(variant[:8], 16)}.0"
    kind = "session" if session else "libvirt"
    box = Box(name, version, out / f"jobworker-{kind}.box", out / f"jobworker-{kind}.json")
    with tempfile.TemporaryDirectory(dir=out, prefix="packing-") as directory:
        work = Path(directory)
        (work / "Vagrantfile").write_text(vagrantfile)
        (work / "metadata.json").write_text(
            json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": _DISK_GIB})
        )
        half = work / box.file.name
        members = [["-C", str(work), "metadata.json", "Vagrantfile"], ["-C", str(disk.parent)]]
        command = ["tar", "-cf", str(half), *members[0], *members[1], disk.name]
        run(command, debian.BUILD_TIMEOUT_S).require("tar")
        half.rename(box.file)
    provider = {
        "name": "libvirt",
        "url": box.file.resolve().as_uri(),
        "checksum_type": "sha256",
        "checksum": _digest(box.file),
    }
    catalogue = {"name": name, "versions": [{"version": version, "providers": [provider]}]}
    box.catalogue.write_text(json.dumps(catalogue, indent=1) + "\n")
    return box


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
