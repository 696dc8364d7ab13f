"""The table `[launch]` of a dialect: how a kind of server is built and started on this host.

A recipe is data; `harness/targets/local.py` starts the servers. Placeholders: `{listen}`, `{host}`,
`{port}`, `{ca}`, `{cert}`, `{key}`, `{cgroup_root}`, `{directory}` (where the server runs),
`{folder}` (of the dialect's file) and `{python}`.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from harness.dialects.surroundings import below, put_link, require_variables
from harness.record.verdict import UnsupportedError

PLACEHOLDERS: Final = (
    "listen", "host", "port", "ca", "cert", "key", "cgroup_root", "directory", "folder", "python"
)  # fmt: skip
# What a check changes: the fields of `harness.targets.target.Variant`.
SETTINGS: Final = (
    "max_streams", "retention_bytes", "keepalive_s", "stop_grace_s", "handshake_timeout_s",
    "calls_a_connection", "deny_serials", "output_memory_bytes", "job_ttl_s", "flush_interval_s",
    "log_level", "unary_threads", "metrics",
)  # fmt: skip
_BRACES: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\s]+):(?P<port>[1-9]\d{0,4})")
_PORT_MAX: Final = 65_535


@dataclass(frozen=True, slots=True)
class LaunchRecipe:
    """How a server is built and started.

    Attributes:
        command: the launch command, quoted as for a shell; no shell runs.
        listen: HOST:PORT if the server listens at no other address; "": a free port is chosen.
        directory: where it runs; None: a new, empty directory for each server.
        files: path below its directory -> the file that is linked there.
        build: command that makes the server, once; "": none.
        ready: regular expression of the line that it prints when it listens; "": its port is tried.
        environment: added to the server's.
        flags: setting of `Variant` -> flag of the launch command.
        folder: of the dialect's file: where it is built if it has no directory.
    """

    command: str
    listen: str = ""
    directory: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    build: str = ""
    ready: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def fixed_port(self) -> int | None:
        """The port of a fixed address."""
        return int(self.listen.rpartition(":")[2]) if self.listen else None

    def words(self, values: Mapping[str, object]) -> list[str]:
        """Return the words of the launch command.

        Raises:
            UnsupportedError: it is not a valid command, or has another placeholder.
        """
        try:
            return [_fill(word, values) for word in shlex.split(self.command)]
        except ValueError as error:
            names = [f"{{{name}}}" for name in values]
            raise UnsupportedError(
                f"a valid launch command: {self.command!r} ({error}); it may use "
                f"{', '.join(names[:-1])} and {names[-1]}"
            ) from error

    def variables(self, values: Mapping[str, object]) -> dict[str, str]:
        """Return the environment's variables with their values."""
        return {name: _fill(text, values) for name, text in self.environment.items()}

    def put_files(self, directory: Path, values: Mapping[str, object]) -> None:
        """Link the files that the server expects below its directory; see `put_link`."""
        for name, text in self.files.items():
            put_link(directory / name, _fill(text, values), "launch.files")


def _fill(text: str, values: Mapping[str, object]) -> str:
    """Return a text with its values; `{{` is a brace.

    Raises:
        ValueError: a placeholder is unknown, or its braces are wrong.
    """
    try:
        return text.format(**values)
    except (KeyError, IndexError) as error:
        raise ValueError(str(error)) from None


class LaunchTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table; see `LaunchRecipe`. A command is a text, quoted as for a shell, or its words.

    Raises:
        ValueError: says which value is not allowed.
    """

    command: str | tuple[str, ...]
    listen: str = ""
    directory: str = ""
    files: dict[str, str] = {}
    build: str | tuple[str, ...] = ""
    ready: str = ""
    environment: dict[str, str] = {}
    flags: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not self.command:
            raise ValueError("command is empty; give the command that starts a server")
        self._require_commands()
        require_variables(self.environment)
        address = _ADDRESS.fullmatch(self.listen)
        if self.listen and (address is None or int(address["port"]) > _PORT_MAX):
            raise ValueError(f"listen = {self.listen!r}; it must be HOST:PORT, or left out")
        for name in self.files:
            if not below(name):
                raise ValueError(f"files: {name!r}; it must be a path below the directory")
        for name, flag in self.flags.items():
            if name not in SETTINGS:
                raise ValueError(f"flags: unknown {name!r}; it may have: {', '.join(SETTINGS)}")
            if "{}" not in flag:
                raise ValueError(f"flags.{name} = {flag!r}; write '--flag {{}}'")
        try:
            re.compile(self.ready)
        except re.error as error:
            raise ValueError(f"ready = {self.ready!r} is invalid: {error}") from None

    def _require_commands(self) -> None:
        for key in ("command", "build"):
            text = getattr(self, key)
            try:
                shlex.split(text) if isinstance(text, str) else ()
            except ValueError as error:
                raise ValueError(f"{key} = {text!r} cannot be split: {error}") from None
            if "\0" in _text(text):
                raise ValueError(f"{key} = {text!r} has a NUL; no command line can have one")
        _require_placeholders("command", _text(self.command))
        for table in ("environment", "files"):
            for name, text in getattr(self, table).items():
                _require_placeholders(f"{table}.{name}", text)

    def recipe(self, folder: Path) -> LaunchRecipe:
        """Return the recipe of a dialect whose file is in a folder."""
        return LaunchRecipe(
            command=_text(self.command),
            listen=self.listen,
            directory=(folder / self.directory).absolute() if self.directory else None,
            files=self.files,
            build=_text(self.build),
            ready=self.ready,
            environment=self.environment,
            flags=self.flags,
            folder=folder.absolute(),
        )


def _require_placeholders(key: str, text: str) -> None:
    for found in _BRACES.finditer(text):
        if found[0] not in {"{{", "}}"} and found[1] not in PLACEHOLDERS:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(
                f"{key} = {text!r}: unknown {found[0]!r}; it may have {known}, and {{{{ for a brace"
            )


def _text(command: str | tuple[str, ...]) -> str:
    return command if isinstance(command, str) else shlex.join(command)
