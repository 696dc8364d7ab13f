"""The layers of the load tests: the imports that each module may have."""

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
    "figures": set(),
    "profiles": {"emitter", "figures", "pacer"},
    "profile_file": {"figures", "pacer", "profiles"},
    "record": {"profiles"},
    "worker_message": {"record"},
    "checker": {"emitter"},
    "histogram": set(),
    "metrics": {"emitter", "figures", "profiles", "record"},
    "judge": {"figures", "profiles", "record"},
    "observe": {"record"},
    "jobs": {"emitter"},
    "reader_process": {"checker", "emitter", "observe", "record", "worker_message"},
    "storm_process": {"emitter", "observe", "pacer", "record", "worker_message"},
    "generator": {
        "emitter", "jobs", "observe", "pacer", "profiles", "reader_process", "record",
        "storm_process", "worker_message",
    },
    "results": {"figures", "judge"},
    "limits": {"results"},
    "plain_server": {"limits"},
    "charts": {"metrics", "results"},
    "exports": {"figures", "results"},
    "overview": {"charts", "figures", "results"},
    "report": {"charts", "exports", "figures", "metrics", "overview", "results"},
    "session": {
        "figures", "generator", "histogram", "judge", "limits", "metrics", "plain_server",
        "profiles", "results",
    },
    "compare": {"figures", "profiles", "results", "session", "statistics"},
    "sweep": {"overview", "pacer", "profiles", "session"},
    "commands": {
        "charts", "compare", "figures", "judge", "limits", "overview", "profile_file", "profiles",
        "report", "results", "session", "statistics", "sweep",
    },
    "locustfile": {
        "checker", "emitter", "jobs", "metrics", "pacer", "profile_file", "profiles", "record",
    },
    "__main__": {"commands"},
    "__init__": set(),
}  # fmt: skip
WITHOUT_GRPC = {
    "pacer", "emitter", "statistics", "figures", "profiles", "profile_file", "record",
    "worker_message", "checker",
    "histogram", "metrics", "judge", "observe", "results", "charts", "exports", "overview",
    "report",
}  # fmt: skip
OF_THE_HARNESS = {
    "dialects", "drive", "host", "program", "record", "report", "run", "targets",
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
def test_program_of_a_job_imports_the_standard_library_only(name: str) -> None:
    roots = {each.partition(".")[0] for each in imports(FOLDER / f"{name}.py")}
    assert roots - {"loadtests"} <= set(sys.stdlib_module_names)
