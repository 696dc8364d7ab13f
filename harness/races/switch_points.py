"""Where an exhaustive search lets others in: before each access that locks do not keep apart.

A program without data races behaves the same whatever happens between two of its synchronisation
operations, so it is enough to switch threads there (Musuvathi and Qadeer, "Iterative Context
Bounding", PLDI 2007). What does race is learnt from the happens-before detector, which watches each
schedule of the search, and is a point from then on; so are atomics and deques, which threads share
without a lock on purpose. A search that learns something new was not exhaustive, and begins again
(`exploration`).

What is no attribute of a watched class, nor held by one, is not seen.
"""

from collections.abc import Callable

from harness.races.detector import Beside, Detector, Variable


class Points:
    """Listens to one schedule, for the detector too.

    Args:
        detector: told of everything.
        racing: the names of the variables that are known to race.
        let_others_in: the point.
    """

    def __init__(
        self, detector: Detector, racing: frozenset[str], let_others_in: Callable[[], None]
    ) -> None:
        self._detector = detector
        self._racing = racing
        self._let_others_in = let_others_in
        self.beside: Beside = detector.beside

    def read(self, variable: Variable) -> None:
        """See `watching.Listener`."""
        if self._is_point(variable):
            self._let_others_in()
        self._detector.read(variable)

    def write(self, variable: Variable) -> None:
        """See `watching.Listener`."""
        if self._is_point(variable):
            self._let_others_in()
        self._detector.write(variable)

    def _is_point(self, variable: Variable) -> bool:
        return (variable.atomic and not variable.settled) or variable.name in self._racing

    def put(self, variable: Variable) -> None:
        """See `watching.Listener`."""
        if not variable.settled:
            self._let_others_in()
        self._detector.put(variable)

    def taken(self, variable: Variable) -> None:
        """See `watching.Listener`."""
        self._detector.taken(variable)

    def looked(self, variable: Variable) -> None:
        """See `watching.Listener`."""
        if not variable.settled:
            self._let_others_in()
        self._detector.looked(variable)
