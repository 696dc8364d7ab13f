"""What every test gets: a leak guard around it."""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# Must come before anything imports grpc: it switches TLS 1.2 off.
import worker_service

# Set by the mutants' runs: the tree whose code must be the one under test.
_TREE = os.environ.get("JOBWORKER_TREE")
if _TREE is not None and not Path(worker_service.__file__ or "").is_relative_to(_TREE):
    raise RuntimeError(f"the tests run {worker_service.__file__}, not the code in {_TREE}")

# An example that takes long is one that others took the processor from.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

# A shell's background jobs ignore these: the programs under test would inherit that.
for _number, _action in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)

_SETTLE_S = 5.0
# Threads that last longer than a test: libraries' own, the pool of the server that the integration
# tests share (a server of a test's own joins its pool when it stops), and the thread that starts
# the harness's servers, which end with it.
_LASTING_THREADS = ("pytest_timeout", "execnet", "MainThread", "rpc_", "launcher")


# The files whose tests take longest, most of it waiting: they begin first, so that none is left to
# run alone at the end.
SLOWEST_FIRST = (
    "loadtests/test_locust.py",
    "loadtests/test_loads.py",
    "harness/test_judging_servers.py",
    "harness/test_dialect_servers.py",
    "test_packaging.py",
    "test_setup.py",
    "certs/test_make_certs.py",
    "harness/test_leftovers.py",
    "harness/test_targets.py",
    "integration/test_cli.py",
    "integration/test_checks.py",
    "loadtests/test_plain_server.py",
    "test_contributing.py",
    "harness/test_mutation_score.py",
    "harness/test_wire_relay.py",
    "integration/test_resume.py",
    "harness/vulncheck/test_vulncheck.py",
)
_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first; within a file, and of the others, the order stays."""
    places = {_TESTS / name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run prove a part of the mutants, as `selftest` does."""
    text = "split the mutants into N shares, and run share K (with -m mutants)"
    parser.addoption("--share", default="1/1", metavar="K/N", help=text)


def _threads() -> set[str]:
    return {
        f"{thread.name} ({thread.ident})"
        for thread in threading.enumerate()
        if not thread.name.startswith(_LASTING_THREADS)
    }


# Both of these run twice for each test, and with pathlib they took longer than most tests.


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - see above
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 - see above
        except OSError:
            continue  # the listing's own
    return found


def _children() -> set[int]:
    # psutil reads the whole process table, which takes longer than most tests. The kernel's list of
    # a thread's children can lack one while another ends, but is empty only if it has none.
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - see above
        try:
            with open(f"/proc/self/task/{thread}/children", "rb", 0) as file:  # noqa: PTH123
                if file.read(1):
                    break
        except OSError:  # the thread has ended, or this kernel has no such lists
            break
    else:
        return set()
    return {child.pid for child in psutil.Process().children(recursive=True)}


# gRPC keeps its event engine's epoll and wake-up descriptors for the process.
_LASTING_DESCRIPTORS = (
    "anon_inode:[eventpoll]",
    "anon_inode:[eventfd]",
    "/dev/",
    "/proc",
)


@pytest.fixture(autouse=True)
def leak_guard() -> Iterator[None]:
    """Fail a test that leaves a thread, a descriptor or a child process behind."""
    threads, descriptors, children = _threads(), _descriptors(), _children()
    yield
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        left_threads = _threads() - threads
        left_children = _children() - children
        left_descriptors = {
            fd: name
            for fd, name in _descriptors().items()
            if descriptors.get(fd) != name and not name.startswith(_LASTING_DESCRIPTORS)
        }
        if not (left_threads or left_children or left_descriptors):
            return
        if time.monotonic() > deadline_s:
            pytest.fail(
                f"left behind: threads {sorted(left_threads)}, children {sorted(left_children)}, "
                f"descriptors {left_descriptors}"
            )
        gc.collect()  # takes longer than most tests: only if something is left
        # What ends asynchronously (a closed connection's socket) gets a bounded time to do so.
        os.sched_yield()
        time.sleep(0.01)
