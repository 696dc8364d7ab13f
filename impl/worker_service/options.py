"""Parameter types of the command line, and options made from the server's settings."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from worker_service import config
from worker_service.cgroup import IoMax


class _Converted(click.ParamType[object]):
    """A parameter written as text, converted by a function."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE: Final = _Converted("size", config.parse_size)
DURATION: Final = _Converted("duration", config.parse_duration)


def _parse_cores(text: str) -> int:
    return round(float(text) * 1000)


def _parse_io_max(text: str) -> IoMax:
    """Parse `/dev/vda:rbps=1MiB,wiops=100`."""
    device, _, rest = text.rpartition(":")
    names = {
        "rbps": "read_bytes_per_second",
        "wbps": "write_bytes_per_second",
        "riops": "read_operations_per_second",
        "wiops": "write_operations_per_second",
    }
    pairs = [pair.partition("=") for pair in rest.split(",")]
    if not device or any(key not in names or not value for key, _, value in pairs):
        raise ValueError(
            f"{text!r} is invalid; write DEVICE:KEY=VALUE,... with keys {', '.join(names)}, "
            "for example /dev/vda:rbps=1MiB,wiops=100"
        )
    return IoMax(device, **{names[key]: config.parse_size(value) for key, _, value in pairs})


CORES: Final = _Converted("cores", _parse_cores)
IO_MAX: Final = _Converted("device:key=value,...", _parse_io_max)


def _setting_option(
    each: dataclasses.Field[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option for one field of `config.Settings`."""
    kind = each.metadata["kind"]
    name = config.flag(each.name)
    common: dict[str, Any] = {
        "default": each.default,
        "envvar": f"{config.ENVIRONMENT_PREFIX}_{each.name.upper()}",
        "show_envvar": True,
        "help": each.metadata["help"],
        "show_default": True,
    }
    if kind == config.FLAG:
        return click.option(f"{name}/--no-{name[2:]}", each.name, **common)
    types: dict[str, Any] = {
        config.SIZE: SIZE,
        config.DURATION: DURATION,
        config.NUMBER: int,
        config.FILE: click.Path(path_type=Path),
        config.TEXT: click.Path(path_type=Path) if isinstance(each.default, Path) else str,
    }
    return click.option(name, each.name, type=types[kind], **common)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add one option for each field of `config.Settings` to a command."""
    for each in reversed(dataclasses.fields(config.Settings)):
        command = _setting_option(each)(command)
    return command
