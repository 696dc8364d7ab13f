"""The deny list: its serial numbers, and invalid lines and files."""

import logging
import subprocess
from pathlib import Path

import pytest

from harness.drive.certificates import Authority, CertificateSpec, serial_number
from worker_service.deny import DenyList
from worker_service.errors import ConfigurationError, NotAuthenticatedError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "denied"


def denies(deny_list: DenyList, serial: int) -> bool:
    try:
        deny_list.check(serial)
    except NotAuthenticatedError as error:
        return f"{serial:x}" in str(error)
    return False


@pytest.mark.parametrize(
    "line",
    [
        "1f2e", "1F2E", "1f:2e", "  1f2e  # a laptop", "001f2e", "0x1f2e", "0X1F2E", "1F 2E",
        "serial=1F2E", "Serial=001f2e", "serial = 1f2e", "serial=1f2e\r", "\t1f2e\t",
        "Serial Number: 1f:2e", "        Serial Number:\n            1f:2e",
        "        Serial Number: 7982 (0x1f2e)", "serialNumber=1F2E", "1f2e # M\u00fcllers",
    ],
)  # fmt: skip
def test_serial_number_is_read_as_openssl_and_the_audit_print_it(line: str, path: Path) -> None:
    path.write_text(f"# lost keys\n\n{line}\n", encoding="utf-8")
    deny_list = DenyList(path)
    assert denies(deny_list, 0x1F2E)
    assert not denies(deny_list, 0x1F2F)


NO_OTHER_LINES = [
    f"no_{part}"
    for part in (
        "header", "version", "signame", "issuer", "validity", "subject", "pubkey", "extensions",
        "sigdump", "aux",
    )
]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [["-serial"], ["-text", "-certopt", ",".join(NO_OTHER_LINES)]],
    ids=["serial", "text"],
)
def test_list_is_what_openssl_prints(options: list[str], path: Path, tmp_path: Path) -> None:
    files = Authority().write(tmp_path, "client", CertificateSpec())
    command = ["openssl", "x509", "-noout", "-in", str(files.cert), *options]
    path.write_bytes(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
    assert denies(DenyList(path), int(serial_number(files), 16))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_list_is_read_as_editors_of_windows_save_it(encoding: str, path: Path) -> None:
    path.write_bytes("1f2e\r\nserial=ab\r\n".encode(encoding))
    deny_list = DenyList(path)
    assert denies(deny_list, 0x1F2E)
    assert denies(deny_list, 0xAB)


def test_changed_file_is_reloaded_at_the_next_check(path: Path) -> None:
    path.write_text("")
    deny_list = DenyList(path)
    assert not denies(deny_list, 0xAB)
    path.write_text("ab\n")
    assert denies(deny_list, 0xAB)
    path.write_text("cd\n# ab\n")
    assert not denies(deny_list, 0xAB)


def test_file_is_reloaded_after_its_mode_is_corrected(path: Path) -> None:
    path.write_text("ab\n")
    deny_list = DenyList(path)
    path.write_text("cd\n")
    path.chmod(0o666)
    assert denies(deny_list, 0xAB)
    path.chmod(0o644)
    assert denies(deny_list, 0xCD)


@pytest.mark.parametrize(
    "line",
    [
        "xyz", "1f2e 3d4c", "serial=", "-1f", "1f_2e", "1f,2e", "ab serial=cd", "1:2f2e", "0x",
        "\u0661", "1f2e extra",
    ],
)  # fmt: skip
def test_line_that_is_no_serial_number_is_reported_with_its_place(
    line: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(f"# lost\nab\n{line}\n", encoding="utf-8")
    assert denies(DenyList(path), 0xAB)
    assert (
        f"{path}, line 3: {line!r} is not a serial number; write one serial number" in caplog.text
    )


def test_invalid_line_adds_the_valid_ones_and_readmits_no_client(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("ab\n")
    deny_list = DenyList(path)
    path.write_text("cd\nab typed wrong\n")
    assert denies(deny_list, 0xCD)
    assert denies(deny_list, 0xAB)
    # Once, not at every call.
    assert caplog.text.count("line 2: 'ab typed wrong' is not a serial number") == 1
    assert caplog.text.count("1 invalid lines") == 1
    path.write_text("cd\n")
    assert not denies(deny_list, 0xAB)


def test_list_of_invalid_lines_only_leaves_the_previous_list_in_force(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("ab\n")
    deny_list = DenyList(path)
    path.write_text("no serial number\n" * 1000)
    assert denies(deny_list, 0xAB)
    assert len(caplog.records) == 6, "the first lines and one summary"
    assert "the deny list has 1000 invalid lines" in caplog.text


@pytest.mark.parametrize("damage", ["writable", "missing"])
def test_missing_or_unsafe_file_leaves_the_previous_list_in_force(
    damage: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("ab\n")
    deny_list = DenyList(path)
    if damage == "writable":
        path.write_text("cd\n")
        path.chmod(0o666)
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert denies(deny_list, 0xAB)
        assert denies(deny_list, 0xAB)
    # Logged once, not at every call.
    assert len(caplog.records) == 1
    assert "stays in force" in caplog.text


@pytest.mark.parametrize(
    ("text", "mode", "error"),
    [
        ("# lost\nxyz\n", 0o600, "line 2: 'xyz' is not a serial number"),
        ("ab\n", 0o602, "everyone can write it"),
        (None, 0o600, "No such file"),
    ],
)
def test_file_without_a_valid_line_or_unsafe_at_the_start_is_an_error(
    text: str | None, mode: int, error: str, path: Path
) -> None:
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(ConfigurationError, match=error):
        DenyList(path)
