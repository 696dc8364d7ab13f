"""The client commands' parameter types: every value fits the API's field, or gRPC's setting.

Beyond these ranges protobuf and gRPC raise errors of their own, some after the job's start.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import click

from worker_service import cgroup
from worker_service.options import DURATION, SIZE
from worker_service.options import IO_MAX as ANY_IO_MAX

_UINT32_MAX: Final = 2**32 - 1
_UINT64_MAX: Final = 2**64 - 1
_GRPC_MAX: Final = 2**31 - 1  # of gRPC's settings in milliseconds


class _Checked(click.ParamType[Any]):
    """A parameter type whose converted values must also pass a test."""

    def __init__(
        self, kind: click.ParamType[Any], fits: Callable[[Any], bool], required: str, name: str = ""
    ) -> None:
        self.name = name or kind.name
        self._kind = kind
        self._fits = fits
        self._required = required

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        converted = self._kind.convert(value, param, ctx)
        if not self._fits(converted):
            self.fail(f"{value!r} is invalid; it must be {self._required}", param, ctx)
        return converted


def _number(
    kind: click.ParamType[Any], least: float, most: float, required: str = "", name: str = ""
) -> _Checked:
    # A comparison with NaN is false.
    return _Checked(
        kind,
        lambda value: least <= value <= most,
        f"from {required or f'{least} to {most}'}",
        name,
    )


def _is_text(value: str) -> bool:
    # Python keeps bytes of an argument that are not UTF-8 as surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_io_max(ceiling: cgroup.IoMax) -> bool:
    device, *rates = dataclasses.astuple(ceiling)
    return _is_text(device) and all(rate is None or 1 <= rate <= _UINT64_MAX for rate in rates)


TEXT: Final = _Checked(click.STRING, _is_text, "UTF-8")
CPU: Final = _number(
    click.FLOAT, cgroup.CPU_MIN_MILLICORES / 1000, cgroup.CPU_MAX_MILLICORES / 1000, name="cores"
)
MEMORY: Final = _number(
    SIZE, cgroup.MEMORY_MIN_BYTES, cgroup.MEMORY_MAX_BYTES, "1MiB to 8388608GiB"
)
IO_WEIGHT: Final = _number(click.INT, 1, cgroup.IO_WEIGHT_MAX)
IO_MAX: Final = _Checked(ANY_IO_MAX, _is_io_max, "UTF-8, with rates of at least 1")
PIDS: Final = _number(click.INT, 1, cgroup.PIDS_MAX)
GRACE: Final = _number(DURATION, 0, _UINT32_MAX / 1000, "0 to 1193h")
TIMEOUT: Final = _number(DURATION, 0.001, _GRPC_MAX / 1000, "1ms to 596h")
OFFSET: Final = _number(SIZE, 0, _UINT64_MAX)
LINES: Final = _number(click.INT, 0, _UINT64_MAX)
