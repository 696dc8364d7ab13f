"""The reactor's thread, from a test's."""

import threading
from collections.abc import Callable

from worker_service.reactor import Reactor


def on_reactor(reactor: Reactor, call: Callable[[], object]) -> None:
    """Run something on the reactor's thread and wait for it."""
    done = threading.Event()

    def run() -> None:
        call()
        done.set()

    reactor.call_soon(run)
    assert done.wait(10)
