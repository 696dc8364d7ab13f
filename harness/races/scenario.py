"""Scenarios: small models of concurrent threads, each with a promise that every schedule must keep.

A scenario file is a Python file with a tuple `SCENARIOS`. A model is a function without arguments
that creates its objects, starts two or three `threading.Thread`s, joins them and asserts. Its main
thread is never preempted. The model runs once per schedule, and nothing but the schedule may differ
between two runs: no clock but `time`'s, no randomness, no waiting except on `threading`'s
primitives.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from harness.races.instrumentation import Watch
from harness.record.verdict import BrokenError

SCENARIOS_NAME: Final = "SCENARIOS"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One model.

    Attributes:
        name: `area.what`, as in `log.cancel`.
        promise: the invariant that every schedule must keep, as a sentence.
        model: see the module.
        explores: the modules before whose lines, or instructions, threads may be switched.
        watch: the classes that the detector watches.
        linearizable: the model records an operation history and checks it (`linearizability`).
    """

    name: str
    promise: str
    model: Callable[[], None]
    explores: tuple[ModuleType, ...]
    watch: Watch
    linearizable: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the explored modules."""
        return tuple(str(module.__file__) for module in self.explores)


def load_module(path: Path) -> ModuleType:
    """Import a Python file by its path, once.

    Raises:
        BrokenError: it is missing, or cannot be imported.
    """
    path = path.resolve()
    name = f"races_{path.parent.name}_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BrokenError(f"{path} is missing, or is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise BrokenError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def load_scenarios(paths: Iterable[Path]) -> tuple[Scenario, ...]:
    """Return the scenarios of files, and of all files of directories, in order.

    Raises:
        BrokenError: a file has none, or two have the same name.
    """
    found: dict[str, Scenario] = {}
    for path in paths:
        files = sorted(path.glob("[!_]*.py")) if path.is_dir() else [path]
        for file in files:
            scenarios = getattr(load_module(file), SCENARIOS_NAME, ())
            if not scenarios:
                raise BrokenError(
                    f"{file} must define a non-empty tuple {SCENARIOS_NAME} of scenarios"
                )
            for scenario in scenarios:
                if scenario.name in found:
                    raise BrokenError(f"{file}: two scenarios have the name {scenario.name}")
                found[scenario.name] = scenario
    return tuple(found.values())


def find_scenario(scenarios: Iterable[Scenario], name: str) -> Scenario:
    """Return a scenario.

    Raises:
        BrokenError: no scenario has that name.
    """
    by_name = {scenario.name: scenario for scenario in scenarios}
    if name not in by_name:
        raise BrokenError(f"unknown scenario {name!r}; known: {', '.join(by_name)}")
    return by_name[name]
