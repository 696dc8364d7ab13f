"""Faults in authentication and authorization, and the identity check that catches each."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

REFUSAL: Final = """\
        raise NotAuthenticatedError("no client certificate was presented; one is required")
"""
ANONYMOUS_ADMIN: Final = """\
        now = dt.datetime.now(dt.UTC)
        return Identity(0, now, now + dt.timedelta(days=1), Role.ADMIN)
"""
# The second layer: a server that detects that it accepts TLS 1.2 does not start.
NO_SELF_CHECK: Final = Edit(
    "tls.py",
    '    host, _, port = address.rpartition(":")\n    context',
    '    return\n    host, _, port = address.rpartition(":")\n    context',
)
NO_TLS12_SUITES: Final = 'TLS13_ONLY_CIPHER_SUITES = "ECDHE-PSK-CHACHA20-POLY1305"'
NOT_VERIFIED: Final = (
    Edit("tls.py", "require_client_authentication=True", "require_client_authentication=False"),
    Edit("identity.py", REFUSAL, ANONYMOUS_ADMIN),
)

MUTANTS: Final = (
    Mutation(
        "allows users every rpc",
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
        "allows users StartJob",
        (Edit("identity.py", 'JobWorker/StartJob": _ADMINS', 'JobWorker/StartJob": _EVERYBODY'),),
        "identity.roles",
    ),
    Mutation(
        "allows callers without a role ListJobs",
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
        "refuses users StreamLogs",
        (
            Edit(
                "identity.py", 'JobWorker/StreamLogs": _EVERYBODY', 'JobWorker/StreamLogs": _ADMINS'
            ),
        ),
        "identity.roles",
        ("streams.after-end",),
    ),
    Mutation(
        "accepts a certificate with two roles",
        (Edit("identity.py", "if len(found) > 1:", "if len(found) > 9:"),),
        "identity.certificate-rules",
    ),
    Mutation(
        "accepts a role with an empty or malformed text",
        (Edit("identity.py", "or not _is_text(value.value):", "or value.value is None:"),),
        "identity.certificates",
    ),
    Mutation(
        "accepts RSA keys of 1024 bits",
        (Edit("identity.py", "key.key_size >= RSA_MIN_BITS", "key.key_size >= RSA_MIN_BITS // 2"),),
        "identity.certificate-rules",
    ),
    Mutation(
        "accepts certificates without an extended key usage",
        (
            Edit(
                "identity.py",
                "if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:",
                "if usages is None:",
            ),
        ),
        "identity.certificate-rules",
    ),
    Mutation(
        "fails streams of certificates without an expiry date",
        (Edit("gate.py", "min(identity.valid_for_s(), CLOCK_LOOK_S)", "identity.valid_for_s()"),),
        "identity.certificates",
    ),
    Mutation(
        "treats callers without a role as users",
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
        "requires no client certificate",
        (
            Edit(
                "tls.py",
                "require_client_authentication=True",
                "require_client_authentication=False",
            ),
            Edit(
                "identity.py",
                REFUSAL,
                ANONYMOUS_ADMIN,
            ),
        ),
        "identity.strangers",
    ),
    Mutation("does not verify client certificates", NOT_VERIFIED, "identity.certificates"),
    Mutation(
        "does not verify what client certificates and their keys are for",
        NOT_VERIFIED,
        "identity.certificate-rules",
    ),
    Mutation(
        "returns NOT_FOUND for an unknown rpc",
        (
            Edit(
                "gate.py",
                "errors.UnknownRpcError: grpc.StatusCode.UNIMPLEMENTED",
                "errors.UnknownRpcError: grpc.StatusCode.NOT_FOUND",
            ),
        ),
        "identity.roles",
    ),
    Mutation(
        "refuses keys on the curve P-256",
        (Edit("identity.py", "key.key_size >= EC_MIN_BITS", "key.key_size > EC_MIN_BITS"),),
        "identity.certificates",
    ),
    Mutation(
        "accepts TLS 1.2",
        (
            Edit(
                "__init__.py",
                NO_TLS12_SUITES,
                'TLS13_ONLY_CIPHER_SUITES = "ECDHE-RSA-AES128-GCM-SHA256"',
            ),
            NO_SELF_CHECK,
        ),
        "identity.versions",
    ),
    Mutation(
        "accepts TLS 1.2 with a CBC cipher",
        (
            Edit(
                "__init__.py", NO_TLS12_SUITES, 'TLS13_ONLY_CIPHER_SUITES = "ECDHE-RSA-AES128-SHA"'
            ),
            NO_SELF_CHECK,
        ),
        "identity.openssl",
    ),
    Mutation(
        "accepts TLS 1.2 without forward secrecy",
        (
            Edit("__init__.py", NO_TLS12_SUITES, 'TLS13_ONLY_CIPHER_SUITES = "AES128-GCM-SHA256"'),
            NO_SELF_CHECK,
        ),
        "identity.scanner",
    ),
    Mutation(
        "checks a certificate's validity only in the handshake",
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
        "does not end streams when their certificate expires",
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
        "ends streams a second before their certificate expires",
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
        "does not cancel stalled streams",
        (
            Edit(
                "gate.py",
                "                call.cut = refusal\n                context.cancel()\n",
                "                call.cut = refusal\n",
            ),
        ),
        "identity.stalled",
    ),
    Mutation(
        "does not reload renewed certificates",
        (Edit("tls.py", "if (material, trusted) == self._used:", "if material:"),),
        "identity.rotation",
    ),
    Mutation(
        "never uses renewed certificates that it refused once",
        (
            Edit(
                "watched_files.py",
                "if stamp != self._stamp or not self._settled or self._refused:",
                "if stamp != self._stamp:",
            ),
            Edit(
                "watched_files.py",
                "(status.st_ctime_ns, status.st_mtime_ns,",
                "(status.st_mtime_ns,",
            ),
        ),
        "identity.rotation",
    ),
    Mutation(
        "starts with a key that does not match its certificate",
        (
            Edit(
                "tls.py",
                "if _public_key(certificate.path, chain[0]) != _private_key(key).public_key():",
                "if certificate is None:",
            ),
        ),
        "identity.start",
    ),
    Mutation(
        "starts with a key that its group can read",
        (Edit("tls.py", "if key.mode & 0o077:", "if key.mode & 0o007:"),),
        "identity.start",
    ),
    Mutation(
        "starts with an authority that everyone can write",
        (Edit("tls.py", "if each.everyone_can_write:  #", "if each.mode & 0o1000:  #"),),
        "identity.start",
    ),
    Mutation(
        "does not end the streams of denied clients",
        (Edit("gate.py", "return min(valid_for_s, DENY_LOOK_S)", "return valid_for_s"),),
        "identity.denied",
    ),
    Mutation(
        "does not reload the deny list",
        (
            Edit(
                "watched_files.py",
                "if stamp != self._stamp or not self._settled or self._refused:",
                "if self._stamp is None:",
            ),
        ),
        "identity.denied",
    ),
    Mutation(
        "denies no client when its deny list is invalid",
        (Edit("deny.py", "in_force = serials | (previous or frozenset())", "in_force = serials"),),
        "identity.denied",
    ),
    Mutation(
        "does not read serial numbers as openssl prints them",
        (Edit("deny.py", '    r"(?:serial ?(?:number ?)?[=:] ?)?"\n', ""),),
        "identity.denied",
    ),
    Mutation(
        "refuses a deny list because of one invalid line",
        (Edit("deny.py", "if previous is None and not serials:", "if invalid:"),),
        "identity.denied",
    ),
)
