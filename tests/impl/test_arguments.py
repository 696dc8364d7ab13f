"""The client commands' parameters: no value passes that protobuf or gRPC would refuse later."""

from typing import Any

import click
import pytest

from worker_service import arguments
from worker_service.cgroup import IoMax, Limits
from worker_service.errors import InvalidRequestError

REFUSED: dict[str, tuple[Any, list[str]]] = {
    "--cpu": (arguments.CPU, ["inf", "-inf", "nan", "-1", "0", "0.009", "1001", "1e30", "lots"]),
    "--memory": (arguments.MEMORY, ["0", "1kB", "9000000GiB", "1e30", "-1", "nan"]),
    "--io-weight": (arguments.IO_WEIGHT, ["-5", "0", "10001", "99999999999", "1.5"]),
    "--io-max": (
        arguments.IO_MAX,
        ["8:0:rbps=0", "8:0:rbps=-1", "8:0:rbps=1e30", "/dev/\udcff:rbps=1"],
    ),
    "--pids": (arguments.PIDS, ["0", "-1", "4194305", "99999999999"]),
    "--grace": (arguments.GRACE, ["2000h", "-1", "nan", "inf", "1e30"]),
    "--timeout": (arguments.TIMEOUT, ["0", "0.5ms", "-1", "nan", "inf", "9e18", "600h"]),
    "--from-offset": (arguments.OFFSET, ["-1", "99999999999999999999", "nan"]),
    "--tail": (arguments.LINES, ["-1", "99999999999999999999", "1180591620717411303424"]),
    "JOB_ID": (arguments.TEXT, ["caf\udce9"]),
}
ACCEPTED: list[tuple[Any, str, object]] = [
    (arguments.CPU, "0.01", 10),
    (arguments.CPU, "1000", 1_000_000),
    (arguments.MEMORY, "1MiB", 2**20),
    (arguments.MEMORY, "8388608GiB", 2**53),
    (arguments.IO_WEIGHT, "10000", 10_000),
    (arguments.IO_MAX, "8:0:rbps=1", IoMax("8:0", 1)),
    (arguments.PIDS, "4194304", 4_194_304),
    (arguments.GRACE, "0", 0),
    (arguments.GRACE, "1193h", 1193 * 3600),
    (arguments.TIMEOUT, "1ms", 0.001),
    (arguments.TIMEOUT, "596h", 596 * 3600),
    (arguments.OFFSET, "0", 0),
    (arguments.LINES, "18446744073709551615", 2**64 - 1),
    (arguments.TEXT, "caf\u00e9", "caf\u00e9"),
]


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in REFUSED.values() for text in texts]
)
def test_value_outside_its_range_is_refused(kind: Any, text: str) -> None:
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)


@pytest.mark.parametrize(("kind", "text", "expected"), ACCEPTED)
def test_value_inside_its_range_is_converted(kind: Any, text: str, expected: object) -> None:
    assert kind.convert(text, None, None) == expected


def test_error_states_value_and_range() -> None:
    with pytest.raises(
        click.BadParameter, match=r"'inf' is invalid; it must be from 0\.01 to 1000 cores"
    ):
        arguments.CPU.convert("inf", None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8:0:rbps=1MiB,wiops=100", IoMax("8:0", 2**20, None, None, 100)),
        ("/dev/vda:wbps=5", IoMax("/dev/vda", None, 5)),
        (f"/dev/vda:riops={2**63 - 1}", IoMax("/dev/vda", None, None, 2**63 - 1)),
    ],
)
def test_io_max_parses_device_and_rates(text: str, expected: IoMax) -> None:
    assert arguments.IO_MAX.convert(text, None, None) == expected


@pytest.mark.parametrize(
    "text",
    ["", "8:0", "/dev/vda", "/dev/vda:rbps", "/dev/vda:speed=1", "/dev/vda:rbps=1\u00b2",
     "/dev/vda:rbps=\u0663", "/dev/vda:rbps=nan", "/dev/vda:rbps=0", "/dev/vda:rbps=-1",
     "/dev/vda:rbps=1.5", "/dev/vda:rbps=1,rbps=2", f"/dev/vda:rbps={2**63}"],
)  # fmt: skip
def test_io_max_rejects_other_text_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="for example"):
        arguments.IO_MAX.convert(text, None, None)


def test_io_max_device_of_other_digits_is_not_a_device() -> None:
    with pytest.raises(InvalidRequestError, match="must be a block device"):
        Limits(io_max=(IoMax("\u0668:0", 1),)).validate()


@pytest.mark.parametrize("kind", [arguments.OFFSET, arguments.GRACE], ids=["size", "duration"])
@pytest.mark.parametrize("text", ["inf", "nan", "-1", "1e30", "9" * 30, "", "lots", "\u0663"])
def test_size_and_duration_reject_other_text_with_an_example(kind: Any, text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is invalid; it must be .* for example"):
        kind.convert(text, None, None)
