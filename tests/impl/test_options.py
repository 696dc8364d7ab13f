"""The command line's parameter types."""

import click
import pytest

from worker_service.cgroup import IoMax, Limits
from worker_service.errors import InvalidRequestError
from worker_service.options import DURATION, IO_MAX, SIZE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8:0:rbps=1MiB,wiops=100", IoMax("8:0", 2**20, None, None, 100)),
        ("/dev/vda:wbps=5", IoMax("/dev/vda", None, 5)),
        (f"/dev/vda:riops={2**63 - 1}", IoMax("/dev/vda", None, None, 2**63 - 1)),
    ],
)
def test_io_max_parses_device_and_rates(text: str, expected: IoMax) -> None:
    assert IO_MAX.convert(text, None, None) == expected


@pytest.mark.parametrize(
    "text",
    ["", "8:0", "/dev/vda", "/dev/vda:rbps", "/dev/vda:speed=1", "/dev/vda:rbps=1\u00b2",
     "/dev/vda:rbps=\u0663", "/dev/vda:rbps=nan", "/dev/vda:rbps=0", "/dev/vda:rbps=-1",
     "/dev/vda:rbps=1.5", "/dev/vda:rbps=1,rbps=2", f"/dev/vda:rbps={2**63}"],
)  # fmt: skip
def test_io_max_rejects_other_text_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="for example"):
        IO_MAX.convert(text, None, None)


def test_io_max_device_of_other_digits_is_not_a_device() -> None:
    with pytest.raises(InvalidRequestError, match="must be a block device"):
        Limits(io_max=(IoMax("\u0668:0", 1),)).validate()


@pytest.mark.parametrize("kind", [SIZE, DURATION], ids=["size", "duration"])
@pytest.mark.parametrize("text", ["inf", "nan", "-1", "1e30", "9" * 30, "", "lots", "\u0663"])
def test_size_and_duration_reject_other_text_with_an_example(
    kind: click.ParamType[object], text: str
) -> None:
    with pytest.raises(click.BadParameter, match=r"is invalid; it must be .* for example"):
        kind.convert(text, None, None)


def test_size_and_duration_accept_what_the_api_can_carry() -> None:
    assert SIZE.convert(str(2**64 - 1), None, None) == 2**64 - 1
    assert DURATION.convert(f"{2**32 - 1}ms", None, None) == (2**32 - 1) / 1000
