"""Chooses free loopback ports for servers that are about to start."""

import contextlib
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.host.clock import poll_until
from harness.record.verdict import BrokenError

_LEAST: Final = 10_000
_MOST: Final = 65_535
_RANGE_MIN: Final = 1_000  # large enough that two callers seldom choose the same port
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES: Final = 200
_random: Final = random.SystemRandom()


def free_port() -> int:
    """Return a loopback port that no process listens on now.

    Raises:
        BrokenError: no free port was found.
    """
    with reserved_port() as port:
        return port


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a free loopback port against all other callers, until the context ends.

    The port is outside the kernel's ephemeral range (`ip_local_port_range` in ip(7)) if enough
    ports are: the kernel could otherwise assign it to a client before the server listens. The
    reservation is the abstract name of a socket, which ends with this process; listening on the
    port itself would keep some servers from using it.

    Raises:
        BrokenError: no free port was found.
    """
    ports = _candidates()
    for _ in range(_TRIES):
        port = _random.choice(ports)
        with socket.socket(socket.AF_UNIX) as name:
            try:
                name.bind(f"\0jobworker-harness-port-{port}")
                socket.create_server(("127.0.0.1", port)).close()
            except OSError:
                continue
            yield port
            return
    raise BrokenError(
        f"no free port on 127.0.0.1 in {_TRIES} tries between {ports[0]} and {ports[-1]}; "
        "end the processes that listen there"
    )


@contextmanager
def fixed_port(port: int, timeout_s: float) -> Iterator[None]:
    """Reserve a given loopback port against all other callers, until the context ends.

    Waits until no other caller has it and no process listens on it.

    Raises:
        BrokenError: it timed out.
    """
    with socket.socket(socket.AF_UNIX) as name:

        def is_free() -> bool | None:
            with contextlib.suppress(OSError):  # a bound socket cannot be bound again
                name.bind(f"\0jobworker-harness-port-{port}")
            if not name.getsockname():
                return None
            try:
                socket.create_server(("127.0.0.1", port)).close()
            except OSError:
                return None
            return True

        poll_until(is_free, timeout_s, f"port {port}, on which another program listens")
        yield


def _candidates() -> range:
    low, high = map(int, _EPHEMERAL.read_text().split())
    outside = max(range(_LEAST, low), range(high + 1, _MOST + 1), key=len)
    return outside if len(outside) >= _RANGE_MIN else range(_LEAST, _MOST + 1)
