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
# The second layer: a server that finds itself speaking TLS 1.2 does not start.
NO_SELF_CHECK: Final = (
    "tls.py",
    '    host, _, port = address.rpartition(":")\n    context',
    '    return\n    host, _, port = address.rpartition(":")\n    context',
)
NO_TLS12: Final = 'TLS13_ONLY_CIPHER_SUITES = "ECDHE-PSK-CHACHA20-POLY1305"'

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
        "lets everybody without a role list the jobs", "identity.py",
        "    if identity.role is None:\n        raise NotPermittedError(",
        '    if identity.role is None and method.endswith("/ListJobs"):\n'
        "        return Role.ADMIN\n"
        "    if identity.role is None:\n        raise NotPermittedError(",
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
        "looks at nobody's certificate", "tls.py",
        "require_client_authentication=True", "require_client_authentication=False",
        "identity.certificates",
        more=(("identity.py", REFUSAL, NOBODY),),
    ),
    Mutant(
        "says NOT_FOUND of an rpc that does not exist", "service.py",
        "errors.UnknownRpcError: grpc.StatusCode.UNIMPLEMENTED",
        "errors.UnknownRpcError: grpc.StatusCode.NOT_FOUND",
        "identity.roles",
    ),
    Mutant(
        "refuses elliptic curves", "identity.py",
        "key.key_size >= EC_MIN_BITS", "key.key_size > EC_MIN_BITS", "identity.certificates",
    ),
    Mutant(
        "speaks TLS 1.2", "__init__.py",
        NO_TLS12, 'TLS13_ONLY_CIPHER_SUITES = "ECDHE-RSA-AES128-GCM-SHA256"',
        "identity.versions",
        more=(NO_SELF_CHECK,),
    ),
    Mutant(
        "speaks TLS 1.2 with an old cipher", "__init__.py",
        NO_TLS12, 'TLS13_ONLY_CIPHER_SUITES = "ECDHE-RSA-AES128-SHA"',
        "identity.openssl",
        more=(NO_SELF_CHECK,),
    ),
    Mutant(
        "speaks TLS 1.2 without forward secrecy", "__init__.py",
        NO_TLS12, 'TLS13_ONLY_CIPHER_SUITES = "AES128-GCM-SHA256"',
        "identity.scanner",
        more=(NO_SELF_CHECK,),
    ),
    Mutant(
        "leaves a certificate's dates to the handshake", "identity.py",
        "    identity.valid_for_s()\n    return identity", "    return identity",
        "identity.resumption",
    ),
    Mutant(
        "lets streams outlive their certificate", "service.py",
        "lease=lambda: self._doorkeeper.lease_s(identity)", "lease=lambda: 3600.0",
        "identity.expiry",
    ),
    Mutant(
        "ends streams a second before their certificate", "identity.py",
        "        return (self.not_after - now).total_seconds()\n",
        "        return (self.not_after - now).total_seconds() - 1\n",
        "identity.expiry",
        more=(
            (
                "identity.py",
                "if now > self.not_after:",
                "if now > self.not_after - dt.timedelta(seconds=1):",
            ),
        ),
    ),
    Mutant(
        "waits for clients who read nothing, whatever becomes of them", "service.py",
        "                call.cut = refusal\n                context.cancel()\n",
        "                call.cut = refusal\n",
        "identity.stalled",
    ),
    Mutant(
        "reads its certificates once", "tls.py",
        "if stamp in (self._seen, self._refused):", "if stamp is not None:",
        "identity.rotation",
    ),
    Mutant(
        "uses a key that is not its certificate's", "tls.py",
        "if certificate.public_key() != key.public_key():", "if certificate is None:",
        "identity.start",
    ),
    Mutant(
        "starts with a key that its group may read", "tls.py",
        "if mode & 0o077:", "if mode & 0o007:", "identity.start",
    ),
    Mutant(
        "starts with an authority that everybody may replace", "tls.py",
        "if mode & stat.S_IWOTH:  #", "if mode & stat.S_ISVTX:  #", "identity.start",
    ),
    Mutant(
        "lets the streams of the denied go on", "service.py",
        "return min(valid_for_s, DENY_LOOK_S)", "return valid_for_s", "identity.denied",
    ),
    Mutant(
        "reads its deny list once", "deny.py",
        "if stamp != self._stamp or not self._settled:", "if self._stamp is None:",
        "identity.denied",
    ),
    Mutant(
        "lets everybody in when its deny list is bad", "deny.py",
        "            level, told = logging.WARNING", "            self._serials = frozenset()\n"
        "            level, told = logging.WARNING",
        "identity.denied",
    ),
)  # fmt: skip
