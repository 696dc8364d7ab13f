"""Ports for servers that are about to be started."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.record.verdict import BrokenError

_LEAST: Final = 10_000
_MOST: Final = 65_535
_ENOUGH: Final = 1_000  # to choose from, so that two seldom try the same
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES: Final = 200
_chance: Final = random.SystemRandom()


def free_port() -> int:
    """Return a port of loopback that nobody listens on now.

    Raises:
        BrokenError: there is none.
    """
    with reserved_port() as port:
        return port


@contextmanager
def reserved_port() -> Iterator[int]:
    """Keep a free port of loopback from all others that ask here, until the end.

    Where the kernel leaves enough of them, it is none that it gives to whoever asks for any
    (`ip_local_port_range` in ip(7)), since it might give it away before a server that is being
    started takes it. What keeps it from others is the name of a socket that ends with this process,
    not the port itself, which not every server could take then.

    Raises:
        BrokenError: there is none.
    """
    ports = _choice()
    for _ in range(_TRIES):
        port = _chance.choice(ports)
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
        "end what listens there"
    )


def _choice() -> range:
    low, high = map(int, _EPHEMERAL.read_text().split())
    outside = max(range(_LEAST, low), range(high + 1, _MOST + 1), key=len)
    return outside if len(outside) >= _ENOUGH else range(_LEAST, _MOST + 1)
