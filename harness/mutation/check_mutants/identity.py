"""Servers that let in, or let do, whom they must not."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

REFUSAL: Final = """\
        raise NotAuthenticatedError("no client certificate was presented; one is required")
"""
NOBODY: Final = """\
        now = dt.datetime.now(dt.UTC)
        return Identity(0, now, now + dt.timedelta(days=1), Role.ADMIN)
"""
# The second layer: a server that finds itself speaking TLS 1.2 does not start.
NO_SELF_CHECK: Final = Edit(
    "tls.py",
    '    host, _, port = address.rpartition(":")\n    context',
    '    return\n    host, _, port = address.rpartition(":")\n    context',
)
NO_TLS12: Final = 'TLS13_ONLY_CIPHER_SUITES = "ECDHE-PSK-CHACHA20-POLY1305"'

MUTANTS: Final = (
    Mutation(
        "lets users do everything",
        (
            Edit(
                "identity.py",
                "if identity.role not in PERMISSIONS.get(method, frozenset()):",
                "if identity.role is None:",
            ),
        ),
        "identity.roles",
    ),
    Mutation(
        "lets users start jobs",
        (Edit("identity.py", 'JobWorker/StartJob": _ADMINS', 'JobWorker/StartJob": _EVERYBODY'),),
        "identity.roles",
    ),
    Mutation(
        "lets everybody without a role list the jobs",
        (
            Edit(
                "identity.py",
                "    if identity.role is None:\n        raise NotPermittedError(",
                '    if identity.role is None and method.endswith("/ListJobs"):\n'
                "        return Role.ADMIN\n"
                "    if identity.role is None:\n        raise NotPermittedError(",
            ),
        ),
        "identity.roles",
    ),
    Mutation(
        "refuses users their streams",
        (
            Edit(
                "identity.py", 'JobWorker/StreamLogs": _EVERYBODY', 'JobWorker/StreamLogs": _ADMINS'
            ),
        ),
        "identity.roles",
        ("streams.after-end",),
    ),
    Mutation(
        "takes the first of two roles",
        (Edit("identity.py", "if len(found) > 1:", "if len(found) > 9:"),),
        "identity.certificates",
    ),
    Mutation(
        "takes a role without a text",
        (Edit("identity.py", "or not _is_text(value.value):", "or value.value is None:"),),
        "identity.certificates",
    ),
    Mutation(
        "takes weak keys",
        (Edit("identity.py", "key.key_size >= RSA_MIN_BITS", "key.key_size >= RSA_MIN_BITS // 2"),),
        "identity.certificates",
    ),
    Mutation(
        "takes certificates that are for nothing",
        (
            Edit(
                "identity.py",
                "if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:",
                "if usages is None:",
            ),
        ),
        "identity.certificates",
    ),
    Mutation(
        "breaks the streams of certificates that have no end",
        (Edit("follow.py", "lease_s = min(lease(), threading.TIMEOUT_MAX)", "lease_s = lease()"),),
        "identity.certificates",
    ),
    Mutation(
        "makes everybody without a role a user",
        (
            Edit(
                "identity.py",
                'return None, "the client certificate has no role"',
                'return Role.USER, ""',
            ),
        ),
        "identity.certificates",
    ),
    Mutation(
        "asks nobody for a certificate",
        (
            Edit(
                "tls.py",
                "require_client_authentication=True",
                "require_client_authentication=False",
            ),
            Edit(
                "identity.py",
                REFUSAL,
                NOBODY,
            ),
        ),
        "identity.strangers",
    ),
    Mutation(
        "looks at nobody's certificate",
        (
            Edit(
                "tls.py",
                "require_client_authentication=True",
                "require_client_authentication=False",
            ),
            Edit("identity.py", REFUSAL, NOBODY),
        ),
        "identity.certificates",
    ),
    Mutation(
        "says NOT_FOUND of an rpc that does not exist",
        (
            Edit(
                "service.py",
                "errors.UnknownRpcError: grpc.StatusCode.UNIMPLEMENTED",
                "errors.UnknownRpcError: grpc.StatusCode.NOT_FOUND",
            ),
        ),
        "identity.roles",
    ),
    Mutation(
        "refuses elliptic curves",
        (Edit("identity.py", "key.key_size >= EC_MIN_BITS", "key.key_size > EC_MIN_BITS"),),
        "identity.certificates",
    ),
    Mutation(
        "speaks TLS 1.2",
        (
            Edit(
                "__init__.py", NO_TLS12, 'TLS13_ONLY_CIPHER_SUITES = "ECDHE-RSA-AES128-GCM-SHA256"'
            ),
            NO_SELF_CHECK,
        ),
        "identity.versions",
    ),
    Mutation(
        "speaks TLS 1.2 with an old cipher",
        (
            Edit("__init__.py", NO_TLS12, 'TLS13_ONLY_CIPHER_SUITES = "ECDHE-RSA-AES128-SHA"'),
            NO_SELF_CHECK,
        ),
        "identity.openssl",
    ),
    Mutation(
        "speaks TLS 1.2 without forward secrecy",
        (
            Edit("__init__.py", NO_TLS12, 'TLS13_ONLY_CIPHER_SUITES = "AES128-GCM-SHA256"'),
            NO_SELF_CHECK,
        ),
        "identity.scanner",
    ),
    Mutation(
        "leaves a certificate's dates to the handshake",
        (
            Edit(
                "identity.py",
                "    identity.valid_for_s()\n    return identity",
                "    return identity",
            ),
        ),
        "identity.resumption",
    ),
    Mutation(
        "lets streams outlive their certificate",
        (
            Edit(
                "service.py",
                "lease=lambda: self._doorkeeper.lease_s(identity)",
                "lease=lambda: 3600.0",
            ),
        ),
        "identity.expiry",
    ),
    Mutation(
        "ends streams a second before their certificate",
        (
            Edit(
                "identity.py",
                "        return (self.not_after - now).total_seconds()\n",
                "        return (self.not_after - now).total_seconds() - 1\n",
            ),
            Edit(
                "identity.py",
                "if now > self.not_after:",
                "if now > self.not_after - dt.timedelta(seconds=1):",
            ),
        ),
        "identity.expiry",
    ),
    Mutation(
        "waits for clients who read nothing, whatever becomes of them",
        (
            Edit(
                "service.py",
                "                call.cut = refusal\n                context.cancel()\n",
                "                call.cut = refusal\n",
            ),
        ),
        "identity.stalled",
    ),
    Mutation(
        "reads its certificates once",
        (Edit("tls.py", "if stamp in (self._seen, self._refused):", "if stamp is not None:"),),
        "identity.rotation",
    ),
    Mutation(
        "uses a key that is not its certificate's",
        (
            Edit(
                "tls.py",
                "if certificate.public_key() != key.public_key():",
                "if certificate is None:",
            ),
        ),
        "identity.start",
    ),
    Mutation(
        "starts with a key that its group may read",
        (Edit("tls.py", "if mode & 0o077:", "if mode & 0o007:"),),
        "identity.start",
    ),
    Mutation(
        "starts with an authority that everybody may replace",
        (Edit("tls.py", "if mode & stat.S_IWOTH:  #", "if mode & stat.S_ISVTX:  #"),),
        "identity.start",
    ),
    Mutation(
        "lets the streams of the denied go on",
        (Edit("service.py", "return min(valid_for_s, DENY_LOOK_S)", "return valid_for_s"),),
        "identity.denied",
    ),
    Mutation(
        "reads its deny list once",
        (
            Edit(
                "deny.py",
                "if stamp != self._stamp or not self._settled:",
                "if self._stamp is None:",
            ),
        ),
        "identity.denied",
    ),
    Mutation(
        "lets everybody in when its deny list is bad",
        (
            Edit(
                "deny.py",
                "            level, told = logging.WARNING",
                "            self._serials = frozenset()\n"
                "            level, told = logging.WARNING",
            ),
        ),
        "identity.denied",
    ),
)
