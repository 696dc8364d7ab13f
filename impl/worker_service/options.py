"""Parameter types of the command line, and the options that set the server's settings."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from worker_service import config
from worker_service.cgroup import IoMax
from worker_service.errors import ConfigurationError
from worker_service.rule import Kind, Rule


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
            self.fail(f"{value!r} is invalid; it must be {error}", param, ctx)


_RATE: Final = Rule(Kind.SIZE, 1, 2**63 - 1)  # the kernel's numbers are signed
_RATES: Final = {
    "rbps": "read_bytes_per_second",
    "wbps": "write_bytes_per_second",
    "riops": "read_operations_per_second",
    "wiops": "write_operations_per_second",
}


def _parse_io_max(text: str) -> IoMax:
    """Parse `/dev/vda:rbps=1MiB,wiops=100`."""
    device, _, rest = text.rpartition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")]
    try:
        rates = {_RATES[key]: _RATE.accept(value) for key, _, value in pairs}
    except (KeyError, ValueError):
        rates = {}
    if not device or len(rates) != len(pairs):  # also a key that is given twice
        raise ValueError(
            f"DEVICE:KEY=VALUE,... with keys {', '.join(_RATES)}, each once, and values from "
            f"{_RATE.bounds()}, for example /dev/vda:rbps=1MiB,wiops=100"
        )
    return IoMax(device, **rates)


# What the API's fields can carry; a single parameter may accept less.
SIZE: Final = _Converted("size", Rule(Kind.SIZE, 0, 2**64 - 1).accept)
DURATION: Final = _Converted("duration", Rule(Kind.DURATION, 0, (2**32 - 1) / 1000).accept)
IO_MAX: Final = _Converted("device:key=value,...", _parse_io_max)


def _setting_option(
    each: dataclasses.Field[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option for one field of `config.Settings`.

    It takes any text: `config.read_settings` checks the values of all sources alike.
    """
    rule: Rule = each.metadata["rule"]
    name = config.flag(each.name)
    notes = [
        f"env var: {config.variable(each.name)}",
        *([] if each.default is None else [f"default: {rule.text(each.default)}"]),
        *([rule.bounds()] if rule.bounds() else []),
    ]
    if rule.kind is Kind.FLAG:
        name = f"{name}/--no-{name[2:]}"
    return click.option(
        name,
        each.name,
        type=bool if rule.kind is Kind.FLAG else str,
        default=None,
        metavar=None if rule.kind is Kind.FLAG else rule.kind.upper(),
        help=f"{each.metadata['help']}  [{'; '.join(notes)}]",
    )


def with_settings(serve: Callable[[config.Settings], None]) -> Callable[..., None]:
    """Give a command one option for each field of `config.Settings`, and a file of them.

    Raises:
        click.UsageError: a setting is not accepted, or the file cannot be used.
    """

    @functools.wraps(serve)
    def with_flags(config_file: Path | None, **flags: object) -> None:
        try:
            settings = config.read_settings(flags, os.environ, config_file)
        except ConfigurationError as error:
            raise click.UsageError(str(error), click.get_current_context()) from error
        serve(settings)

    command: Callable[..., None] = with_flags
    for each in reversed(dataclasses.fields(config.Settings)):
        command = _setting_option(each)(command)
    return click.option(
        "--config", "config_file", type=click.Path(path_type=Path),
        envvar="JOBWORKER_CONFIG", show_envvar=True,
        help="TOML file of settings, named like the options without the leading dashes.",
    )(command)  # fmt: skip
