"""Puts the service into a guest where an installation has it."""

from typing import Final

from harness.drive.identities import IdentityStore
from harness.host.repository import ROOT
from harness.vm.guest import PARTS_TO_COPY, SITE, Guest

DEPLOY: Final = ROOT / "impl" / "deploy"
SETTINGS: Final = "/etc/worker-service"
_PREFIX: Final = "/opt/worker-service"
# What an installation's script does; the packages are in the guest already.
_PROGRAM: Final = f"""\
#!/bin/sh
PYTHONPATH={SITE}:{_PREFIX}/project/impl:{_PREFIX}/project/proto
export PYTHONPATH
exec /usr/bin/python3 -m worker_service "$@"
"""


def install(guest: Guest, identities: IdentityStore) -> None:
    """Put the program, and its certificates, into a guest."""
    guest.put_tree(ROOT, PARTS_TO_COPY, f"{_PREFIX}/project")
    guest.require(f"mkdir -p {_PREFIX}/bin {SETTINGS}")
    guest.put(f"{_PREFIX}/bin/worker-service", _PROGRAM.encode(), 0o755)
    files = identities.files("server")
    for name, path in (
        ("ca.crt", files.ca), ("server.crt", files.cert), ("server.key", files.key)
    ):  # fmt: skip
        guest.put(f"{SETTINGS}/{name}", path.read_bytes(), 0o600)
