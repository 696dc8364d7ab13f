"""When each message of a load is due: arithmetic without a clock, so that a table can test it.

The model is open: what is due depends on the plan alone, never on the server. A late writer sends
the next message at once and skips none, so a slow server shows as latency and not as a smaller
load. Standard library only: this text also runs as part of a job (`emitter`).
"""

from dataclasses import dataclass

NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class Pace:
    """`count` messages, in groups of `burst` at one instant, a group every `interval_ns`.

    An interval of 0 is a flood: all messages are due at once, and sent as fast as the pipe takes
    them.
    """

    count: int
    burst: int = 1
    interval_ns: int = 0

    def __post_init__(self) -> None:
        """Refuse an invalid plan.

        Raises:
            ValueError: names the wrong value and the allowed ones.
        """
        for name, least in (("count", 1), ("burst", 1), ("interval_ns", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def due_ns(self, number: int) -> int:
        """Return when message `number` (from 0) is due, in nanoseconds after the begin."""
        return number // self.burst * self.interval_ns

    def wait_ns(self, number: int, elapsed_ns: int) -> int:
        """Return how long to wait before message `number`; 0 when it is due or late."""
        return max(0, self.due_ns(number) - elapsed_ns)

    @property
    def is_flood(self) -> bool:
        """Whether only the pipe's reader sets the pace."""
        return self.interval_ns == 0

    @property
    def duration_ns(self) -> int:
        """The duration of the plan, to the end of the last group's interval."""
        return -(-self.count // self.burst) * self.interval_ns

    @property
    def rate_per_s(self) -> float:
        """The requested messages per second; infinite for a flood."""
        return float("inf") if self.is_flood else self.burst * NS_PER_S / self.interval_ns


def steady(rate_per_s: float, duration_s: float) -> Pace:
    """Return a plan of evenly spaced messages."""
    return bursts(1, 1 / rate_per_s, duration_s)


def bursts(burst: int, every_s: float, duration_s: float) -> Pace:
    """Return a plan of `burst` messages at once, every `every_s`."""
    groups = max(1, round(duration_s / every_s))
    return Pace(groups * burst, burst, round(every_s * NS_PER_S))


def flood(count: int) -> Pace:
    """Return a plan that sends as fast as the pipe takes it."""
    return Pace(count)
