"""A guest whose clock is faster or slower than the host's is not used."""

import pytest

from harness.record.verdict import BrokenError
from harness.vm.guest import ClockReading, Guest, require_same_pace


def readings(pace: float, *, overhead_s: float = 0.1) -> tuple[ClockReading, ClockReading]:
    """Return two readings that each took so long, three seconds of the guest apart."""
    host_s = 3 / pace
    return (
        ClockReading(0.0, 7.0, overhead_s),
        ClockReading(host_s, 10.0, host_s + overhead_s),
    )


@pytest.mark.parametrize("pace", [0.96, 1.0, 1.04])
def test_a_clock_that_may_be_right_is_accepted(pace: float) -> None:
    require_same_pace(*readings(pace))


@pytest.mark.parametrize("pace", [0.3, 0.8, 1.2, 3.14])
def test_a_clock_that_is_too_fast_or_too_slow_is_broken(pace: float) -> None:
    with pytest.raises(BrokenError, match="times as fast as the host's"):
        require_same_pace(*readings(pace))


def test_readings_that_took_long_show_nothing() -> None:
    require_same_pace(*readings(1.2, overhead_s=1.0))


@pytest.mark.vm
@pytest.mark.timeout(300)
def test_a_guests_clock_keeps_pace_with_the_hosts(guest: Guest) -> None:
    first = guest.read_clock()
    guest.require("sleep 3")
    require_same_pace(first, guest.read_clock())
