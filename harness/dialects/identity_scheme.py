"""The table `[identities]` of a dialect: where certificates have roles, and what a role may call.

A scheme is data: `harness/drive/identities.py` makes the certificates. Each faulty certificate that
every server with mutual TLS must refuse is always judged; those that it may decide as it likes
(`OPTIONAL`) are judged only if the scheme names them in `refuses` or `accepts`.
"""

import re
from typing import Final, Literal

import msgspec

from harness.dialects.surroundings import below

RolePlace = Literal["extension", "OU", "O", "CN", "DNS", "URI", "email", "none", "tokens"]
KeyKind = Literal["RSA 2048", "RSA 3072", "RSA 4096", "ECDSA P-256", "ECDSA P-384"]
Rpc = Literal["start", "stop", "query", "stream", "list", "delete"]

# The keys of a dialect file, by the rpcs of jobworker.v1.
RPC_WORDS: Final[dict[str, Rpc]] = {
    "StartJob": "start", "StopJob": "stop", "QueryJob": "query", "StreamLogs": "stream",
    "ListJobs": "list", "DeleteJob": "delete",
}  # fmt: skip
# Certificates that a server with mutual TLS may accept or refuse.
ANY_KEY_USAGE: Final = "any key usage"
ED25519: Final = "Ed25519 key"
NO_KEY_USAGE: Final = "no key usage"
RSA_1024: Final = "RSA of 1024 bits"
BOTH_ROLES: Final = "both roles"
LARGE_EXTENSION: Final = "extension of 100 KB"
OPTIONAL: Final = (ANY_KEY_USAGE, ED25519, NO_KEY_USAGE, RSA_1024, BOTH_ROLES, LARGE_EXTENSION)
# What `harness identities DIR` writes for a server, an admin and a user.
ROOT_FILES: Final = (
    "ca.crt", "ca.key", "server.crt", "server.key", "admin.crt", "admin.key", "user.crt", "user.key"
)  # fmt: skip
_DOTTED: Final = re.compile(
    r"(?=.{3,60}$)([01]\.[1-3]?\d|2\.(0|[1-9]\d{0,16}))(\.(0|[1-9]\d{0,16}))*", re.ASCII
)
# RFC 5280, upper bounds of names.
NAME_BYTES_MAX: Final = 64
_ASCII: Final = re.compile(r"[!-~]+")
_ADDRESS: Final = re.compile(r"[\w.+-]+@[\w.-]+", re.ASCII)


class RoleForm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A role, as a certificate has it.

    Attributes:
        text: the role's name at the scheme's place.
        oid: of its extension; only if the place is `extension`.
        common_name: of the certificate; "": the role's key, `admin` or `user`.
        may: the rpcs that it may call; None: all.
    """

    text: str = ""
    oid: str = ""
    common_name: str = ""
    may: tuple[Rpc, ...] | None = None


class Scheme(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The certificates that a kind of server wants.

    Attributes:
        roles: where a certificate has its role; `none`: every valid certificate may do everything.
        admin: the role that may call every rpc.
        user: one that may call fewer; without it, the user's certificate has the admin's role.
        encoding: of the text in an extension: DER, the bare bytes, or any, since the OID decides.
        key: of every certificate, the authority's included.
        refuses: which of `OPTIONAL` the server refuses.
        accepts: which of them it accepts.
        files: further copies: path below the directory -> the file's name there.

    Raises:
        ValueError: the values do not fit each other; says which, and what to change.
    """

    roles: RolePlace = "none"
    admin: RoleForm = RoleForm()
    user: RoleForm | None = None
    encoding: Literal["UTF8String", "raw", "any"] = "UTF8String"
    key: KeyKind = "RSA 2048"
    refuses: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()
    files: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.roles == "tokens":
            raise ValueError(
                "roles = 'tokens': unsupported, since the judge's clients have certificates and no "
                "tokens; let the server read roles from certificates, or none"
            )
        forms = [("admin", self.admin)] + ([("user", self.user)] if self.user else [])
        for name, form in forms:
            self._require_form(name, form)
            self._require_text(name, form)
        if self.admin.may is not None:
            raise ValueError("admin.may: an admin may call every rpc; leave it out")
        if self.user and self.user.may is not None and not {"query", "stream"} <= {*self.user.may}:
            raise ValueError(
                f"user.may = {list(self.user.may)}; a user must be allowed query and stream: name "
                "another role, or leave user out"
            )
        same = self.user and (self.user.oid, self.user.text) == (self.admin.oid, self.admin.text)
        if self.has_roles and self.user and same:
            raise ValueError(
                f"user.text = {self.user.text!r}, which is the admin's role; name another role, or "
                "leave user out"
            )
        self._require_names()

    def _require_form(self, name: str, form: RoleForm) -> None:
        if (self.roles == "none") != (not form.text):
            rule = "leave it out" if form.text else "name the role as the certificate has it"
            raise ValueError(f"{name}.text = {form.text!r} with roles = {self.roles!r}: {rule}")
        if self.roles == "none" and form.may is not None:
            raise ValueError(
                f"{name}.may with roles = 'none': every certificate may call every rpc"
            )
        if (self.roles == "extension") != bool(_DOTTED.fullmatch(form.oid)):
            rule = "dotted numbers with roles = 'extension', and left out otherwise"
            raise ValueError(f"{name}.oid = {form.oid!r}; it must be {rule}")

    def _require_text(self, name: str, form: RoleForm) -> None:
        rule = ""
        if self.roles in {"OU", "O", "CN"} and len(form.text.encode()) > NAME_BYTES_MAX:
            rule = f"it may have {NAME_BYTES_MAX} bytes"
        elif self.roles in {"DNS", "URI"} and not _ASCII.fullmatch(form.text):
            rule = "it must be ASCII without spaces"
        elif self.roles == "email" and not _ADDRESS.fullmatch(form.text):
            rule = "it must be NAME@DOMAIN"
        if rule:
            raise ValueError(f"{name}.text = {form.text!r} with roles = {self.roles!r}: {rule}")
        if len(form.common_name.encode()) > NAME_BYTES_MAX:
            raise ValueError(
                f"{name}.common_name = {form.common_name!r}: it may have {NAME_BYTES_MAX} bytes"
            )

    def _require_names(self) -> None:
        for key in ("refuses", "accepts"):
            unknown = [name for name in getattr(self, key) if name not in OPTIONAL]
            if unknown:
                raise ValueError(f"{key}: {unknown[0]!r}; it may have {', '.join(OPTIONAL)}")
        both = set(self.refuses) & set(self.accepts)
        if both:
            raise ValueError(f"{min(both)!r} is in refuses and in accepts; name it once")
        if ED25519 in self.accepts:
            raise ValueError(
                f"accepts: {ED25519!r}: gRPC's own TLS cannot present it; leave it out"
            )
        if BOTH_ROLES in {*self.refuses, *self.accepts} and not self.has_two_roles:
            raise ValueError(f"{BOTH_ROLES!r} needs admin and user, at another place than CN")
        for path, name in self.files.items():
            if below(path) in {"", *ROOT_FILES}:
                raise ValueError(f"files: {path!r}; it must be another path below the directory")
            if name not in ROOT_FILES:
                raise ValueError(f"files: {name!r}; it must be one of {', '.join(ROOT_FILES)}")

    @property
    def has_roles(self) -> bool:
        """Whether certificates have roles."""
        return self.roles != "none"

    @property
    def has_rules(self) -> bool:
        """Whether the server has rules for certificates that mutual TLS leaves to it."""
        return bool(self.refuses or self.accepts)

    @property
    def has_two_roles(self) -> bool:
        """Whether one certificate can have two different roles."""
        return self.user is not None and self.roles not in {"none", "CN"}

    def form(self, role: str) -> RoleForm:
        """Return the form of `admin` or `user`."""
        return self.user if role == "user" and self.user is not None else self.admin

    def may(self, role: str, rpc: str) -> bool:
        """Return whether `admin` or `user` may call an rpc of `jobworker.v1`."""
        allowed = self.form(role).may
        return allowed is None or RPC_WORDS.get(rpc) in allowed


# The API's own: what `certs/make-certs` makes, and all that our server promises of certificates.
OURS: Final = Scheme(
    roles="extension",
    admin=RoleForm(oid="1.3.6.1.4.1.12345.1.1", text="Admin"),
    user=RoleForm(oid="1.3.6.1.4.1.12345.1.2", text="User", may=("query", "stream")),
    refuses=(ANY_KEY_USAGE, ED25519, NO_KEY_USAGE, RSA_1024, BOTH_ROLES),
    accepts=(LARGE_EXTENSION,),
)
# Of a dialect without the table `[identities]`.
WITHOUT_ROLES: Final = Scheme()
