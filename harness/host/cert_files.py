"""The three files that a side of a mutual TLS connection needs."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CertFiles:
    """Paths of a CA certificate, a certificate and its key."""

    ca: Path
    cert: Path
    key: Path
