"""How busy the harness's machine was while a check ran, and which late answers that explains.

A promise with a bound in seconds judges the server only if the machine had time for both. The rule,
in one place: other programs slow a check down at most by the factor `slowdown`, and the harness saw
everything at most `late_s` late. What took longer than its bound, but not longer than
`bound * slowdown + late_s`, is inconclusive: BROKEN. Beyond that, and on a quiet machine always, it
is a FAIL.

What it leaves out: a server on another machine, whose load is not seen; a harness that is bound to
a part of the processors, or has a CPU quota, is seen as slow only by its own lateness.
"""

from dataclasses import dataclass
from typing import Final

from harness.record.history import Observation
from harness.record.verdict import DEADLINE_FACTOR, Duration

# Below these a machine is quiet. Daemons take a few per cent; the harness's own threads wait for
# each other some tenths of a second when a hundred of them are busy.
QUIET_SLOWDOWN: Final = 1.2
QUIET_LATE_S: Final = 0.3
# No load that leaves a machine usable explains more.
SLOWDOWN_MAX: Final = DEADLINE_FACTOR


@dataclass(frozen=True, slots=True)
class MachineLoad(Observation):
    """How busy the harness's machine was in the second of a check in which others took most.

    Attributes:
        others_share: the share of the processors' time that other programs and the hypervisor took,
            0 to 1; the harness, what it started and the server that it judges are not "others".
        tasks_per_processor: threads that ran or waited for a processor, all programs' together.
        late_s: by how much a thread of the harness woke late at most, during the whole check.
    """

    others_share: float
    tasks_per_processor: float
    late_s: float

    @property
    def slowdown(self) -> float:
        """Return how many times longer than alone work may take here, at least 1.

        A fair scheduler gives each of T threads on N processors N/T of one: work takes T/N times
        as long, others or not. Without the others the same work would have had all of the
        processors' time instead of 1 - share of it. So the lesser of both is the others' doing:
        the harness's own threads explain nothing, nor does one program beside an idle processor.
        """
        left = max(1.0 - self.others_share, 1.0 / SLOWDOWN_MAX)
        return max(1.0, min(1.0 / left, self.tasks_per_processor))

    @property
    def is_quiet(self) -> bool:
        """Whether the machine explains nothing."""
        return self.slowdown < QUIET_SLOWDOWN and self.late_s < QUIET_LATE_S

    def explains(self, duration: Duration) -> bool:
        """Return whether a right server may have taken so long on this machine."""
        most_s = duration.bound_s * self.slowdown + self.late_s
        return not self.is_quiet and duration.took_s <= most_s

    def sentence(self) -> str:
        """Return the load, for people."""
        return (
            f"the machine was too busy: other programs took {self.others_share:.0%} of its "
            f"processors, {self.tasks_per_processor:.1f} threads shared each, and the harness was "
            f"up to {self.late_s:.1f} s late"
        )
