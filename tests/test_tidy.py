"""Keeps the house: walls between the parts, a door for each danger, sizes that fit in the head."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
IMPL = ROOT / "impl" / "worker_service"

MODULE_MAX_LINES = 450
FUNCTION_MAX_LINES = 60

# What a module of impl may import of its own package; the order is the layers'.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "linux": set(),
    "reactor": set(),
    "log": {"errors"},
    "host_memory": set(),
    "output_memory": {"log"},
    "cgroup": {"errors"},
    "hierarchy": {"errors", "cgroup"},
    "job_user": {"errors"},
    "oom_score": {"cgroup"},
    "spawn": {"errors", "linux", "cgroup", "job_user", "oom_score"},
    "tree": {"cgroup", "reactor", "spawn"},
    "job": {"cgroup", "log", "output_memory", "reactor", "spawn", "tree"},
    "worker": {
        "errors",
        "cgroup",
        "hierarchy",
        "host_memory",
        "job_user",
        "spawn",
        "log",
        "output_memory",
        "reactor",
        "tree",
        "job",
    },
    "follow": {"errors", "log"},
    "courier": {"log"},
    "identity": {"errors"},
    "watched_files": {"errors"},
    "deny": {"errors", "watched_files"},
    "tls": {"errors", "watched_files"},
    "wire": {"cgroup", "log"},
    "rule": set(),
    "config": {"errors", "hierarchy", "rule"},
    "timers": set(),
    "messages": set(),
    "grpc_internals": set(),
    "pool": {"errors"},
    "systemd": set(),
    "audit": {"identity"},
    "gate": {"errors", "audit", "deny", "follow", "identity", "messages", "timers"},
    "service": {
        "courier",
        "errors",
        "follow",
        "gate",
        "grpc_internals",
        "job",
        "log",
        "spawn",
        "wire",
        "worker",
    },
    "metrics": {"errors", "audit", "follow", "rule", "timers", "worker"},
    "server": {
        "errors",
        "config",
        "courier",
        "deny",
        "follow",
        "gate",
        "grpc_internals",
        "hierarchy",
        "job_user",
        "metrics",
        "pool",
        "rule",
        "service",
        "stderr",
        "systemd",
        "tls",
        "wire",
        "worker",
    },
    "stderr": set(),
    "client": {"errors", "cgroup", "tls", "wire"},
    "options": {"errors", "config", "rule"},
    "arguments": {"cgroup", "rule"},
    "resume": {"client", "timers"},
    "terminal": {"errors", "client", "resume"},
    "cli": {
        "arguments",
        "cgroup",
        "client",
        "config",
        "options",
        "resume",
        "server",
        "terminal",
        "tls",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
WITHOUT_GRPC = {
    "errors", "linux", "reactor", "log", "cgroup", "spawn", "job", "worker", "follow", "identity",
    "deny", "rule", "config", "options", "arguments", "timers", "oom_score", "messages",
    "hierarchy", "tree", "stderr", "job_user", "output_memory", "host_memory",
    "pool", "watched_files", "systemd",
}  # fmt: skip

# A module of the harness imports only from its own folder and from these; the order is the layers'.
# Standing alone, beside the pipeline: `races` and `vulncheck`, which are of use without a server.
HARNESS_LAYERS: dict[str, set[str]] = {
    "record": set(),
    "host": {"record"},
    "judge": {"record"},
    "payloads": set(),
    "mutation": {"record"},
    "report": {"record"},
    "program": {"record", "host", "report"},
    "dialects": {"record", "host"},
    "drive": {"record", "host", "payloads", "dialects"},
    "vm": {"record", "host"},
    "targets": {"record", "host", "dialects", "drive", "vm"},
    "checks": {"record", "host", "judge", "payloads", "dialects", "drive", "targets"},
    "run": {
        "record", "host", "mutation", "report", "dialects", "drive", "vm", "targets", "checks"
    },
    "wire": {"record", "host", "dialects", "drive", "targets", "checks", "run"},
    "races": {"record", "host", "mutation"},
    "vulncheck": {"record", "host"},
    "project": {
        "record", "host", "report", "drive", "vm", "targets", "checks", "run", "vulncheck"
    },
    "cli": {
        "record", "host", "mutation", "report", "dialects", "drive", "vm", "targets", "checks",
        "run", "races", "vulncheck", "project", "program", "wire",
    },
    "__main__": {"cli", "program"},
    "installed": {"cli", "host", "program"},
    "__init__": set(),
}  # fmt: skip


class Door(NamedTuple):
    """A danger: its pattern, the parts it is searched in, the only files that may have it."""

    pattern: str
    parts: tuple[str, ...]
    exempt: frozenset[str]
    instead: str


SERVICE_PART = ("impl",)
# The payloads are programs of their own, and the mutants are texts of the server's.
OUTSIDE = ("harness", "loadtests")
NOT_SEARCHED = ("harness/payloads/", "harness/mutation/check_mutants/")

DOORS = [
    Door(
        r"\bctypes\b", SERVICE_PART,
        frozenset({"impl/worker_service/linux.py", "impl/worker_service/spawn.py"}),
        "a function in linux.py",
    ),
    Door(
        r"cgroup\.(procs|kill|subtree_control|events)\"", SERVICE_PART,
        frozenset({"impl/worker_service/cgroup.py", "impl/worker_service/hierarchy.py"}),
        "a method of cgroup.Cgroup",
    ),
    # It is read in one place, and written nowhere.
    Door(
        r'cgroup\.procs(?!"\)\.read_text)', SERVICE_PART, frozenset(),
        "spawn.spawn: processes are created in their cgroup",
    ),
    Door(
        r"\btime\.sleep\(", SERVICE_PART, frozenset(),
        "an event, a descriptor in the reactor, or a timer of it",
    ),
    Door(r"\bsubprocess\b|os\.fork\(|preexec_fn=", SERVICE_PART, frozenset(), "spawn.spawn"),
    Door(
        r"\bos\.kill\(", SERVICE_PART, frozenset({"impl/worker_service/spawn.py"}),
        "Child.signal_group: pidfds, not bare pids",
    ),
    Door(
        r"\bos\.killpg\(", SERVICE_PART, frozenset({"impl/worker_service/linux.py"}),
        "linux.signal_process_group",
    ),
    Door(
        r"ssl_server_credentials|ssl_channel_credentials", SERVICE_PART,
        frozenset({"impl/worker_service/tls.py"}), "tls.Reloader",
    ),
    Door(
        # The emitter is a program that runs as a job: the standard library only, and paced by time.
        r"\btime\.sleep\(", OUTSIDE,
        frozenset({"harness/host/clock.py", "loadtests/emitter.py"}),
        "clock.poll_until, or an event",
    ),
    Door(
        r"subprocess\.(run|call|check)", OUTSIDE, frozenset(),
        "host.processes.run",
    ),
    Door(
        r"subprocess\.Popen\(", OUTSIDE,
        frozenset({
            "harness/host/processes.py", "harness/host/piped_program.py",
            "harness/host/leftovers.py",
            "harness/vm/persistent_vm.py",
            "harness/dialects/programs.py",
        }),
        "host.processes.start_bound, host.piped_program, or dialects.programs",
    ),
    Door(
        r"ssl_server_credentials|ssl_channel_credentials", OUTSIDE,
        # The readers use grpc.aio, which the door has not; limits serves plain grpcio.
        frozenset({
            "harness/dialects/channel.py", "harness/checks/identity/handshakes.py",
            "harness/wire/relay.py", "loadtests/limits.py", "loadtests/reader_process.py",
        }),
        "dialects.channel, or loadtests.reader_process",
    ),
]  # fmt: skip


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.split() if "_pb2" not in name]


@functools.cache
def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_the_service_imports_neither_the_harness_nor_the_load_tests() -> None:
    for path in IMPL.rglob("*.py"):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & {"harness", "loadtests", "tests"}, path


@pytest.mark.parametrize("part", ["harness", "loadtests", "proto"])
def test_the_parts_outside_know_the_service_through_the_network_only(part: str) -> None:
    for path in (ROOT / part).rglob("*.py"):
        assert "worker_service" not in {name.partition(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("path", sorted(IMPL.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_what_its_layer_allows(path: Path) -> None:
    assert path.stem in LAYERS, "give the new module its place in LAYERS"
    used = {
        name.split(".")[1]
        for name in imports(path)
        if name.startswith("worker_service.") and (IMPL / f"{name.split('.')[1]}.py").exists()
    }
    assert used <= LAYERS[path.stem]
    if path.stem in WITHOUT_GRPC:
        assert not {name for name in imports(path) if name.startswith(("grpc", "jobworker"))}


@pytest.mark.parametrize("folder", sorted(HARNESS_LAYERS))
def test_a_folder_of_the_harness_imports_only_what_its_layer_allows(folder: str) -> None:
    place = ROOT / "harness" / folder
    paths = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert paths
    for path in paths:
        names = {name.split(".")[1] for name in imports(path) if name.startswith("harness.")}
        outside = names - {folder} - HARNESS_LAYERS[folder]
        assert not outside, f"{path.relative_to(ROOT)}: {folder} must not import {outside}"


def test_every_folder_of_the_harness_has_its_layer() -> None:
    places = {path.stem for path in (ROOT / "harness").glob("[!_]*") if path.is_dir()}
    places |= {path.stem for path in (ROOT / "harness").glob("*.py")}
    assert places == set(HARNESS_LAYERS)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.parts[0]}: {door.pattern}")
def test_a_danger_is_in_its_exempt_files_and_nowhere_else(door: Door) -> None:
    found = {
        str(path.relative_to(ROOT))
        for part in door.parts
        for path in (ROOT / part).rglob("*.py")
        if re.search(door.pattern, _without_docstrings(path))
    }
    found = {name for name in found if not name.startswith(NOT_SEARCHED)}
    assert not found - door.exempt, f"use {door.instead}"
    assert not door.exempt - found, "a stale exemption: take it out"


@functools.cache
def _without_docstrings(path: Path) -> str:
    """Return a module's code as Python sees it: no comments, no docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    return ast.unparse(tree).replace("'", '"')


# What a folder of the harness must not know beside its layer, so that judging stays a function of
# records alone.
HARNESS_WALLS = {
    "record": {"grpc", "jobworker", "socket"},
    "judge": {"grpc", "jobworker", "time", "socket"},
    "report": {"grpc", "jobworker", "socket"},
    "mutation": {"grpc", "jobworker"},
}


@pytest.mark.parametrize("folder", sorted(HARNESS_WALLS))
def test_a_folder_of_the_harness_does_not_import_what_would_make_it_impure(folder: str) -> None:
    for path in (ROOT / "harness" / folder).rglob("*.py"):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & HARNESS_WALLS[folder], path


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("interleave_test", {"exploration.py", "exhaustive.py"}),
        ("detangle", {"linearizability.py"}),
    ],
)
def test_a_young_library_stands_behind_a_door(library: str, doors: set[str]) -> None:
    users = {
        path.name
        for part in ("harness", "loadtests", "tests")
        for path in (ROOT / part).rglob("*.py")
        if library in {name.partition(".")[0] for name in imports(path)}
    }
    assert users == doors


def test_payloads_need_nothing_but_the_standard_library() -> None:
    for path in (ROOT / "harness" / "payloads").glob("*.py"):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert roots <= sys.stdlib_module_names, path


def test_load_tests_know_no_checks() -> None:
    for path in (ROOT / "loadtests").rglob("*.py"):
        assert not {name for name in imports(path) if name.startswith("harness.checks")}, path


def test_modules_and_functions_fit_in_the_head() -> None:
    for path in tracked("*.py"):
        text = path.read_text()
        assert text.count("\n") <= MODULE_MAX_LINES, f"{path} is too long: split it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                assert lines <= FUNCTION_MAX_LINES, f"{path}:{node.lineno} {node.name}: {lines}"


def test_no_secret_and_no_generated_certificate_is_tracked() -> None:
    for path in tracked():
        assert not path.is_relative_to(ROOT / "certs" / "out"), path
        assert path.suffix not in {".key", ".crt", ".pem", ".srl"}, path
        assert b"PRIVATE KEY-----\n" not in path.read_bytes(), path


def test_every_make_target_in_the_readme_exists_and_every_target_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\s*make ([a-z-]+)", readme, flags=re.MULTILINE)) <= targets
    section = readme.partition("## All commands")[2]
    listed = set(re.findall(r"`([a-z-]+)`", section)) - {"make"}
    assert listed == targets - {"help", "setup", "proto-check"}


def test_the_lock_file_pins_every_dependency_with_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[a-z])", lock)
    assert len(entries) > 20
    for entry in entries:
        assert "==" in entry.splitlines()[0], entry
        assert "--hash=sha256:" in entry, entry
