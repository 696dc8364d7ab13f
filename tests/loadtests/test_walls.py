"""The walls inside the load tests: what a module may import of its own, and of the harness."""

import ast
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "loadtests"

# What a module may import of its own package; the order is the layers'.
LAYERS: dict[str, set[str]] = {
    "pacer": set(),
    "emitter": {"pacer"},
    "statistics": set(),
    "profiles": {"emitter", "pacer"},
    "record": {"pacer", "profiles"},
    "checker": {"emitter"},
    "histogram": set(),
    "metrics": {"emitter", "record"},
    "judge": {"metrics", "profiles", "record"},
    "observe": {"record"},
    "jobs": {"emitter", "pacer"},
    "limits": set(),
    "reader_process": {"checker", "emitter", "observe", "record"},
    "storm_process": {"emitter", "observe", "pacer", "record"},
    "generator": {
        "emitter", "jobs", "observe", "pacer", "profiles", "reader_process", "record",
        "storm_process",
    },
    "results": {"judge"},
    "charts": {"metrics", "record", "results"},
    "exports": {"metrics", "results"},
    "overview": {"charts", "results"},
    "report": {"charts", "exports", "metrics", "overview", "results"},
    "session": {
        "generator", "histogram", "judge", "limits", "metrics", "profiles", "record", "results",
    },
    "compare": {"profiles", "results", "session", "statistics"},
    "sweep": {"overview", "pacer", "profiles", "session"},
    "commands": {
        "charts", "compare", "judge", "metrics", "overview", "profiles", "report", "results",
        "session", "statistics", "sweep",
    },
    "locustfile": {"checker", "emitter", "jobs", "metrics", "pacer", "profiles", "record"},
    "bench": {"limits"},
    "__main__": {"commands"},
    "__init__": set(),
}  # fmt: skip
WITHOUT_GRPC = {
    "pacer", "emitter", "statistics", "profiles", "record", "checker", "histogram", "metrics",
    "judge", "observe", "results", "charts", "exports", "overview", "report",
}  # fmt: skip
OF_THE_HARNESS = {
    "drive", "host", "record", "report", "run", "targets",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_what_its_layer_allows(path: Path) -> None:
    assert path.stem in LAYERS, "give the new module its place in LAYERS"
    used = {name.split(".")[1] for name in imports(path) if name.startswith("loadtests.")}
    assert used <= LAYERS[path.stem]
    of_harness = {name.split(".")[1] for name in imports(path) if name.startswith("harness.")}
    assert of_harness <= OF_THE_HARNESS
    if path.stem in WITHOUT_GRPC:
        assert not {name for name in imports(path) if name.startswith(("grpc", "jobworker"))}


@pytest.mark.parametrize("name", ["pacer", "emitter"])
def test_what_runs_as_a_job_needs_the_standard_library_only(name: str) -> None:
    roots = {each.partition(".")[0] for each in imports(FOLDER / f"{name}.py")}
    assert roots - {"loadtests"} <= set(sys.stdlib_module_names)
