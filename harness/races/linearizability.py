"""Histories of calls, and whether some order of them, one after the other, explains all answers.

The search (Wing and Gong, with Lowe's memory) is the library `detangle`'s; this module is the only
one that knows it.
"""

from collections.abc import Callable, Hashable

from detangle.lin import Model, Operation, check

__all__ = ["History", "Model", "NotLinearizableError", "Operation"]


class NotLinearizableError(AssertionError):
    """No order explains the answers; the text shows the longest that does, and a time line."""


class History:
    """The calls of one run, in the order in which they began and ended.

    Shared state: the list and its clock. Each note is a list append and one count, made while only
    one thread runs (schedules are explored one instruction at a time, and this file's are not
    explored); a program that really runs in parallel must bring a lock.
    """

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._clock = 0

    def call[Answer](
        self, thread: Hashable, operation: str, argument: object, function: Callable[[], Answer]
    ) -> Answer:
        """Make a call and note its begin, its end and its answer.

        An exception is passed on; the call then may or may not have had its effect.
        """
        noted = Operation(len(self._operations), thread, operation, argument, self._tick(), 0.0)
        noted.status = "info"
        self._operations.append(noted)
        answer = function()
        noted.output, noted.status, noted.ret = answer, "ok", self._tick()
        return answer

    def must_be_linearizable(self, model: Model) -> None:
        """Judge.

        Raises:
            NotLinearizableError: with what cannot be explained.
        """
        judged = check(self._operations, model)
        if not judged.ok:
            raise NotLinearizableError(judged.explain())

    def _tick(self) -> int:
        self._clock += 1
        return self._clock
