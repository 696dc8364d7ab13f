"""Builds Debian trees, ext4 file systems and initrds for the guest's image and the Vagrant box."""

import lzma
import os
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from harness.host.processes import run

SUITE: Final = "trixie"
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
PYTHON_VERSION: Final = "3.13"  # the suite's
# Wheel platforms that the suite's C library (2.41) supports.
GLIBC_VERSIONS: Final = ("2_34", "2_28", "2_27", "2_26", "2_24", "2_17")
PLATFORMS: Final = (
    *(f"manylinux_{version}_x86_64" for version in GLIBC_VERSIONS),
    "manylinux2014_x86_64",
)
BUILD_TIMEOUT_S: Final = 900.0
PROVISION: Final = "provision.sh"
SERVICE: Final = "service"
CHECKOUT: Final = "checkout"


def script(name: str) -> str:
    """Return the text of a file of this package."""
    return (resources.files("harness.vm") / name).read_text(encoding="ascii")


def script_path(name: str) -> Path:
    """Return the path of a file of this package."""
    return Path(__file__).with_name(name)


def packages_for(kind: str) -> list[str]:
    """Return the Debian packages that provision.sh lists for a kind of machine."""
    done = run(["sh", script_path(PROVISION), "packages", kind], 60)
    return done.require(PROVISION).split()


def bootstrap(root: Path, packages: Sequence[str], hooks: Sequence[str] = ()) -> None:
    """Unpack Debian into a directory.

    Args:
        root: the directory to create.
        packages: in addition to the essential ones.
        hooks: shell commands that mmdebstrap runs at the end, with the root as `$1`.

    Raises:
        BrokenError: mmdebstrap failed; has the end of its output.
    """
    command: list[str | Path] = ["mmdebstrap", "--variant=minbase", "--mode=auto"]
    command += [f"--include={','.join(packages)}", '--aptopt=Apt::Install-Recommends "false"']
    command += [
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        # An interrupted build is thrown away, so nothing need be synced to disk.
        "--dpkgopt=force-unsafe-io",
    ]
    # Skip Debian's initrd: ours boots in a fraction of the time.
    command += ['--essential-hook=mkdir -p "$1/etc/kernel" "$1/usr/local/sbin"']
    command += ['--essential-hook=ln -s /bin/true "$1/usr/local/sbin/update-initramfs"']
    command += [f"--customize-hook={hook}" for hook in hooks]
    command += [SUITE, root]
    mirror = _mirror()
    if mirror:
        command.append(mirror)
    run(command, BUILD_TIMEOUT_S).require("mmdebstrap")


def provision_hook(kind: str) -> str:
    """Return the hook that provisions an unpacked root."""
    return f'chroot "$1" sh -s {kind} < {script_path(PROVISION)}'


def _mirror() -> str | None:
    """Return this host's Debian mirror, or None to let mmdebstrap choose."""
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


def kernel_of(root: Path) -> Path:
    """Return the path of an unpacked root's kernel."""
    [kernel] = root.glob("boot/vmlinuz-*")
    return kernel


def make_initrd(root: Path, init: str, modules: Sequence[str], target: Path) -> None:
    """Write an initrd of busybox, an init program and kernel modules.

    Args:
        root: the unpacked Debian whose kernel boots it.
        init: the init program, a file of this package.
        modules: in the order to load them.
        target: the file to write.
    """
    version = kernel_of(root).name.removeprefix("vmlinuz-")
    tree = target.with_name(f"{target.name}-tree")
    for name in ("bin", "proc", "dev", "lower", "layer", "root", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    (tree / "init").write_text(script(init))
    (tree / "init").chmod(0o755)
    for number, name in enumerate(modules):
        [packed] = (root / "usr/lib/modules" / version).rglob(f"{name}.ko*")
        data = packed.read_bytes()
        unpacked = lzma.decompress(data) if packed.suffix == ".xz" else data
        (tree / "modules" / f"{number}-{name}.ko").write_bytes(unpacked)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with target.open("wb") as archive:
        run(
            ["env", "-C", tree, "cpio", "--quiet", "-o", "-H", "newc"],
            120,
            text_in=names,
            stdout=archive,
        ).require("cpio")
    shutil.rmtree(tree)


def make_ext4(
    tree: Path, target: Path, size_bytes: int, *, offset_bytes: int = 0, features: str = ""
) -> None:
    """Write a tree as an ext4 file system.

    Args:
        tree: the content.
        target: the file to write; an existing one is replaced.
        size_bytes: of the file; the file system ends with it.
        offset_bytes: of the file system in the file.
        features: as mke2fs(8) -O takes them.
    """
    with target.open("wb") as file:
        file.truncate(size_bytes)
    command: list[str | Path] = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0"]
    command += ["-O", features] if features else []
    command += ["-E", f"offset={offset_bytes}"] if offset_bytes else []
    command += ["-d", tree, target, f"{(size_bytes - offset_bytes) // 1024}k"]
    run(
        command,
        BUILD_TIMEOUT_S,
        environment={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
    ).require("mke2fs")


def wheel_options() -> list[str]:
    """Return pip's options for wheels that the suite's Python supports."""
    options = ["--only-binary=:all:", "--python-version", PYTHON_VERSION]
    for platform in PLATFORMS:
        options += ["--platform", platform]
    return [*options, "--no-deps"]
