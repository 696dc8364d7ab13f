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
# A relay that reads ahead without a bound takes all of a flood that its client leaves unread.
READ_AHEAD_MESSAGES: Final = 8
MERGED_MAX_BYTES: Final = 1024 * 1024  # of a message; clients accept four times as much


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


class _ReadAhead:
    """A thread that reads a stream's messages, a few at most before they are taken."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self._ready: SimpleQueue[Any] = SimpleQueue()
        self._room = threading.Semaphore(READ_AHEAD_MESSAGES)
        self._left = threading.Event()
        threading.Thread(target=self._read, args=(messages,), name="merge", daemon=True).start()

    def _read(self, messages: Iterator[Any]) -> None:
        try:
            for message in messages:
                self._room.acquire()
                if self._left.is_set():
                    return
                self._ready.put(message)
        except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
            self._ready.put(error)
        else:
            self._ready.put(None)

    def take(self) -> Any:  # noqa: ANN401 - a generated message
        """Return the next message, then None or the error."""
        taken = self._ready.get()
        self._room.release()
        return taken

    def waits(self) -> bool:
        """Return whether the next message is not there yet."""
        return self._ready.empty()

    def close(self) -> None:
        """Take no more: the thread ends with its next message, or with the call."""
        self._left.set()
        self._room.release()


def _merge(messages: Iterator[Any], _: threading.Event) -> Iterator[Message]:
    """Join the messages that are waiting to be sent; none waits for another."""
    ahead = _ReadAhead(messages)
    try:
        held = ahead.take()
        while isinstance(held, Message):
            if ahead.waits():
                yield held
                held = ahead.take()
            elif _fits(held, following := ahead.take()):
                _append(held, following)
            else:
                yield held
                held = following
        if held is not None:
            raise held
    finally:
        ahead.close()


def _fits(message: Any, following: Any) -> bool:  # noqa: ANN401 - generated messages
    if not isinstance(following, Message) or _has_gap(following):
        return False
    size_bytes = len(message.message) + len(following.message)  # type: ignore[attr-defined]
    return size_bytes <= MERGED_MAX_BYTES


def _append(message: Any, following: Any) -> None:  # noqa: ANN401 - generated messages
    message.message += following.message


def _has_gap(message: Any) -> bool:  # noqa: ANN401 - a generated message
    return bool(message.missed_bytes)


# Changes that the API allows of a stream of bytes: no check may object.
HARMLESS: Final[dict[str, StreamChange]] = {"split": _split, "merged": _merge}
