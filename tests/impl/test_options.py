"""The command line's parameter types."""

import click
import pytest

from worker_service.cgroup import IoMax
from worker_service.options import IO_MAX


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8:0:rbps=1MiB,wiops=100", IoMax("8:0", 2**20, None, None, 100)),
        ("/dev/vda:wbps=5", IoMax("/dev/vda", None, 5)),
    ],
)
def test_io_max_parses_device_and_rates(text: str, expected: IoMax) -> None:
    assert IO_MAX.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "8:0", "/dev/vda", "/dev/vda:rbps", "/dev/vda:speed=1"])
def test_io_max_rejects_other_text_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="for example"):
        IO_MAX.convert(text, None, None)
