"""The guest's image: kernel, initrd, root and Python packages, cached by the hash of the recipe.

An image is built once, in a temporary directory that is renamed when it is complete: a killed build
leaves nothing that looks like an image. Concurrent builds wait for each other.
"""

import fcntl
import hashlib
import io
import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import click
from packaging.requirements import Requirement

from harness.host.packages import ensure_programs, missing_packages
from harness.host.processes import run
from harness.host.repository import ROOT
from harness.vm import debian

logger = logging.getLogger(__name__)

# The kernel, ssh for people and the harness, and systemd for guests that boot it: machine.SYSTEMD.
_PACKAGES: Final = (debian.KERNEL_PACKAGE, "openssh-server", "systemd")
# Modules of the cloud kernel that the root needs, in the order to load them.
MODULES: Final = ("virtio_blk", "overlay", "failover", "net_failover", "virtio_net")
ROOT_BYTES: Final = 900 * 1024 * 1024
SITE_BYTES: Final = 160 * 1024 * 1024
_EXT4_FEATURES: Final = "^has_journal"
_RECIPE_FILES: Final = (
    "debian.py", "guest-init", "guest.service", "initrd-init", debian.PROVISION
)  # fmt: skip

# Program -> Debian package that has it.
HOST_PROGRAMS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "busybox": "busybox-static",
    "cpio": "cpio",
}


@dataclass(frozen=True, slots=True)
class Image:
    """The files of a built image; all guests share them read-only."""

    directory: Path

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initial RAM disk."""
        return self.directory / "initrd"

    @property
    def root(self) -> Path:
        """The root file system, ext4."""
        return self.directory / "root.ext4"

    @property
    def site(self) -> Path:
        """The locked Python packages, ext4."""
        return self.directory / "site.ext4"

    @property
    def ssh_key(self) -> Path:
        """The private key that the guest's root accepts."""
        return self.directory / "ssh-key"


def cache_directory(kind: str = "vm") -> Path:
    """Return the directory of cached images, in $JOBWORKER_CACHE or the user's cache directory.

    Args:
        kind: `vm` for guests, `box` for the Vagrant box.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(os.environ.get("JOBWORKER_CACHE") or Path(base) / "jobworker") / kind
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def missing_host_packages() -> list[str]:
    """Return the Debian packages that this host lacks for building and booting a guest."""
    return missing_packages(HOST_PROGRAMS)


def ensure_host_packages() -> None:
    """Install the missing packages.

    Raises:
        BrokenError: they cannot be installed; names the command that installs them.
    """
    ensure_programs(HOST_PROGRAMS)


def ensure_image() -> Image:
    """Return the image for the current recipe; build it if it is not in the cache.

    Raises:
        BrokenError: it cannot be built.
    """
    ensure_host_packages()
    recipe = _recipe()
    directory = cache_directory() / hashlib.sha256(recipe).hexdigest()[:16]
    with locked(directory.with_suffix(".lock")):
        if not directory.is_dir():
            remove_half_built(directory.parent)
            _build(directory)
    return Image(directory)


def _recipe() -> bytes:
    """Return everything that an image depends on."""
    parts = [Path(__file__).read_bytes(), _locked_requirements().encode()]
    parts += [debian.script_path(name).read_bytes() for name in _RECIPE_FILES]
    return b"\0".join(parts)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that concurrent builds wait for each other."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_half_built(cache: Path) -> None:
    """Remove the directories of killed builds."""
    for path in cache.glob("building-*"):
        shutil.rmtree(path, ignore_errors=True)


def _build(directory: Path) -> None:
    """Build in a temporary directory beside it, and rename it when it is complete."""
    work = Path(tempfile.mkdtemp(prefix="building-", dir=directory.parent))
    try:
        image = Image(work)
        _say("building the guest's image (once; takes minutes): key")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", image.ssh_key], 60).require("key")
        _say("  Debian packages")
        root = work / "root"
        packages = [*_PACKAGES, *debian.packages_for(debian.SERVICE)]
        debian.bootstrap(root, packages, [debian.provision_hook(debian.SERVICE)])
        _make_guest(root, image)
        _say("  kernel and initrd")
        shutil.copy(debian.kernel_of(root), image.kernel)
        debian.make_initrd(root, "initrd-init", MODULES, image.initrd)
        shutil.rmtree(root / "boot")
        _say("  root file system")
        debian.make_ext4(root, image.root, ROOT_BYTES, features=_EXT4_FEATURES)
        shutil.rmtree(root)
        _say("  Python packages")
        site = work / "site"
        _install_packages(site, work)
        debian.make_ext4(site, image.site, SITE_BYTES, features=_EXT4_FEATURES)
        shutil.rmtree(site)
        work.rename(directory)
        _say("  done")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _make_guest(root: Path, image: Image) -> None:
    """Turn an unpacked Debian into a guest's root: busybox or systemd as init, and the ssh key."""
    busybox = shutil.which("busybox") or ""
    for path in ("usr/sbin/init", "usr/bin/busybox"):
        shutil.copy(busybox, root / path)
    (root / "etc/guest-init").write_text(debian.script("guest-init"))
    (root / "etc/guest-init").chmod(0o755)
    (root / "etc/inittab").write_text(
        "::sysinit:/etc/guest-init\n::ctrlaltdel:/usr/bin/busybox poweroff -f\n"
    )
    units = root / "etc/systemd/system"
    shutil.rmtree(units)  # what Debian enables; guest-init starts sshd
    (units / "multi-user.target.wants").mkdir(parents=True)
    (units / "guest.service").write_text(debian.script("guest.service"))
    (units / "multi-user.target.wants/guest.service").symlink_to("../guest.service")
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    # Without one, systemd takes each boot for the first, and enables what its presets say.
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    keys = root / "root/.ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    (keys / "authorized_keys").write_text(image.ssh_key.with_suffix(".pub").read_text())
    (root / "etc/fstab").write_text("")


def _runtime_names() -> set[str]:
    """Return the names of the service's dependencies, direct and indirect, metrics included."""
    names: set[str] = set()
    wanted = ["jobworker"]
    while wanted:
        extra = "" if names else "metrics"
        for text in metadata.requires(wanted.pop()) or []:
            requirement = Requirement(text)
            name = requirement.name.lower().replace("_", "-")
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if applies and name not in names:
                names.add(name)
                wanted.append(name)
    return names


def _locked_requirements() -> str:
    """Return the service's part of the lock file, hashes included."""
    names = _runtime_names()
    kept = io.StringIO()
    keeping = False
    for line in (ROOT / "requirements.lock").read_text().splitlines(keepends=True):
        if line[:1].isalpha():
            keeping = line.partition("==")[0].strip() in names
        if keeping:
            kept.write(line)
    return kept.getvalue()


def _install_packages(site: Path, work: Path) -> None:
    """Install the locked packages on the host, since the guest has no network."""
    requirements = work / "requirements.txt"
    requirements.write_text(_locked_requirements())
    command: list[str | Path] = [sys.executable, "-m", "pip", "install", "-qq", "--require-hashes"]
    command += [*debian.wheel_options(), "--target", site, "-r", requirements]
    run(command, debian.BUILD_TIMEOUT_S).require("pip")
    requirements.unlink()
    if f"{sys.version_info.major}.{sys.version_info.minor}" == debian.PYTHON_VERSION:
        # On an emulated processor, compiling grpc at its first import takes tens of seconds.
        compiling: list[str | Path] = [sys.executable, "-m", "compileall", "-q", site]
        run(compiling, debian.BUILD_TIMEOUT_S).require("compileall")
