"""What a server needs of gRPC for Python beyond its public interface, all in one place.

Without it the server works as well, but slower: where gRPC is not as expected, a function says so
in the log and returns False. A test fails then, so that a new version of gRPC is noticed.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, Final, cast

import grpc

logger = logging.getLogger(__name__)

# What is awaited, in gRPC's books.
_SENT: Final = "send_message of the courier"
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


def sender(context: grpc.ServicerContext) -> Callable[[bytes, Callable[[], None]], bool] | None:
    """Return a function that begins to send a message of a call and does not wait for its end.

    gRPC's own way blocks the call's thread until its only thread has handled the message's end. The
    function's arguments are the serialized message, and what gRPC's thread then calls, also after
    the call's end. It returns False if nothing can be sent: the call has ended, or its first
    message was not sent yet, which is gRPC's to send. No other message must be on its way.

    Returns:
        The function, or None if gRPC is not as expected.
    """
    try:
        from grpc import _server  # noqa: PLC0415 - private
        from grpc._cython import cygrpc  # type: ignore[attr-defined] # noqa: PLC0415 - as above

        state: Any = cast("Any", context)._state  # noqa: SLF001 - as above
        call: Any = cast("Any", context)._rpc_event.call  # noqa: SLF001 - as above
        finish, is_active = _server._possibly_finish_call, _server._is_rpc_state_active  # noqa: SLF001 - as above
        operation, start_batch = cygrpc.SendMessageOperation, call.start_server_batch
    except _UNEXPECTED as error:
        _warn_once(str(error))
        return None

    def send(message: bytes, sent: Callable[[], None]) -> bool:
        def on_sent(_event: object) -> object:
            with state.condition:
                outcome = finish(state, _SENT)
            try:
                sent()
            except Exception:
                # It would end gRPC's only thread, and no call would ever be answered.
                logger.exception("unexpected error at a message's end; the server goes on")
            return outcome

        with state.condition:
            if state.initial_metadata_allowed or not is_active(state):
                return False
            start_batch((operation(message, 0),), on_sent)
            state.due.add(_SENT)
        return True

    return send


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(
        "gRPC %s is not as expected (%s): small messages cost twice the processor time",
        grpc.__version__, text,
    )  # fmt: skip
