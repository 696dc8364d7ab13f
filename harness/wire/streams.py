"""Changes of a stream's messages: their number, order, size and time.

Each takes the messages as they arrive, and the event that the client is gone; every wait ends with
that event.
"""

import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain, islice
from queue import SimpleQueue
from typing import Any, Final

from google.protobuf.message import Message

StreamChange = Callable[[Iterator[Message], threading.Event], Iterator[Message]]

DELAY_S: Final = 5.0
NEVER_S: Final = 120.0  # longer than any client's deadline


def _lose_first(messages: Iterator[Message], _: threading.Event) -> Iterator[Message]:
    yield from islice(messages, 1, None)


def _lose_last(messages: Iterator[Message], _: threading.Event) -> Iterator[Message]:
    held = next(messages, None)
    for message in messages:
        if held is not None:
            yield held
        held = message


def _repeat(messages: Iterator[Message], _: threading.Event) -> Iterator[Message]:
    for message in messages:
        yield message
        yield message


def _reorder(messages: Iterator[Message], _: threading.Event) -> Iterator[Message]:
    for message in messages:
        second = next(messages, None)
        if second is not None:
            yield second
        yield message


def _hold_back(messages: Iterator[Message], _: threading.Event) -> Iterator[Message]:
    """Send each message when the next one is there, and the last one at the end."""
    held = next(messages, None)
    for message in messages:
        if held is not None:
            yield held
        held = message
    if held is not None:
        yield held


def _delay(messages: Iterator[Message], gone: threading.Event) -> Iterator[Message]:
    """Send everything, from the first message on, later."""
    first = next(messages, None)
    gone.wait(DELAY_S)
    yield from chain(() if first is None else (first,), messages)


def _end_early(messages: Iterator[Message], _: threading.Event) -> Iterator[Message]:
    yield from islice(messages, 1)


def _never_end(messages: Iterator[Message], gone: threading.Event) -> Iterator[Message]:
    yield from messages
    gone.wait(NEVER_S)


CHANGES: Final[dict[str, StreamChange]] = {
    "first-lost": _lose_first,
    "last-lost": _lose_last,
    "repeated": _repeat,
    "reordered": _reorder,
    "held-back": _hold_back,
    "delayed": _delay,
    "ended-early": _end_early,
    "never-ended": _never_end,
}


def _split(messages: Iterator[Any], _: threading.Event) -> Iterator[Message]:
    """Send each message as two, the second one with the offset that it then has."""
    for message in messages:
        half = len(message.message) // 2
        if not half:
            yield message
            continue
        first, second = deepcopy(message), type(message)(message=message.message[half:])
        first.message = message.message[:half]
        if message.HasField("offset"):
            second.offset = message.offset + half
        yield first
        yield second


def _merge(messages: Iterator[Any], _: threading.Event) -> Iterator[Message]:
    """Join the messages that are waiting to be sent; none waits for another."""
    ready: SimpleQueue[Any] = SimpleQueue()

    def read() -> None:
        """Queue the messages, then None or the error; it ends with the call to the server."""
        try:
            for message in messages:
                ready.put(message)
        except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
            ready.put(error)
        else:
            ready.put(None)

    threading.Thread(target=read, name="merge", daemon=True).start()
    held: Any = ready.get()
    while isinstance(held, Message):
        if ready.empty():
            yield held
            held = ready.get()
            continue
        following = ready.get()
        if isinstance(following, Message) and not _has_gap(following):
            _append(held, following)
        else:
            yield held
            held = following
    if held is not None:
        raise held


def _append(message: Any, following: Any) -> None:  # noqa: ANN401 - generated messages
    message.message += following.message


def _has_gap(message: Any) -> bool:  # noqa: ANN401 - a generated message
    return bool(message.missed_bytes)


# Changes that the API allows of a stream of bytes: no check may object.
HARMLESS: Final[dict[str, StreamChange]] = {"split": _split, "merged": _merge}
