"""An environment with the judge's wheel and what the wheel requires, made without the network.

The requirements are linked from the checkout's own environment: those that the wheel declares, and
theirs, and nothing else. So an import of an undeclared package fails, as it would after pipx.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.test_tidy import ROOT


def build_wheel(directory: Path) -> Path:
    """Build the judge's wheel from this checkout."""
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--no-index", "--no-build-isolation", "--wheel-dir", str(directory), str(ROOT / "harness"),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=100, cwd=directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


def install_wheel(wheel: Path, directory: Path) -> Path:
    """Make an environment with the wheel; return the directory of its programs."""
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    programs = directory / "bin"
    for words in (
        ["venv", "--python", sys.executable, str(directory)],
        ["pip", "install", "--no-deps", "--python", str(programs / "python"), str(wheel)],
    ):
        subprocess.run([*uv, *words], check=True, timeout=100)
    (site,) = directory.glob("lib/python*/site-packages")
    (installed,) = metadata.distributions(path=[str(site)], name="jobworker-harness")
    _link(_closure(installed), site)
    return programs


def _closure(distribution: metadata.Distribution) -> list[metadata.Distribution]:
    """Return the distributions of this environment that another requires, directly or not."""
    found: dict[str, metadata.Distribution] = {}
    wanted = list(distribution.requires or ())
    while wanted:
        requirement = Requirement(wanted.pop())
        marker = requirement.marker
        if marker is not None and not any(
            marker.evaluate({"extra": extra}) for extra in requirement.extras or {""}
        ):
            continue
        each = metadata.distribution(requirement.name)
        assert requirement.specifier.contains(each.version, prereleases=True), requirement
        if each.name not in found:
            found[each.name] = each
            wanted += each.requires or ()
    return list(found.values())


def _link(distributions: list[metadata.Distribution], site: Path) -> None:
    """Link each distribution's folders, or its files where several share a folder."""
    owners: dict[str, set[int]] = {}
    files = [
        (number, file)
        for number, each in enumerate(distributions)
        for file in each.files or ()
        if file.parts[0] != ".." and "__pycache__" not in file.parts
    ]
    for number, file in files:
        owners.setdefault(file.parts[0], set()).add(number)
    for _, file in files:
        shared = len(file.parts) == 1 or len(owners[file.parts[0]]) > 1
        link = site / (file if shared else file.parts[0])
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            place = Path(str(file.locate()))
            link.symlink_to(place if shared else place.parents[len(file.parts) - 2])
