"""The commands of a program by their names; each is imported when it is first needed.

The modules of all commands together take longer to import than most commands take to run.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import NoReturn

import click


class Commands(MutableMapping[str, click.Command]):
    """What a `click.Group` takes as its commands; it never changes.

    Args:
        modules: the module of each command, by the command's name. There it has the same name, with
            underscores for hyphens.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules

    def __getitem__(self, name: str) -> click.Command:
        module = import_module(self._modules[name])
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __setitem__(self, name: str, command: click.Command) -> NoReturn:
        raise TypeError(f"the command {name} has no module")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(f"the command {name} cannot be removed")
