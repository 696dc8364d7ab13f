"""Certificates in the form of a server: places of roles, keys, files, and which faults count."""

import stat
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from harness.dialects.identity_scheme import OPTIONAL, OURS, WITHOUT_ROLES, RoleForm, Scheme
from harness.drive.certificates import Authority
from harness.drive.identities import CASES, IdentityStore, cases_of, make_identities
from harness.record.verdict import BrokenError

OPERATOR = {"text": "operator"}
VIEWER = {"text": "viewer", "may": ["query", "stream"]}
MISPLACED = 22  # the catalogue's number of roles at another place


def scheme(**table: object) -> Scheme:
    """Return the scheme of a table, as a dialect's file has it."""
    return msgspec.convert(table, Scheme)


def names(chosen: Scheme) -> set[str]:
    return {case.name for case in cases_of(chosen)}


def subject_of(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str | bytes]:
    return [each.value for each in certificate.subject.get_attributes_for_oid(oid)]


def alternatives_of(certificate: x509.Certificate, kind: type[x509.GeneralName]) -> list[object]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return list(extension.value.get_values_for_type(kind))  # type: ignore[arg-type]


def load(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes())


@pytest.mark.parametrize(
    ("place", "oid"),
    [
        ("OU", NameOID.ORGANIZATIONAL_UNIT_NAME),
        ("O", NameOID.ORGANIZATION_NAME),
        ("CN", NameOID.COMMON_NAME),
    ],
)
def test_role_is_in_the_subject(place: str, oid: x509.ObjectIdentifier, tmp_path: Path) -> None:
    make_identities(tmp_path, scheme=scheme(roles=place, admin=OPERATOR, user=VIEWER))
    assert subject_of(load(tmp_path, "admin"), oid) == ["operator"]
    assert subject_of(load(tmp_path, "user"), oid) == ["viewer"]
    assert "operator" not in subject_of(load(tmp_path, "case-18-no-role"), oid)


@pytest.mark.parametrize(
    ("place", "kind", "text"),
    [
        ("DNS", x509.DNSName, "operator.example"),
        ("URI", x509.UniformResourceIdentifier, "spiffe://example/operator"),
        ("email", x509.RFC822Name, "operator@example.org"),
    ],
)
def test_role_is_an_alternative_name(
    place: str, kind: type[x509.GeneralName], text: str, tmp_path: Path
) -> None:
    make_identities(tmp_path, scheme=scheme(roles=place, admin={"text": text}))
    assert alternatives_of(load(tmp_path, "admin"), kind) == [text]
    with pytest.raises(x509.ExtensionNotFound):
        alternatives_of(load(tmp_path, "case-18-no-role"), kind)


@pytest.mark.parametrize(
    ("encoding", "text", "der"),
    [
        ("UTF8String", "op", b"\x0c\x02op"),
        ("UTF8String", "o" * 127, b"\x0c\x7f" + b"o" * 127),
        ("UTF8String", "o" * 128, b"\x0c\x81\x80" + b"o" * 128),
        ("UTF8String", "o" * 1000, b"\x0c\x82\x03\xe8" + b"o" * 1000),
        ("raw", "op", b"op"),
    ],
)
def test_role_is_an_extension_in_either_encoding(
    encoding: str, text: str, der: bytes, tmp_path: Path
) -> None:
    admin = {"text": text, "oid": "1.2.3.4"}
    make_identities(tmp_path, scheme=scheme(roles="extension", admin=admin, encoding=encoding))
    found = load(tmp_path, "admin").extensions.get_extension_for_oid(
        x509.ObjectIdentifier("1.2.3.4")
    )
    assert isinstance(found.value, x509.UnrecognizedExtension)
    assert (found.value.value, found.critical) == (der, False)


def test_server_without_roles_gets_no_case_about_roles() -> None:
    without = names(WITHOUT_ROLES)
    assert without == {
        "admin", "elliptic curve", "no expiry date", "expired", "not yet valid", "another CA",
        "another CA with the same subject", "self-signed", "server key usage",
        "elliptic curve P-384", "RSA of 3072 bits",
    }  # fmt: skip
    assert WITHOUT_ROLES.may("user", "StopJob")


def test_faulty_role_is_a_case_where_it_means_something() -> None:
    unit = scheme(roles="OU", admin=OPERATOR, user=VIEWER)
    about_roles = names(unit) - names(WITHOUT_ROLES)
    twin = "no role, and an admin's serial number"
    assert about_roles == {"user", "no role", twin, "admin in the common name, no role"}
    name = scheme(roles="CN", admin=OPERATOR, user=VIEWER)
    about_roles = names(name) - names(WITHOUT_ROLES)
    assert about_roles == {"user", "no role", twin, "admin in the organizational unit, no role"}
    raw = RoleForm(text="op", oid="1.2.3.4")
    assert "truncated role" not in names(Scheme(roles="extension", admin=raw, encoding="raw"))
    assert "truncated role" in names(Scheme(roles="extension", admin=raw))
    any_text = names(Scheme(roles="extension", admin=raw, encoding="any"))
    assert "truncated role" not in any_text
    assert "no role" in any_text


@pytest.mark.parametrize("oid", ["0.39", "1.2.840.113549", "2.999.3", "2.25." + "9" * 17])
@pytest.mark.parametrize("place", ["extension", "URI", "DNS", "CN"])
def test_a_scheme_that_loads_makes_certificates(place: str, oid: str) -> None:
    admin = {"text": "o" * 64, "common_name": "o" * 64}
    chosen = scheme(roles=place, admin=admin | ({"oid": oid} if place == "extension" else {}))
    authority = Authority()
    certificates = [
        authority._sign(case.spec.key(), case.spec)
        for case in cases_of(chosen)
        if case.name in {"admin", "no role", "truncated role"} or case.number == MISPLACED
    ]
    assert len(certificates) > 1


def test_a_role_that_no_common_name_can_have_is_no_case_there() -> None:
    about = "admin in the common name, no role"
    assert about in names(scheme(roles="URI", admin={"text": "o" * 64}))
    assert about not in names(scheme(roles="URI", admin={"text": "o" * 65}))


def test_a_servers_name_that_no_certificate_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        BrokenError, match=r"no certificate of localhost, .*, r\xf4le in this scheme"
    ):
        make_identities(tmp_path, ["r\xf4le"])


def test_what_mutual_tls_leaves_to_the_server_counts_only_if_the_scheme_names_it() -> None:
    assert not set(OPTIONAL) & names(WITHOUT_ROLES)
    chosen = scheme(refuses=["RSA of 1024 bits"], accepts=["no key usage"])
    decided = {case.name: case.expected for case in cases_of(chosen) if case.is_optional}
    assert decided == {"RSA of 1024 bits": "UNAUTHENTICATED", "no key usage": "OK"}
    refused = {case.name: case.expected for case in cases_of(scheme(refuses=[OPTIONAL[-1]]))}
    assert refused["extension of 100 KB"] == "UNAVAILABLE"


def test_our_own_scheme_decides_everything() -> None:
    assert set(OPTIONAL) <= {case.name for case in CASES}
    assert OURS.has_roles
    assert OURS.has_rules
    allowed = [rpc for rpc in ("StartJob", "StopJob", "QueryJob") if OURS.may("user", rpc)]
    assert allowed == ["QueryJob"]


def test_without_a_user_both_certificates_have_the_admins_role(tmp_path: Path) -> None:
    make_identities(tmp_path, scheme=scheme(roles="O", admin=OPERATOR))
    assert subject_of(load(tmp_path, "user"), NameOID.ORGANIZATION_NAME) == ["operator"]


def test_common_name_is_the_owners(tmp_path: Path) -> None:
    make_identities(tmp_path, scheme=scheme(admin={"common_name": "alice"}))
    for name in ("admin", "user", "case-0-elliptic-curve"):
        assert subject_of(load(tmp_path, name), NameOID.COMMON_NAME) == ["alice"], name


@pytest.mark.parametrize(
    ("key", "kind", "bits"),
    [
        ("RSA 3072", rsa.RSAPublicKey, 3072),
        ("ECDSA P-256", ec.EllipticCurvePublicKey, 256),
        ("ECDSA P-384", ec.EllipticCurvePublicKey, 384),
    ],
)
def test_every_key_is_of_the_kind(key: str, kind: type, bits: int, tmp_path: Path) -> None:
    store = make_identities(tmp_path, scheme=scheme(key=key))
    for name in ("ca", "server", "admin"):
        public = load(tmp_path, name).public_key()
        assert isinstance(public, kind), name
        assert getattr(public, "key_size", 0) == bits, name
    later = store.sign("later", next(iter(cases_of(store.scheme))).spec)
    assert later.cert.is_file()


def test_copies_have_the_names_that_the_server_wants(tmp_path: Path) -> None:
    files = {"certs/server/server.pem": "server.crt", "certs/server/key.pem": "server.key"}
    make_identities(tmp_path, scheme=scheme(files=files))
    for path, name in files.items():
        assert (tmp_path / path).read_bytes() == (tmp_path / name).read_bytes()
    assert stat.S_IMODE((tmp_path / "certs/server/key.pem").stat().st_mode) == 0o600


def test_store_knows_its_scheme_and_rejects_another(tmp_path: Path) -> None:
    made = scheme(roles="OU", admin=OPERATOR, user=VIEWER, files={"a": "ca.crt"})
    make_identities(tmp_path, scheme=made)
    store = IdentityStore(tmp_path)
    assert store.scheme == made
    store.require_scheme(msgspec.structs.replace(made, files={}))
    with pytest.raises(BrokenError, match="roles in OU, required extension"):
        store.require_scheme(OURS)
    (tmp_path / "scheme.json").write_text('{"rolls": 1}')
    with pytest.raises(BrokenError, match="generate the certificates anew"):
        IdentityStore(tmp_path).require_scheme(OURS)
    (tmp_path / "scheme.json").unlink()
    assert IdentityStore(tmp_path).scheme == OURS


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"roles": "tokens"}, "certificates and no tokens"),
        ({"roles": "OU"}, "admin.text = '' with roles = 'OU': name the role"),
        ({"admin": OPERATOR}, "admin.text = 'operator' with roles = 'none': leave it out"),
        ({"roles": "OU", "admin": {"text": "x", "oid": "1.2"}}, "left out otherwise"),
        ({"roles": "extension", "admin": {"text": "x", "oid": "1.x"}}, "it must be dotted numbers"),
        ({"roles": "OU", "admin": OPERATOR | {"may": ["stop"]}}, "leave it out"),
        (
            {"roles": "OU", "admin": OPERATOR, "user": {"text": "v", "may": ["query"]}},
            "a user must be allowed query and stream",
        ),
        ({"user": {"may": ["query", "stream"]}}, "every certificate may call every rpc"),
        ({"refuses": ["weak keys"]}, "refuses: 'weak keys'; it may have any key usage"),
        ({"refuses": ["no key usage"], "accepts": ["no key usage"]}, "name it once"),
        ({"accepts": ["Ed25519 key"]}, "cannot present it"),
        ({"refuses": ["both roles"]}, "needs admin and user"),
        ({"files": {"/etc/x": "ca.crt"}}, "another path below the directory"),
        ({"files": {"a/../../x": "ca.crt"}}, "another path below the directory"),
        ({"files": {"admin.key": "ca.crt"}}, "another path below the directory"),
        ({"files": {"x": "client.crt"}}, "it must be one of ca.crt"),
        ({"files": {"./ca.crt": "ca.crt"}}, "another path below the directory"),
        (
            {"roles": "OU", "admin": OPERATOR, "user": VIEWER | OPERATOR},
            "is the admin's role; name",
        ),
        ({"roles": "CN", "admin": {"text": "a" * 65}}, "with roles = 'CN': it may have 64 bytes"),
        (
            {"roles": "OU", "admin": {"text": "\xe9" * 33}},
            "with roles = 'OU': it may have 64 bytes",
        ),
        ({"admin": {"common_name": "a" * 65}}, "admin.common_name = 'a+': it may have 64 bytes"),
        ({"roles": "DNS", "admin": {"text": "r\xf4le"}}, "it must be ASCII without spaces"),
        ({"roles": "email", "admin": {"text": "operator"}}, "it must be NAME@DOMAIN"),
        (
            {"roles": "extension", "admin": {"text": "x", "oid": "1.40.1"}},
            "admin.oid = '1.40.1'; it must be dotted numbers",
        ),
    ],
)
def test_table_that_contradicts_itself_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        scheme(**table)
