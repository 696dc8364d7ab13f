"""What to explore: small models of threads at work, each with what must hold whatever the schedule.

A scenario file is a Python file with a tuple `SCENARIOS`. A model is a function without arguments
that makes its objects, starts two or three `threading.Thread`s, joins them and asserts; its own
thread is never interrupted. It runs once for each schedule, so all that differs between two runs
must be the schedule: no clock but `time`'s, no chance, no waiting for anything but `threading`'s
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
        name: area and what happens, as in `log.cancel-wait`.
        promise: what holds whatever the schedule.
        model: see the module.
        explores: the modules whose every line, or instruction, another thread may come before.
        watch: what the detector watches.
        linearizable: its model records a history and lets it be judged (see `linearizability`).
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
        BrokenError: it is not there, or cannot be imported.
    """
    path = path.resolve()
    name = f"races_{path.parent.name}_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BrokenError(f"{path} is not there, or no Python file")
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
                    f"{file} has no {SCENARIOS_NAME}; a scenario file ends in that tuple"
                )
            for scenario in scenarios:
                if scenario.name in found:
                    raise BrokenError(f"{file}: a second scenario is called {scenario.name}")
                found[scenario.name] = scenario
    return tuple(found.values())


def named(scenarios: Iterable[Scenario], name: str) -> Scenario:
    """Return a scenario.

    Raises:
        BrokenError: there is none of that name.
    """
    by_name = {scenario.name: scenario for scenario in scenarios}
    if name not in by_name:
        raise BrokenError(f"no scenario is called {name!r}; there are {', '.join(by_name)}")
    return by_name[name]
