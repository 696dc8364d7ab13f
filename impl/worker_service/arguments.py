"""The client commands' parameter types: every value fits the API's field, or gRPC's setting.

Beyond these ranges protobuf and gRPC raise errors of their own, some after the job's start.
"""

from collections.abc import Callable
from typing import Any, Final

import click

from worker_service import cgroup
from worker_service.rule import HOUR_S, Kind, Rule, quantity

_UINT64_MAX: Final = 2**64 - 1
_UINT32_MAX_S: Final = 1193 * HOUR_S  # of milliseconds, in whole hours
_GRPC_MAX_S: Final = 596 * HOUR_S  # gRPC's settings have 31 bits


class _Argument(click.ParamType[Any]):
    """A parameter written as text, converted by a function.

    Its ValueError is what the value must be, to follow the words "it must be".
    """

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{value!r} is invalid; it must be {error}", param, ctx)


def _within(kind: Kind, lowest: float, highest: float) -> _Argument:
    return _Argument(kind, Rule(kind, lowest, highest).accept)


def _parse_text(text: str) -> str:
    # Python keeps bytes of an argument that are not UTF-8 as surrogates.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("UTF-8")
    return text


def _parse_cores(text: str) -> int:
    """Return a number of cores in thousandths."""
    lowest, highest = cgroup.CPU_MIN_MILLICORES, cgroup.CPU_MAX_MILLICORES
    try:
        millicores = round(quantity(text, Kind.NUMBER) * 1000)
    except ValueError:
        millicores = 0
    if not lowest <= millicores <= highest:
        raise ValueError(f"from {lowest / 1000:g} to {highest / 1000:g} cores, for example 0.5")
    return millicores


_RATE: Final = Rule(Kind.SIZE, 1, 2**63 - 1)  # the kernel's numbers are signed
_RATES: Final = {
    "rbps": "read_bytes_per_second",
    "wbps": "write_bytes_per_second",
    "riops": "read_operations_per_second",
    "wiops": "write_operations_per_second",
}


def _parse_io_max(text: str) -> cgroup.IoMax:
    """Parse `/dev/vda:rbps=1MiB,wiops=100`."""
    device, _, rest = _parse_text(text).rpartition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")]
    try:
        rates = {_RATES[key]: _RATE.accept(value) for key, _, value in pairs}
    except (KeyError, ValueError):
        rates = {}
    if not device or len(rates) != len(pairs):  # also a key that is given twice
        raise ValueError(
            f"DEVICE:KEY=VALUE,... with keys {', '.join(_RATES)}, each once, and values from "
            f"{_RATE.bounds()}, for example /dev/vda:rbps=1MiB,wiops=100"
        )
    return cgroup.IoMax(device, **rates)


TEXT: Final = _Argument("text", _parse_text)
CPU: Final = _Argument("cores", _parse_cores)
MEMORY: Final = _within(Kind.SIZE, cgroup.MEMORY_MIN_BYTES, cgroup.MEMORY_MAX_BYTES)
IO_WEIGHT: Final = _within(Kind.NUMBER, 1, cgroup.IO_WEIGHT_MAX)
IO_MAX: Final = _Argument("device:key=value,...", _parse_io_max)
PIDS: Final = _within(Kind.NUMBER, 1, cgroup.PIDS_MAX)
GRACE: Final = _within(Kind.DURATION, 0, _UINT32_MAX_S)
TIMEOUT: Final = _within(Kind.DURATION, 0.001, _GRPC_MAX_S)
OFFSET: Final = _within(Kind.SIZE, 0, _UINT64_MAX)
LINES: Final = _within(Kind.NUMBER, 0, _UINT64_MAX)
