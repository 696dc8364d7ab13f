"""Ports for servers that are about to be started."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.verdict import BrokenError

_LEAST: Final = 10_000
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

    It is none of those that the kernel gives to whoever asks for any (ip(7)), since it might give
    it away between now and the moment at which a server that is being started takes it. What keeps
    it from others is the name of a socket that ends with this process, not the port itself, which
    not every server could take then.

    Raises:
        BrokenError: there is none.
    """
    ephemeral = int(_EPHEMERAL.read_text().split()[0])
    for _ in range(_TRIES):
        port = _chance.randrange(_LEAST, max(ephemeral, _LEAST + 1000))
        with socket.socket(socket.AF_UNIX) as name:
            try:
                name.bind(f"\0jobworker-harness-port-{port}")
                socket.create_server(("127.0.0.1", port)).close()
            except OSError:
                continue
            yield port
            return
    raise BrokenError(
        f"no free port on 127.0.0.1 in {_TRIES} tries between {_LEAST} and {ephemeral}; "
        "end what listens there"
    )
