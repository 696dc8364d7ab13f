"""Options of `serve`, made from the server's settings."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from worker_service import config
from worker_service.errors import ConfigurationError
from worker_service.rule import Kind, Rule


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
