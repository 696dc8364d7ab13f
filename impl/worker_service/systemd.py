"""The state of the server, for the service manager that started it: sd_notify(3)."""

import logging
import os
import socket
from typing import Final

logger = logging.getLogger(__name__)

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
_SEND_MAX_S: Final = 5.0  # the manager's queue may be full


def notify(state: str) -> None:
    """Send a state to the service manager; do nothing if none expects it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # unix(7): an abstract socket
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.settimeout(_SEND_MAX_S)
            manager.sendto(state.encode("ascii"), address)
    except OSError as error:
        logger.warning("the service manager did not receive %s: %s", state, error)
