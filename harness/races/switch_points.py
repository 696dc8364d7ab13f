"""Where an exhaustive search switches threads: before each access that no lock orders.

A program without data races behaves the same whatever runs between two of its synchronisation
operations, so it is enough to switch threads there (Musuvathi and Qadeer, "Iterative Context
Bounding", PLDI 2007). The happens-before detector watches each schedule of the search; a variable
that it reports as racing is a switch point from then on. So are atomics and deques, which threads
share without a lock on purpose. A search that learns of a new one was not exhaustive and restarts
(`exploration`).

Not covered: variables that are neither attributes of a watched class nor contents of one.
"""

from collections.abc import Callable

from harness.races.detector import Detector, SlotVariables, Variable


class SwitchPoints:
    """A listener for one schedule that adds switch points and passes each access on.

    Args:
        detector: receives every access.
        racing: the names of the variables that are known to race.
        switch_point: lets the scheduler switch threads.
    """

    def __init__(
        self, detector: Detector, racing: frozenset[str], switch_point: Callable[[], None]
    ) -> None:
        self._detector = detector
        self._racing = racing
        self._switch_point = switch_point
        self.slot_variables: SlotVariables = detector.slot_variables

    def read(self, variable: Variable) -> None:
        """See `instrumentation.Listener`."""
        if self._is_point(variable):
            self._switch_point()
        self._detector.read(variable)

    def write(self, variable: Variable) -> None:
        """See `instrumentation.Listener`."""
        if self._is_point(variable):
            self._switch_point()
        self._detector.write(variable)

    def _is_point(self, variable: Variable) -> bool:
        return (variable.atomic and not variable.settled) or variable.name in self._racing

    def put(self, variable: Variable) -> None:
        """See `instrumentation.Listener`."""
        if not variable.settled:
            self._switch_point()
        self._detector.put(variable)

    def get(self, variable: Variable) -> None:
        """See `instrumentation.Listener`."""
        self._detector.get(variable)

    def peek(self, variable: Variable) -> None:
        """See `instrumentation.Listener`."""
        if not variable.settled:
            self._switch_point()
        self._detector.peek(variable)
