"""Latencies as HdrHistograms: they merge across processes and runs, and other tools read them.

The one door to the package `hdrhistogram`. Values are microseconds, to three digits, up to an hour.
"""

# mypy: disable-error-code="import-not-found, import-untyped"
# The package has no types.

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

_LEAST_US: Final = 1
_MOST_US: Final = 3_600_000_000
_DIGITS: Final = 3

type Nanoseconds = npt.NDArray[np.int64]


def histogram(values_ns: Nanoseconds) -> Any:  # noqa: ANN401 - the package has no types
    """Return an HdrHistogram of values; less than a microsecond counts as one."""
    made = HdrHistogram(_LEAST_US, _MOST_US, _DIGITS)
    microseconds = np.clip(values_ns // 1000, _LEAST_US, _MOST_US)
    for value, count in zip(*np.unique(microseconds, return_counts=True), strict=True):
        made.record_value(int(value), int(count))
    return made


def merged(encoded: list[str]) -> Any:  # noqa: ANN401 - as above
    """Return the sum of encoded histograms."""
    made = HdrHistogram(_LEAST_US, _MOST_US, _DIGITS)
    for each in encoded:
        made.decode_and_add(each)
    return made


def encoded(values_ns: Nanoseconds) -> str:
    """Return values as HdrHistogram's own compressed text (V2, base64)."""
    text: bytes = histogram(values_ns).encode()
    return text.decode("ascii")


def hgrm(values_ns: Nanoseconds) -> str:
    """Return values as a percentile distribution in milliseconds, as `.hgrm` plotters read it."""
    file = io.BytesIO()
    histogram(values_ns).output_percentile_distribution(file, 1000.0)
    return file.getvalue().decode("ascii")
