"""The types of options and arguments: a bad value is one line, exit code 2, and nothing starts.

click converts all values before it calls the command.
"""

import re
import shlex
import string
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Any, Final

import click

from harness.record.number import Number

OURS: Final = "ours"
LAUNCH_FIELDS: Final = frozenset({"listen", "ca", "cert", "key", "cgroup_root", "python"})
_PORT: Final = Number(1, 65535, whole=True)
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")

# The parts of a host name, which has at most 253 characters; certificates also have * as a part.
_HOST: Final = re.compile(r"(?!.{254})[A-Za-z0-9*_-]{1,63}(\.[A-Za-z0-9*_-]{1,63})*")


class Argument(click.ParamType[Any]):
    """A value that a function makes from a text.

    Its ValueError is what the value must be, to follow the words "it must be".
    """

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """See `click.ParamType`."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{value!r} is invalid; it must be {error}", param, ctx)


def number(lowest: float, highest: float) -> Argument:
    """Return the type of a number within inclusive bounds."""
    return Argument("number", Number(lowest, highest).accept)


def whole(lowest: int, highest: int) -> Argument:
    """Return the type of a whole number within inclusive bounds."""
    return Argument("number", Number(lowest, highest, whole=True).accept)


def _parse_pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a regular expression ({error})") from None
    return text


def _parse_launch(text: str) -> str:
    known = ", ".join(f"{{{name}}}" for name in sorted(LAUNCH_FIELDS))
    required = f"a command with no other fields than {known}; {{{{ is a brace"
    try:
        words = shlex.split(text)
        fields = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        shortened = [word.format(**dict.fromkeys(LAUNCH_FIELDS, "x")) for word in words]
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"{required} ({error})") from None
    if not fields <= LAUNCH_FIELDS or (text and not any(shortened[:1])):
        raise ValueError(required)
    return text


def is_address(text: str) -> bool:
    """Return whether a text is HOST:PORT; an IPv6 address is in brackets."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and _PORT.lowest <= int(found[2]) <= _PORT.highest


def target(names: Collection[str]) -> Argument:
    """Return the type of a server: one of these names, or HOST:PORT."""

    def parse(text: str) -> str:
        if text not in names and not is_address(text):
            others = f"{', '.join(names)} or " if names else ""
            raise ValueError(f"{others}HOST:PORT with a port from {_port_range()}")
        return text

    return Argument("target", parse)


def _parse_host(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        if _HOST.fullmatch(text) is None:
            raise ValueError(
                "an IP address, or a host's name: letters, digits, -, _ and * between dots"
            ) from None
    return text


def _parse_server(text: str) -> str:
    if "{listen}" in text or text.partition(" ")[0] == OURS:
        return _parse_launch(text)
    if not is_address(text):
        raise ValueError(
            f"{OURS}, {OURS} and words added to its command, a launch command with {{listen}}, or "
            f"HOST:PORT with a port from {_port_range()}"
        )
    return text


def _port_range() -> str:
    return f"{_PORT.lowest} to {_PORT.highest}"


PATTERN: Final = Argument("regex", _parse_pattern)
HOST: Final = Argument("host", _parse_host)
LAUNCH: Final = Argument("command", _parse_launch)
SERVER: Final = Argument("server", _parse_server)
