"""`certs/make-certs` as a program: the certificates that it makes, keeps and replaces."""

import datetime as dt
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from harness.drive.certificates import ADMIN_OID, ADMIN_TEXT, USER_OID, USER_TEXT

SCRIPT = Path(__file__).parents[2] / "certs" / "make-certs"
DAYS = {"ca": 365, "server": 365, "admin": 45, "user": 45}


def make_certs(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, "--out", str(out), *options],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one run, with four keys of 4096 bits."""
    out = tmp_path_factory.mktemp("made") / "out"
    done = make_certs(out)
    assert done.returncode == 0, done.stderr
    assert "PRIVATE" not in done.stdout + done.stderr
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the files, for a test to change."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def certificate(out: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((out / f"{name}.crt").read_bytes())


@pytest.mark.parametrize("name", DAYS)
def test_key_signature_and_validity_are_as_required(made: Path, name: str) -> None:
    made_one = certificate(made, name)
    key = made_one.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 4096
    assert isinstance(made_one.signature_hash_algorithm, hashes.SHA256)
    life = made_one.not_valid_after_utc - made_one.not_valid_before_utc
    # Begun before it was made: a machine whose clock is five minutes behind accepts it.
    assert life == dt.timedelta(days=DAYS[name], minutes=5)
    made_at_s = (made / f"{name}.crt").stat().st_mtime
    assert made_at_s - made_one.not_valid_before_utc.timestamp() >= 300
    private = serialization.load_pem_private_key((made / f"{name}.key").read_bytes(), None)
    assert private.public_key() == key


@pytest.mark.parametrize(
    ("name", "oid", "der", "usage"),
    [
        ("admin", ADMIN_OID, ADMIN_TEXT, ExtendedKeyUsageOID.CLIENT_AUTH),
        ("user", USER_OID, USER_TEXT, ExtendedKeyUsageOID.CLIENT_AUTH),
        ("server", None, None, ExtendedKeyUsageOID.SERVER_AUTH),
    ],
)
def test_role_and_key_usage_are_as_required(
    made: Path, name: str, oid: str | None, der: bytes | None, usage: x509.ObjectIdentifier
) -> None:
    extensions = certificate(made, name).extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    roles = {
        extension.oid.dotted_string: (extension.value.value, extension.critical)
        for extension in extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    assert roles == ({oid: (der, False)} if oid else {})


def test_server_is_named_localhost_and_openssl_accepts_the_chain(made: Path) -> None:
    names = certificate(made, "server").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost"]
    addresses = [str(address) for address in names.value.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1"]
    for purpose, name in (("sslserver", "server"), ("sslclient", "admin"), ("sslclient", "user")):
        verify = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
        verify += ["-CAfile", str(made / "ca.crt"), str(made / f"{name}.crt")]
        subprocess.run(verify, check=True, capture_output=True, timeout=30)


def test_keys_are_readable_by_their_owner_only_and_no_other_file_is_left(made: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
    keys = {f"{name}.key": 0o600 for name in DAYS}
    assert modes == keys | {f"{name}.crt": 0o644 for name in DAYS}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_second_run_changes_nothing_and_prints_when_each_expires(out: Path) -> None:
    before = contents(out)
    done = make_certs(out)
    assert done.returncode == 0, done.stderr
    assert contents(out) == before
    for name, days in DAYS.items():
        [row] = [line for line in done.stdout.splitlines() if line.startswith(f"{name}  ")]
        assert f"{certificate(out, name).not_valid_after_utc:%Y-%m-%d}" in row
        assert f" {days} " in row
        assert row.endswith("kept")


def test_renewing_the_clients_keeps_the_ca_and_the_server(out: Path) -> None:
    before = contents(out)
    assert make_certs(out, "--renew", "clients").returncode == 0
    changed = {name for name, data in contents(out).items() if before[name] != data}
    assert changed == {"admin.key", "admin.crt", "user.key", "user.crt"}
    certificate(out, "admin").verify_directly_issued_by(certificate(out, "ca"))


def test_mismatched_and_missing_files_are_replaced_and_the_rest_stays(out: Path) -> None:
    before = contents(out)
    shutil.copy(out / "user.key", out / "admin.key")
    (out / "server.crt").unlink()
    done = make_certs(out)
    assert done.returncode == 0, done.stderr
    assert "did not match" in done.stdout
    changed = {name for name, data in contents(out).items() if before[name] != data}
    assert changed == {"admin.key", "admin.crt", "server.key", "server.crt"}


def test_certificate_about_to_expire_is_renewed(out: Path) -> None:
    # The user's certificate with three days left, signed by the same CA.
    old = certificate(out, "user")
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=old.issuer,
        subject_name=old.subject,
        public_key=old.public_key(),
        serial_number=old.serial_number,
        not_valid_before=now - dt.timedelta(days=42),
        not_valid_after=now + dt.timedelta(days=3),
        extensions=list(old.extensions),
    )
    key = serialization.load_pem_private_key((out / "ca.key").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    ending = builder.sign(key, hashes.SHA256())
    (out / "user.crt").write_bytes(ending.public_bytes(serialization.Encoding.PEM))
    done = make_certs(out)
    assert "had only 3 days left" in done.stdout
    assert certificate(out, "user").not_valid_after_utc > now + dt.timedelta(days=44)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--nonsense"], "unknown option '--nonsense'; allowed are"),
        (["--renew", "ca"], "use --force"),
        (["--renew", "x"], "allowed are clients, admin, user and server"),
        (["--server-name", "a b"], "--server-name got 'a b'"),
        (["--renew-within-days", "-1"], "whole number"),
    ],
)
def test_invalid_option_is_rejected_and_no_file_is_made(
    tmp_path: Path, options: list[str], text: str
) -> None:
    done = make_certs(tmp_path / "out", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert not (tmp_path / "out").exists()


def test_run_after_a_killed_one_repairs_the_files(out: Path) -> None:
    # As after a kill between the two renames: the new key beside the old certificate.
    shutil.copy(out / "server.key", out / "admin.key")
    (out / ".new.abc123").mkdir()
    (out / ".new.abc123" / "user.key").write_text("half a key")
    assert make_certs(out).returncode == 0
    assert not list(out.glob(".new*"))
    private = serialization.load_pem_private_key((out / "admin.key").read_bytes(), None)
    assert private.public_key() == certificate(out, "admin").public_key()
