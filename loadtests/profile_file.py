"""Profiles from a TOML file of the user's, one table each; `profiles` has an example."""

import dataclasses
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from harness.record.verdict import BrokenError
from loadtests.figures import LIMITS
from loadtests.pacer import Pace, bursts, flood, steady
from loadtests.profiles import (
    NUMBERS,
    Floor,
    Profile,
    Storm,
    accept_limit,
    accept_number,
    shown,
)

_PLAIN: Final[Mapping[str, type]] = {
    "about": str, "message_bytes": int, "streamers": int, "replay": bool, "late": int, "slow": int,
    "slow_bytes_per_s": float, "cut_every_bytes": int, "give_up_s": float, "beside_plain": bool,
}  # fmt: skip
_PACING: Final[tuple[str, ...]] = ("rate_per_s", "duration_s", "burst", "every_s", "flood_messages")
_TABLES: Final = ("floor", "limits", "storm")


def load_profiles(path: Path) -> tuple[Profile, ...]:
    """Read profiles from a TOML file, one table each.

    Raises:
        BrokenError: it cannot be read, or is not valid; names the place and the fault.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BrokenError(f"profiles in {path}: {error.strerror}") from error
    # Not only its own error: it lets through those of integers with thousands of digits.
    except (ValueError, RecursionError) as error:
        raise BrokenError(f"profiles in {path}: {error}") from error
    if not tables:
        raise BrokenError(f"profiles in {path}: the file has no table [NAME]")
    try:
        return tuple(_profile(name, table) for name, table in tables.items())
    except BrokenError as error:
        raise BrokenError(f"profiles in {path}: {error}") from error


def _profile(name: str, values: object) -> Profile:
    place = f"[{name}]"
    table = _table(place, values, (*_PLAIN, *_PACING, *_TABLES))
    try:
        plain = {key: _value(key, value) for key, value in table.items() if key in _PLAIN}
        pacing = {key: accept_number(key, table[key]) for key in _PACING if key in table}
        limits = _table("limits", table.get("limits", {}), LIMITS)
        storm = _made("storm", Storm, table["storm"]) if "storm" in table else None
        return Profile(
            name,
            plain.pop("about", "a profile of your own"),
            pace=_pace(pacing),
            floor=_made("floor", Floor, table.get("floor", {})),
            storm=storm,
            limits={key: accept_limit(key, value) for key, value in limits.items()},
            **plain,
        )
    except BrokenError as error:
        raise BrokenError(f"{place}: {error}") from error


def _table(place: str, values: object, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise BrokenError(f"{place} is {shown(values)}; it must be a table")
    for key in values:
        if key not in known:
            raise BrokenError(f"{place} has {shown(key)}; known are {', '.join(known)}")
    return values


def _value(key: str, value: object) -> Any:  # noqa: ANN401 - as it is in the file
    if key in NUMBERS:
        return accept_number(key, value)
    kind = _PLAIN[key]
    if not isinstance(value, kind):
        raise BrokenError(f"{key} is {shown(value)}; it must be of type {kind.__name__}")
    return value


def _made[Made](key: str, kind: type[Made], values: object) -> Made:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    table = _table(key, values, [each.name for each in fields])
    for each in fields:
        if each.default is dataclasses.MISSING and each.name not in table:
            raise BrokenError(f"{key} has no {each.name}")
    return kind(**{name: accept_number(f"{key}.{name}", value) for name, value in table.items()})


def _pace(pacing: Mapping[str, Any]) -> Pace | None:
    match sorted(pacing):
        case []:
            return None
        case ["flood_messages"]:
            return flood(pacing["flood_messages"])
        case ["duration_s", "rate_per_s"]:
            return steady(pacing["rate_per_s"], pacing["duration_s"])
        case ["burst", "duration_s", "every_s"]:
            return bursts(pacing["burst"], pacing["every_s"], pacing["duration_s"])
        case other:
            raise BrokenError(
                f"it has {', '.join(other)}; a pace is rate_per_s and duration_s, or burst, "
                "every_s and duration_s, or flood_messages"
            )
