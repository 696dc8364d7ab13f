"""Authentication and authorization: certificates, roles, TLS versions."""

from typing import Final

from harness.checks.identity.client_certificates import CERTIFICATE_RULES, CERTIFICATES
from harness.checks.identity.expiry import EXPIRY, RESUMPTION
from harness.checks.identity.handshakes import STRANGERS, TLS_VERSIONS
from harness.checks.identity.live_reload import DENY_LIST, ROTATION
from harness.checks.identity.openssl import OPENSSL
from harness.checks.identity.roles import ROLE_PERMISSIONS
from harness.checks.identity.scanner import SCANNER
from harness.checks.identity.server_files import START
from harness.checks.identity.stalled_streams import STALLED

CHECKS: Final = (
    CERTIFICATES,
    CERTIFICATE_RULES,
    STRANGERS,
    TLS_VERSIONS,
    ROLE_PERMISSIONS,
    RESUMPTION,
    EXPIRY,
    ROTATION,
    DENY_LIST,
    STALLED,
    START,
    OPENSSL,
    SCANNER,
)
