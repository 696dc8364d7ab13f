"""What a server needs of gRPC for Python beyond its public interface, all in one place.

Without it the server works as well, but slower: where gRPC is not as expected, a function says so
in the log and returns False. A test fails then, so that a new version of gRPC is noticed.
"""

import logging
from typing import Any, Final, cast

import grpc

logger = logging.getLogger(__name__)

_UNEXPECTED: Final = (ImportError, AttributeError, TypeError, ValueError)


class _Counted(dict[object, int]):
    """Replaces gRPC's set of the operations that it awaits, which knows each only once."""

    def add(self, operation: object) -> None:
        """Await one more of an operation."""
        self[operation] = self.get(operation, 0) + 1

    def remove(self, operation: object) -> None:
        """Await one fewer."""
        left = self[operation] - 1
        if left:
            self[operation] = left
        else:
            del self[operation]


def request_calls(server: grpc.Server, count: int) -> bool:
    """Let a server that has started take `count` calls of each method at a time; say if it does.

    gRPC takes one: it requests the next when its only thread has handled the event of the last, and
    that is in one queue with an event of each message that was sent. So where a thousand streams
    send, a call waits as many rounds of that queue as calls came before it.
    """
    try:
        from grpc import _server  # noqa: PLC0415 - private

        state: Any = cast("Any", server)._state  # noqa: SLF001 - see the module's docstring
        request = _server._request_registered_call  # noqa: SLF001 - as above
        with state.lock:
            if not isinstance(state.due, set):
                raise TypeError(f"{type(state.due).__name__} instead of a set")
            methods = list(state.registered_method_handlers)
            # At the shutdown each request ends, and gRPC removes it from here.
            state.due = _Counted(dict.fromkeys(state.due, 1))
            for method in methods * (count - 1):
                request(state, method)
    except _UNEXPECTED as error:
        logger.warning(
            "gRPC %s is not as expected (%s): calls are accepted one by one, late beside many "
            "streams", grpc.__version__, error,
        )  # fmt: skip
        return False
    return True
