"""Operation histories, and whether some sequential order of the calls explains every answer.

The search (Wing and Gong's, with Lowe's memoization) is the library `detangle`'s. Only this module
imports it.
"""

from collections.abc import Callable, Hashable

from detangle.lin import Model, Operation, check

__all__ = ["Model", "NotLinearizableError", "Operation", "OperationHistory"]


class NotLinearizableError(AssertionError):
    """No order explains the answers; the text has the longest that does, and a timeline."""


class OperationHistory:
    """The calls of one run, in the order in which they began and ended.

    Shared state: the list and its clock. Each record is a list append and one increment, made while
    only one thread runs: schedules are explored one instruction at a time, and this file is not
    explored. A program with real parallelism must add a lock.
    """

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._clock = 0

    def call[Answer](
        self, thread: Hashable, operation: str, argument: object, function: Callable[[], Answer]
    ) -> Answer:
        """Make a call and record its begin, its end and its answer.

        An exception is passed on; such a call counts as possibly completed.
        """
        record = Operation(len(self._operations), thread, operation, argument, self._tick(), 0.0)
        record.status = "info"
        self._operations.append(record)
        answer = function()
        record.output, record.status, record.ret = answer, "ok", self._tick()
        return answer

    def require_linearizable(self, model: Model) -> None:
        """Check the history against a sequential model.

        Raises:
            NotLinearizableError: with the operations that cannot be explained.
        """
        result = check(self._operations, model)
        if not result.ok:
            raise NotLinearizableError(result.explain())

    def _tick(self) -> int:
        self._clock += 1
        return self._clock
