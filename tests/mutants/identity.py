"""Faults of authentication and authorization: certificates, roles, and the deny list."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import (
    AUDIT,
    CERTIFICATE_RULES,
    CERTIFICATES,
    CHECK,
    DENY,
    IDENTITY,
    TLS,
    WATCHED,
)

MUTANTS: Final = (
    Mutation(
        "an expired certificate is accepted",
        (Edit("identity.py", "if now > self.not_after:", "if now < self.not_before:"),),
        IDENTITY + "test_valid_for_s_rejects_a_certificate_outside_its_validity[expired]",
    ),
    Mutation(
        "roles are not checked",
        (
            Edit(
                "identity.py",
                "if identity.role not in PERMISSIONS.get(method, frozenset()):",
                "if identity.role is None:",
            ),
        ),
        CHECK + "[identity.roles]",
    ),
    Mutation(
        "an unlisted method is allowed to every role",
        (
            Edit(
                "identity.py",
                "PERMISSIONS.get(method, frozenset())",
                "PERMISSIONS.get(method, frozenset(Role))",
            ),
        ),
        IDENTITY + "test_method_without_permissions_is_refused_to_an_admin",
    ),
    Mutation(
        "a certificate with two roles gets the first",
        (Edit("identity.py", "if len(found) > 1:", "if len(found) > 9:"),),
        CERTIFICATE_RULES,
    ),
    Mutation(
        "a weak key is accepted",
        (Edit("identity.py", "key.key_size >= RSA_MIN_BITS", "key.key_size >= RSA_MIN_BITS // 2"),),
        CERTIFICATE_RULES,
    ),
    Mutation(
        "a certificate that is not for clients is accepted",
        (
            Edit(
                "identity.py",
                "if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:",
                "if usages is None:",
            ),
        ),
        CERTIFICATE_RULES,
    ),
    Mutation(
        "a role without a text is accepted",
        (Edit("identity.py", "or not _is_text(value.value):", "or value.value is None:"),),
        CERTIFICATES,
    ),
    Mutation(
        "TLS 1.2 is accepted",
        (
            Edit(
                "tls.py",
                "            context.wrap_socket(raw).close()\n",
                "            context.wrap_socket(raw).close()\n            return\n",
            ),
        ),
        TLS + "test_check_refuses_tls12_rejects_a_server_that_accepts_it",
    ),
    Mutation(
        "an exposed key is used",
        (Edit("tls.py", "if key.mode & 0o077:", "if key.mode & 0o007:"),),
        TLS + "test_server_credentials_rejects_unsafe_or_mismatched_files[exposed key]",
    ),
    Mutation(
        "an rpc missing from the permissions is allowed",
        (
            Edit(
                "identity.py",
                "PERMISSIONS.get(method, frozenset())",
                "PERMISSIONS.get(method, _EVERYBODY)",
            ),
        ),
        AUDIT + "test_unlisted_rpc_is_refused_to_every_role[user]",
    ),
    Mutation(
        "every role may call Health.Watch",
        (
            Edit(
                "identity.py",
                '    "/grpc.health.v1.Health/Check": _EVERYBODY,\n',
                '    "/grpc.health.v1.Health/Check": _EVERYBODY,\n'
                '    "/grpc.health.v1.Health/Watch": _EVERYBODY,\n',
            ),
        ),
        AUDIT + "test_health_watch_is_refused_and_reflection_takes_a_stream_slot",
    ),
    Mutation(
        "an invalid deny list denies no certificate",
        (
            Edit(
                "watched_files.py",
                "        self._refused = str(error)\n",
                "        self._refused, self._value = str(error), frozenset()\n",
            ),
        ),
        DENY + "test_missing_or_unsafe_file_leaves_the_previous_list_in_force[missing]",
    ),
    Mutation(
        "refused contents are logged at every attempt",
        (
            Edit(
                "watched_files.py",
                "self._refuse(error, report=new)",
                "self._refuse(error, report=True)",
            ),
        ),
        WATCHED + "test_refused_contents_are_tried_again_without_a_change",
    ),
    Mutation(
        "an unreadable file is not read again",
        (Edit("watched_files.py", " or self._refused:", ":"),),
        WATCHED + "test_unreadable_file_is_loaded_once_it_can_be_read",
    ),
    Mutation(
        "a recently changed file is not read again",
        (Edit("watched_files.py", " or not self._settled or", " or"),),
        WATCHED + "test_file_changed_twice_within_one_clock_tick_is_loaded_again",
    ),
    Mutation(
        "refused contents are not tried again",
        (Edit("watched_files.py", "time.monotonic() < self._retry_at_s:", "self._seen:"),),
        WATCHED + "test_refused_contents_are_tried_again_without_a_change",
    ),
    Mutation(
        "refused contents are tried again at every call",
        (Edit("watched_files.py", "time.monotonic() + RETRY_S", "0.0"),),
        WATCHED + "test_refused_contents_are_tried_once_in_the_retry_time",
    ),
    Mutation(
        "an invalid line of the deny list readmits who was denied before",
        (Edit("deny.py", "in_force = serials | (previous or frozenset())", "in_force = serials"),),
        DENY + "test_invalid_line_adds_the_valid_ones_and_readmits_no_client",
    ),
    Mutation(
        "an unreadable name in a certificate is an internal error",
        (
            Edit(
                "identity.py",
                "    except Exception as error:\n",
                "    except ValueError as error:\n",
            ),
        ),
        IDENTITY + "test_unreadable_certificate_is_not_authenticated[name of an unknown kind]",
    ),
    Mutation(
        "a bundle's expired authority is used instead of its successor",
        (Edit("tls.py", " if _is_valid_now(each)] or", "] or"),),
        TLS + "test_handshake_uses_the_valid_authority_of_a_bundle",
    ),
)
