"""Pins are read as the installer reads them; any other line is refused."""

from pathlib import Path

import pytest

from harness.record.verdict import BrokenError
from harness.vulncheck.pins import parse_pin, read_pins

HASH = "--hash=sha256:" + "0" * 64
BAD = f"urllib3==1.24.1 {HASH}\n"


def pins(path: Path) -> list[str]:
    return [str(pin) for pin in read_pins(path)]


@pytest.mark.parametrize("spelling", ["-r {}", "-r{}", "--requirement={}", "--requirement {}"])
@pytest.mark.parametrize("relative", [True, False])
def test_nested_file_is_followed(spelling: str, relative: bool, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(BAD)
    nested = "other.txt" if relative else str(tmp_path / "other.txt")
    outer = tmp_path / "outer.txt"
    outer.write_text(f"six==1.17.0 {HASH}\n{spelling.format(nested)}  # and more\n")
    assert sorted(pins(outer)) == ["six==1.17.0", "urllib3==1.24.1"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"\ufeff{BAD}", id="byte order mark"),
        pytest.param(f"   {BAD}", id="indented"),
        pytest.param(f"\t\ufeff {BAD}"[1:], id="byte order mark and indented"),
        pytest.param(f"urllib3==1.24.1 \\\n    {HASH}\n", id="continued"),
        pytest.param(f"URLLib3 == 1.24.1 {HASH} # comment\n", id="other spelling"),
        pytest.param(f"urllib3[secure]==1.24.1 {HASH}\n", id="extra"),
        pytest.param(f"urllib3==1.24.1 ; python_version > '3' {HASH}\n", id="marker"),
        pytest.param(f"urllib3==01.24.1 {HASH}\n", id="other spelling of the version"),
        pytest.param(f"urllib3===1.24.1 {HASH}\n", id="arbitrary equality"),
        pytest.param(f"--require-hashes\n--only-binary :all:\n{BAD}", id="harmless options"),
    ],
)
def test_pin_is_read_as_installer_reads_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(text, encoding="utf-8")
    assert pins(path) == ["urllib3==1.24.1"]


def test_pin_for_another_machine_is_kept_and_does_not_apply(tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(f"urllib3==1.24.1 ; sys_platform == 'win32' {HASH}\n")
    [pin] = read_pins(path)
    assert not pin.applies


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-c limits.txt", "--constraints can change"),
        ("--constraint=limits.txt", "--constraints can change"),
        ("-e .", "a path or a URL"),
        ("./package", "a path or a URL"),
        ("package @ https://example.org/package.tar.gz", "a path or a URL"),
        ("https://example.org/package-1.0.tar.gz", "a path or a URL"),
        ("--index-url https://example.org/simple", "--index-url can change"),
        ("-i https://example.org/simple", "--index-url can change"),
        ("--extra-index-url=https://example.org", "can change"),
        ("--find-links ./wheels", "--find-links can change"),
        ("--pre", "--pre can change"),
        (f"package>=1.0 {HASH}", "not pinned"),
        (f"package==1.0,!=2.0 {HASH}", "not pinned"),
        (f"package==1.* {HASH}", "is not a version"),
        (f"package {HASH}", "not pinned"),
        ("package==1.0", "no --hash"),
        ("!!", "Invalid requirement"),
        (f"package==1.0 {HASH} --config-settings a=b", "no such option"),
        (f"package==${{VERSION}} {HASH}", "Invalid requirement"),
        (f"package==1.0 ; python_version < '${{NEWEST}}' {HASH}", "pip replaces variables"),
        ("-r ${OTHER}.txt", "pip replaces variables"),
    ],
)
def test_line_that_is_not_pin_is_refused_with_its_place(
    line: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "limits.txt").write_text("six<2\n")
    path = tmp_path / "lock.txt"
    path.write_text(f"# a comment\nsix==1.17.0 {HASH}\n{line}\n")
    with pytest.raises(BrokenError, match=r"lock\.txt:3: .*allowed are NAME") as caught:
        read_pins(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-r missing.txt\n", "missing.txt cannot be read"),
        ("-r https://example.org/lock.txt\n", "cannot be read"),
        ("-r lock.txt\n", "include one another"),
        ("", "no pinned package"),
        ("# nothing\n", "no pinned package"),
    ],
)
def test_file_without_readable_pins_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(text)
    with pytest.raises(BrokenError, match=said):
        read_pins(path)


def test_nested_file_behind_symlink_is_relative_to_the_link_as_pip_has_it(tmp_path: Path) -> None:
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "nested.txt").write_text(f"jinja2==2.1{name == 'c':d} {HASH}\n")
    (tmp_path / "c" / "real.txt").write_text("-r nested.txt\n")
    (tmp_path / "b" / "link.txt").symlink_to(tmp_path / "c" / "real.txt")
    (tmp_path / "lock.txt").write_text("-r b/link.txt\n")
    assert pins(tmp_path / "lock.txt") == ["jinja2==2.10"]


def test_files_that_include_one_another_are_refused_however_they_are_spelt(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.txt").write_text("-r ../d/./x.txt\n")
    with pytest.raises(BrokenError, match="include one another"):
        read_pins(tmp_path / "d" / "x.txt")


def test_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(BrokenError, match=r"lock\.txt"):
        read_pins(path)


@pytest.mark.parametrize("text", ["urllib3", "urllib3>=1", "urllib3==1.*", "a @ file:///b", "=="])
def test_text_that_is_not_pin_is_refused(text: str) -> None:
    with pytest.raises(BrokenError, match="write NAME==VERSION"):
        parse_pin(text)
