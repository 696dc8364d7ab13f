"""The values that settings and parameters accept: kinds, units and bounds, from text or TOML."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

HOUR_S: Final = 3600


class Kind(StrEnum):
    """What a setting is: decides which texts and TOML values it accepts."""

    SIZE = "size"
    DURATION = "duration"
    NUMBER = "number"
    FLAG = "flag"
    PATH = "path"
    ADDRESS = "address"
    LOOPBACK = "loopback address"
    LOG_LEVEL = "log level"
    USER = "user"


# ASCII digits only: `float` and `int` accept those of every script. The lengths bound the work.
_QUANTITY: Final = re.compile(r" *([0-9]{0,20}\.?[0-9]{1,20}) ?([A-Za-z]*) *")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PREFIXES: Final = tuple(enumerate("kmgtp", start=1))
_UNITS: Final[Mapping[Kind, Mapping[str, int | Fraction]]] = {
    Kind.SIZE: {
        "": 1,
        "b": 1,
        **{prefix: 1024**power for power, prefix in _PREFIXES},
        **{f"{prefix}ib": 1024**power for power, prefix in _PREFIXES},
        **{f"{prefix}b": 1000**power for power, prefix in _PREFIXES},
    },
    Kind.DURATION: {"": 1, "ms": Fraction(1, 1000), "s": 1, "m": 60, "min": 60, "h": HOUR_S},
    Kind.NUMBER: {"": 1},
}
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Rule:
    """The values that a setting or a parameter accepts.

    Attributes:
        kind: see `Kind`.
        lowest, highest: inclusive bounds of a size in bytes, a duration in seconds, or a number.
    """

    kind: Kind
    lowest: float = 0
    highest: float = 0

    def accept(self, value: object) -> Any:  # noqa: ANN401 - the type of the setting
        """Return the setting's value for a text or a TOML value.

        Raises:
            ValueError: it is not accepted; the text is `requirement`.
        """
        try:
            return self._number(value) if self.kind in _UNITS else self._other(value)
        except (ValueError, TypeError, KeyError, OverflowError):
            raise ValueError(self.requirement()) from None

    def _number(self, value: object) -> float:
        number = quantity(value, self.kind) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int | float | Fraction):
            raise TypeError(value)
        if self.kind is Kind.DURATION:
            number = float(number)
        elif isinstance(number, float) or number.denominator != 1:
            raise ValueError(value)
        else:
            number = int(number)
        if not self.lowest <= number <= self.highest:  # rejects NaN, too
            raise ValueError(value)
        return number

    def _other(self, value: object) -> object:
        match self.kind, value:
            case Kind.FLAG, bool():
                return value
            case Kind.FLAG, str():
                return _BOOLEANS[value.lower()]
            case Kind.PATH, str() | Path() if str(value) and "\0" not in str(value):
                return Path(value)
            case Kind.ADDRESS | Kind.LOOPBACK, str() if self._is_address(value):
                return value
            case Kind.USER, str() if re.fullmatch(r"[^:\0]+(:[^:\0]+)?", value):
                return value
            case Kind.LOG_LEVEL, str() if value in _LOG_LEVELS:
                return value
        raise ValueError(value)

    def _is_address(self, text: str) -> bool:
        host, _ = split_address(text)
        # A name is refused, since it may be that of any address.
        return self.kind is Kind.ADDRESS or ipaddress.ip_address(host.strip("[]")).is_loopback

    def text(self, value: object) -> str:
        """Return a value as text, in the largest unit that divides it."""
        match self.kind, value:
            case Kind.SIZE, int():
                for power, prefix in reversed(_PREFIXES):
                    if value and value % 1024**power == 0:
                        return f"{value // 1024**power}{prefix.upper()}iB"
            case Kind.DURATION, int() | float():
                if value % 1:
                    return f"{value * 1000:g}ms"
                for unit_s, unit in ((HOUR_S, "h"), (60, "min")):
                    if value and value % unit_s == 0:
                        return f"{value / unit_s:.0f}{unit}"
                return f"{value:.0f}s"
            case Kind.FLAG, bool():
                return "true" if value else "false"
        return str(value)

    def bounds(self) -> str:
        """Return the bounds or the choices; empty if the kind has none."""
        if self.kind in _UNITS:
            return f"{self.text(self.lowest)} to {self.text(self.highest)}"
        return ", ".join(_LOG_LEVELS) if self.kind is Kind.LOG_LEVEL else ""

    def requirement(self) -> str:
        """Return what a value must be, to follow the words "it must be"."""
        return {
            Kind.SIZE: f"a size from {self.bounds()}, for example 65536, 64KiB or 100MB",
            Kind.DURATION: f"a duration from {self.bounds()}, for example 0.5, 5ms, 20s or 10min",
            Kind.NUMBER: f"a whole number from {self.bounds()}",
            Kind.FLAG: "true or false",
            Kind.PATH: "a path, a text that is neither empty nor contains a NUL character",
            Kind.ADDRESS: "HOST:PORT with a port from 0 to 65535, for example 127.0.0.1:50051 or "
            "[::1]:50051",
            Kind.LOOPBACK: "HOST:PORT with an address of this machine alone, 127.0.0.1 or [::1] "
            "(whoever reaches it can read it; for others, put a proxy that authenticates them in "
            "front), for example 127.0.0.1:9464",
            Kind.USER: "USER or USER:GROUP, names or numbers as a text, for example www-data",
            Kind.LOG_LEVEL: f"one of {self.bounds()}",
        }[self.kind]


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; an IPv6 address keeps its brackets.

    Raises:
        ValueError: it is not HOST:PORT.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > 65535:  # noqa: PLR2004 - the highest port
        raise ValueError(text)
    if found[1].startswith("["):
        ipaddress.IPv6Address(found[1].strip("[]"))
    return found[1], int(found[2])


def quantity(text: str, kind: Kind) -> Fraction:
    """Return a text such as `64 KiB` in bytes, seconds or as a number, exactly.

    Raises:
        ValueError: it is not a number with a unit of this kind.
    """
    found = _QUANTITY.fullmatch(text)
    unit = _UNITS[kind].get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(text)
    return Fraction(found[1]) * unit
