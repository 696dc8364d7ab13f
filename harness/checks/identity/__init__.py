"""Who gets in, and what they may do."""

from typing import Final

from harness.checks.identity import (
    access,
    openssl,
    scanner,
    server_files,
    stalled_streams,
    validity,
)

CHECKS: Final = (
    *access.CHECKS,
    *validity.CHECKS,
    *stalled_streams.CHECKS,
    *server_files.CHECKS,
    *openssl.CHECKS,
    *scanner.CHECKS,
)
