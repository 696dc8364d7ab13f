"""The harness's own certificates: complete, private, and valid for their purpose."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from harness.dialects.identity_scheme import ROOT_FILES
from harness.drive.certificates import CertificateSpec
from harness.drive.identities import CASES, IdentityStore, make_identities
from harness.record.verdict import BrokenError, UnsupportedError

ROOT = Path(__file__).parents[2]


def test_identities_command_writes_private_keys_and_valid_server_certificate(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "made"
    done = subprocess.run(
        [sys.executable, "-m", "harness", "identities", str(directory), "--name", "example.org"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert f"--identities {directory}" in done.stdout
    names = {path.name for path in directory.iterdir()}
    assert names >= set(ROOT_FILES) | {f"{case.file_name}.crt" for case in CASES}
    for path in directory.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    verified = subprocess.run(
        ["openssl", "verify", "-purpose", "sslserver", "-verify_hostname", "example.org",
         "-CAfile", str(directory / "ca.crt"), str(directory / "server.crt")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_store_signs_later_certificates_by_same_authority(tmp_path: Path) -> None:
    make_identities(tmp_path)
    store = IdentityStore(tmp_path)
    assert store.has_authority()
    files = store.sign("later", CertificateSpec(common_name="later"))
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    certificate.verify_directly_issued_by(authority)


def test_store_names_missing_files_and_the_command_that_makes_them(tmp_path: Path) -> None:
    store = IdentityStore(tmp_path)
    assert not store.has_authority()
    with pytest.raises(UnsupportedError, match="-m harness identities DIR makes it"):
        store.files("admin")
    with pytest.raises(UnsupportedError, match="the authority's key"):
        store.sign("x", CertificateSpec())
    (tmp_path / "file").touch()
    with pytest.raises(BrokenError, match="name a directory to write to"):
        make_identities(tmp_path / "file")
