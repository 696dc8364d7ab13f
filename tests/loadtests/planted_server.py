"""Our server with a planted slowdown: it spins after each message, for the comparison to find.

    python -m tests.loadtests.planted_server SLOWER serve --listen HOST:PORT ...

With 0.25 for SLOWER each message of a stream takes a quarter longer than it did, so that the server
alone makes 80 % of its rate; with 17us each takes so many microseconds longer. It spins in the
thread that sends, with the interpreter lock in hand, as slower code would. docs/load.md says how
`python -m loadtests compare` finds it.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from worker_service import service
from worker_service.__main__ import main

# What makes a message of a piece of output, by its name in `service`.
_PLANTED_AT: Final = "encode_output"
# A stream that waited for output was not at work: of longer messages only so much counts.
_COUNTED_MAX_S: Final = 0.05


def slower(encode: Callable[[Any], bytes], by: str) -> Callable[[Any], bytes]:
    """Return a function that does the same, and spins for a share of the time since its last end.

    `by` is that share, or a number of microseconds that ends in `us`.

    State: when each thread's last message was ready, of that thread alone.
    """
    last = threading.local()
    fixed_s = float(by.removesuffix("us")) / 1e6 if by.endswith("us") else 0.0
    share = 0.0 if fixed_s else float(by)

    def encode_and_spin(chunk: Any) -> bytes:
        begun_s = time.perf_counter()
        took_s = min(_COUNTED_MAX_S, begun_s - getattr(last, "ready_s", begun_s))
        encoded = encode(chunk)
        until_s = time.perf_counter() + fixed_s + took_s * share
        while time.perf_counter() < until_s:
            pass
        last.ready_s = time.perf_counter()
        return encoded

    return encode_and_spin


if __name__ == "__main__":
    # Fails when the server has no such function any more: then nothing would be planted.
    setattr(service, _PLANTED_AT, slower(getattr(service, _PLANTED_AT), sys.argv.pop(1)))
    main()
