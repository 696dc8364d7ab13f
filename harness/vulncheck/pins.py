"""The pins of a requirements file, read as the installer reads it.

Fails closed: a line must be a pin with a hash, a nested file, or an option that cannot change what
is installed. Any other line is refused, since a skipped line is a package that is not audited.

The library `pip-requirements-parser` has pip's own parser: continuation lines, comments, a byte
order mark, indentation and spellings of options are read as pip reads them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pip_requirements_parser import InstallRequirement, RequirementLine, RequirementsFile

from harness.record.verdict import BrokenError

# Options that change neither name, version nor source of a package.
_HARMLESS_OPTIONS: Final = frozenset({
    "no_binary", "only_binary", "prefer_binary", "require_hashes",
})  # fmt: skip
_NESTED: Final = "requirements"


@dataclass(frozen=True, slots=True)
class Pin:
    """One package at one version.

    Attributes:
        name: normalized (PEP 503).
        version: normalized (PEP 440).
        applies: whether its marker holds on this machine.
        origin: its file and line.
    """

    name: str
    version: Version
    applies: bool
    origin: str

    def __str__(self) -> str:
        """Return it as NAME==VERSION."""
        return f"{self.name}=={self.version}"


def read_pins(path: Path) -> tuple[Pin, ...]:
    """Return all pins of a requirements file and of the files that it includes by `-r`.

    Raises:
        BrokenError: the file cannot be read, or a line is not a pin; the message quotes the line
            and lists what is allowed.
    """
    pins = tuple(_read(path, []))
    if not pins:
        raise BrokenError(f"{path} has no pinned package; give a lock file with --requirements")
    return pins


def parse_pin(text: str) -> Pin:
    """Parse a text NAME==VERSION.

    Raises:
        BrokenError: the text is not a pin.
    """
    try:
        return _pin(Requirement(text), applies=True, origin=repr(text))
    except ValueError as error:
        raise BrokenError(f"{text!r} is not a pin: write NAME==VERSION ({error})") from error


def _read(path: Path, outer: list[Path]) -> Iterator[Pin]:
    """Yield the pins of a file and its nested files; `outer` are the files that lead to it."""
    # Not by comparing paths: a cycle may spell each round another way.
    if path.exists() and any(path.samefile(each) for each in outer):
        chain = " -> ".join(map(str, [*outer, path]))
        raise BrokenError(f"requirements files include one another: {chain}")
    file = _parse(path)
    for option in file.options:
        if unknown := set(option.options) - _HARMLESS_OPTIONS - {_NESTED}:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unknown))
            raise _refusal(path, option.requirement_line, f"{names} can change what is installed")
        for nested in option.options.get(_NESTED, ()):
            # Relative to the path as it is written, as pip does: a symlink is not followed.
            yield from _read(path.parent / nested, [*outer, path])
    for requirement in file.requirements:
        line = requirement.requirement_line
        try:
            yield _installed(requirement, f"{path}:{line.line_number}")
        except ValueError as error:
            raise _refusal(path, line, str(error)) from error


def _parse(path: Path) -> RequirementsFile:
    """Return a file's lines, all of them understood."""
    try:
        file = RequirementsFile.from_file(str(path), include_nested=False)
    except Exception as error:
        # The library's errors have no common base, and their tracebacks do not name the file.
        reason = str(error) or type(error).__name__
        raise BrokenError(f"{path} cannot be read as a requirements file: {reason}") from error
    for bad in file.invalid_lines:
        raise _refusal(path, bad, bad.error_message)
    for each in (*file.options, *file.requirements):
        if "${" in each.requirement_line.line:
            raise _refusal(
                path, each.requirement_line, "pip replaces variables, this check does not"
            )
    return file


def _installed(requirement: InstallRequirement, origin: str) -> Pin:
    """Return the pin of a parsed line.

    Raises:
        ValueError: it is not a pin, or has no hash.
    """
    if requirement.is_editable or requirement.link is not None or requirement.req is None:
        raise ValueError("it is a path or a URL")
    if not requirement.hash_options:
        raise ValueError("it has no --hash")
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    return _pin(requirement.req, applies=applies, origin=origin)


def _pin(requirement: Requirement, *, applies: bool, origin: str) -> Pin:
    """Return a requirement as a pin.

    Raises:
        ValueError: it is not one version.
    """
    specifiers = list(requirement.specifier)
    if requirement.url is not None:
        raise ValueError("it is a path or a URL")
    if len(specifiers) != 1 or specifiers[0].operator not in {"==", "==="}:
        raise ValueError("its version is not pinned with ==")
    try:
        version = Version(specifiers[0].version)
    except InvalidVersion as error:
        raise ValueError(f"{specifiers[0].version!r} is not a version (PEP 440)") from error
    return Pin(canonicalize_name(requirement.name), version, applies, origin)


def _refusal(path: Path, line: RequirementLine, reason: str) -> BrokenError:
    shown = " ".join(line.line.split())[:120]
    return BrokenError(
        f"{path}:{line.line_number}: {shown!r}: {' '.join(reason.split())[:200]}; allowed are "
        "NAME==VERSION --hash=..., comments, -r FILE, and options that do not change packages"
    )
