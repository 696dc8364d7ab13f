"""A file is complete or absent, whatever happens while it is written."""

from pathlib import Path

import pytest

from harness.record.whole_file import write_whole


@pytest.mark.parametrize("data", ["tëxt\n", b"\x00bytes"])
def test_file_has_its_data_and_nothing_is_left_beside_it(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "results.json"
    path.write_text("older, and longer than the new one")
    write_whole(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    (tmp_path / "results.json.half").mkdir()
    with pytest.raises(OSError, match="half"):
        write_whole(path, "new")
    assert path.read_text() == "old"
