"""What a guest boots from: kernel, initrd, root, Python packages; kept by the hash of the recipe.

Built once into the cache, in a directory of its own that is renamed when it is complete: a build
that is killed leaves nothing that could be taken for an image, and two at once wait for each other.
"""

import fcntl
import hashlib
import io
import logging
import lzma
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Final

import click
from packaging.requirements import Requirement

from harness.host_packages import ensure_programs, missing_packages
from harness.processes import run

logger = logging.getLogger(__name__)

SUITE: Final = "trixie"
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
PACKAGES: Final = (KERNEL_PACKAGE, "openssh-server", "openssl", "python3", "procps", "util-linux")
# What the cloud kernel has as modules and the root needs, in the order to load them.
MODULES: Final = ("virtio_blk", "overlay", "failover", "net_failover", "virtio_net")
PYTHON_VERSION: Final = "3.13"  # the suite's
# Every kind of wheel that the suite's C library (2.41) runs.
GLIBC_VERSIONS: Final = ("2_34", "2_28", "2_27", "2_26", "2_24", "2_17")
PLATFORMS: Final = (
    *(f"manylinux_{version}_x86_64" for version in GLIBC_VERSIONS),
    "manylinux2014_x86_64",
)
ROOT_BYTES: Final = 900 * 1024 * 1024
SITE_BYTES: Final = 160 * 1024 * 1024
BUILD_TIMEOUT_S: Final = 900.0

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
PROJECT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Image:
    """The files of a built image; read-only, shared by all guests."""

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


def cache_directory() -> Path:
    """Return where images are kept: $JOBWORKER_CACHE, or below the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(os.environ.get("JOBWORKER_CACHE") or Path(base) / "jobworker") / "vm"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def missing_host_packages() -> list[str]:
    """Return the Debian packages that this host still needs."""
    return missing_packages(HOST_PROGRAMS)


def ensure_host_packages() -> None:
    """Install what is missing when that is possible.

    Raises:
        BrokenError: it is not; says what to install.
    """
    ensure_programs(HOST_PROGRAMS)


def built_image() -> Image:
    """Return the image for the present recipe, built now if it is not there.

    Raises:
        BrokenError: it cannot be built.
    """
    ensure_host_packages()
    recipe = _recipe()
    directory = cache_directory() / hashlib.sha256(recipe).hexdigest()[:16]
    with _locked(directory.with_suffix(".lock")):
        if not directory.is_dir():
            _remove_half_built(directory.parent)
            _build(directory)
    return Image(directory)


def _recipe() -> bytes:
    """Return everything that makes one image differ from another."""
    parts = [Path(__file__).read_bytes(), _locked_requirements().encode()]
    parts += [_script(name).encode() for name in ("guest-init", "initrd-init")]
    return b"\0".join(parts)


def _script(name: str) -> str:
    return (resources.files("harness.vm") / name).read_text(encoding="ascii")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_half_built(cache: Path) -> None:
    for path in cache.glob("building-*"):
        shutil.rmtree(path, ignore_errors=True)


def _build(directory: Path) -> None:
    """Build into a directory beside it, and rename that when it is complete."""
    work = Path(tempfile.mkdtemp(prefix="building-", dir=directory.parent))
    try:
        image = Image(work)
        _say("building the guest's image (once; minutes): key")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", image.ssh_key], 60).require("key")
        _say("  Debian packages")
        root = work / "root"
        _bootstrap(root, image)
        _say("  kernel and initrd")
        _take_kernel(root, image)
        _say("  root file system")
        _make_ext4(root, image.root, ROOT_BYTES)
        shutil.rmtree(root)
        _say("  Python packages")
        site = work / "site"
        _install_packages(site, work)
        _make_ext4(site, image.site, SITE_BYTES)
        shutil.rmtree(site)
        work.rename(directory)
        _say("  done")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _bootstrap(root: Path, image: Image) -> None:
    """Unpack Debian into a directory and make it a guest's root."""
    command: list[str | Path] = ["mmdebstrap", "--variant=minbase", "--mode=auto"]
    command += [f"--include={','.join(PACKAGES)}", '--aptopt=Apt::Install-Recommends "false"']
    command += [
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
    ]
    # No initrd of Debian's: ours boots in a fraction of the time.
    command += ['--essential-hook=mkdir -p "$1/etc/kernel" "$1/usr/local/sbin"']
    command += ['--essential-hook=ln -s /bin/true "$1/usr/local/sbin/update-initramfs"']
    command += [SUITE, root]
    mirror = _mirror()
    if mirror:
        command.append(mirror)
    run(command, BUILD_TIMEOUT_S).require("mmdebstrap")
    busybox = shutil.which("busybox") or ""
    for place in ("usr/sbin/init", "usr/bin/busybox"):
        shutil.copy(busybox, root / place)
    (root / "etc/guest-init").write_text(_script("guest-init"))
    (root / "etc/guest-init").chmod(0o755)
    (root / "etc/inittab").write_text(
        "::sysinit:/etc/guest-init\n::ctrlaltdel:/usr/bin/busybox poweroff -f\n"
    )
    keys = root / "root/.ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    (keys / "authorized_keys").write_text(image.ssh_key.with_suffix(".pub").read_text())
    (root / "etc/fstab").write_text("")


def _mirror() -> str | None:
    """Return the Debian mirror that this host uses, or None for mmdebstrap's own choice."""
    chosen = os.environ.get("JOBWORKER_DEBIAN_MIRROR")
    if chosen or not shutil.which("apt-get"):
        return chosen
    listed = run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"], 60
    )
    for line in listed.stdout.splitlines():
        origin, _, uri = line.partition(" ")
        if origin == "Debian" and "security" not in uri:
            return uri
    return None


def _take_kernel(root: Path, image: Image) -> None:
    """Take the kernel out of the root, and make an initrd with the few modules that it needs."""
    [kernel] = root.glob("boot/vmlinuz-*")
    shutil.copy(kernel, image.kernel)
    version = kernel.name.removeprefix("vmlinuz-")
    tree = image.directory / "initrd-tree"
    for name in ("bin", "proc", "dev", "lower", "layer", "root", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    (tree / "init").write_text(_script("initrd-init"))
    (tree / "init").chmod(0o755)
    for number, name in enumerate(MODULES):
        [packed] = (root / "usr/lib/modules" / version).rglob(f"{name}.ko*")
        data = packed.read_bytes()
        unpacked = lzma.decompress(data) if packed.suffix == ".xz" else data
        (tree / "modules" / f"{number}-{name}.ko").write_bytes(unpacked)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with image.initrd.open("wb") as archive:
        run(
            ["env", "-C", tree, "cpio", "--quiet", "-o", "-H", "newc"],
            120,
            text_in=names,
            stdout=archive,
        ).require("cpio")
    shutil.rmtree(tree)
    shutil.rmtree(root / "boot")


def _make_ext4(tree: Path, target: Path, size_bytes: int) -> None:
    with target.open("wb") as file:
        file.truncate(size_bytes)
    run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", tree, target],
        BUILD_TIMEOUT_S,
        environment={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
    ).require("mke2fs")


def _runtime_names() -> set[str]:
    """Return the distributions that the service needs, itself left out."""
    names: set[str] = set()
    wanted = ["jobworker"]
    while wanted:
        for text in metadata.requires(wanted.pop()) or []:
            requirement = Requirement(text)
            name = requirement.name.lower().replace("_", "-")
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and name not in names:
                names.add(name)
                wanted.append(name)
    return names


def _locked_requirements() -> str:
    """Return the part of the lock file that the service needs, hashes included."""
    names = _runtime_names()
    kept = io.StringIO()
    keeping = False
    for line in (PROJECT / "requirements.lock").read_text().splitlines(keepends=True):
        if line[:1].isalpha():
            keeping = line.partition("==")[0].strip() in names
        if keeping:
            kept.write(line)
    return kept.getvalue()


def _install_packages(site: Path, work: Path) -> None:
    """Fetch the locked packages on the host, for the guest's Python; it has no network."""
    requirements = work / "requirements.txt"
    requirements.write_text(_locked_requirements())
    command: list[str | Path] = [sys.executable, "-m", "pip", "install", "-qq", "--require-hashes"]
    command += ["--only-binary=:all:", "--python-version", PYTHON_VERSION]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    command += ["--no-deps", "--target", site, "-r", requirements]
    run(command, BUILD_TIMEOUT_S).require("pip")
    requirements.unlink()
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON_VERSION:
        # An emulated processor takes tens of seconds to compile what an import of grpc needs.
        run([sys.executable, "-m", "compileall", "-q", site], BUILD_TIMEOUT_S).require("compileall")
