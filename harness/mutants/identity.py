"""Servers that let in, or let do, whom they must not."""

from typing import Final

from harness.mutants.mutant import Mutant

REFUSAL: Final = """\
        raise NotAuthenticatedError("no client certificate was presented; one is required")
"""
NOBODY: Final = """\
        now = dt.datetime.now(dt.UTC)
        return Identity(0, now, now + dt.timedelta(days=1), Role.ADMIN)
"""

MUTANTS: Final = (
    Mutant(
        "lets users do everything", "identity.py",
        "if identity.role not in PERMISSIONS.get(method, frozenset()):",
        "if identity.role is None:",
        "identity.roles",
    ),
    Mutant(
        "lets users start jobs", "identity.py",
        'JobWorker/StartJob": _ADMINS', 'JobWorker/StartJob": _EVERYBODY',
        "identity.roles",
    ),
    Mutant(
        "refuses users their streams", "identity.py",
        'JobWorker/StreamLogs": _EVERYBODY', 'JobWorker/StreamLogs": _ADMINS',
        "identity.roles",
        ("streams.after-end",),
    ),
    Mutant(
        "takes the first of two roles", "identity.py",
        "if len(found) > 1:", "if len(found) > 9:", "identity.certificates",
    ),
    Mutant(
        "takes a role without a text", "identity.py",
        "or not _is_text(value.value):", "or value.value is None:", "identity.certificates",
    ),
    Mutant(
        "takes weak keys", "identity.py",
        "key.key_size >= RSA_MIN_BITS", "key.key_size >= RSA_MIN_BITS // 2",
        "identity.certificates",
    ),
    Mutant(
        "takes certificates that are for nothing", "identity.py",
        "if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:", "if usages is None:",
        "identity.certificates",
    ),
    Mutant(
        "breaks the streams of certificates that have no end", "follow.py",
        "lease_s = min(lease(), threading.TIMEOUT_MAX)", "lease_s = lease()",
        "identity.certificates",
    ),
    Mutant(
        "makes everybody without a role a user", "identity.py",
        'return None, "the client certificate has no role"', 'return Role.USER, ""',
        "identity.certificates",
    ),
    Mutant(
        "asks nobody for a certificate", "tls.py",
        "require_client_authentication=True", "require_client_authentication=False",
        "identity.strangers",
        more=(
            (
                "identity.py",
                REFUSAL,
                NOBODY,
            ),
        ),
    ),
    Mutant(
        "speaks TLS 1.2", "__init__.py",
        'TLS13_ONLY_CIPHER_SUITES = "ECDHE-PSK-CHACHA20-POLY1305"',
        'TLS13_ONLY_CIPHER_SUITES = "ECDHE-RSA-AES128-GCM-SHA256"',
        "identity.versions",
        more=(
            (
                "tls.py",
                '    host, _, port = address.rpartition(":")\n    context',
                '    return\n    host, _, port = address.rpartition(":")\n    context',
            ),
        ),
    ),
)  # fmt: skip
