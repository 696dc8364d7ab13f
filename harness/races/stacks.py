"""The stacks of a model's threads in a deadlock.

The scheduler ends a deadlock by raising an exception in each thread where it waits. The stack is
recorded when that exception is raised: on its way out, `finally` and `with` blocks may replace it.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from harness.races.detector import capture

if TYPE_CHECKING:
    from harness.races.findings import Frame

_TOOL_NAME: Final = "harness.races"
_TOOL_IDS: Final = range(6)  # all that sys.monitoring has


class Stacks:
    """The stacks of the latest schedule.

    Shared state: two dicts; each thread of the model writes its own entry, in one atomic step.

    Args:
        is_scheduler_error: returns whether the scheduler raised this exception to end a thread.
    """

    def __init__(self, is_scheduler_error: Callable[[BaseException], bool]) -> None:
        self._is_scheduler_error = is_scheduler_error
        self._names: dict[int, str] = {}
        self._stacks: dict[int, tuple[Frame, ...]] = {}

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record stacks within the context; none if debuggers use all ids of `sys.monitoring`."""
        monitoring = sys.monitoring
        free = [number for number in _TOOL_IDS if monitoring.get_tool(number) is None]
        if len(free) < 2:  # noqa: PLR2004 - one for this, one for the scheduler, which needs it
            yield
            return
        number, raised = free[0], monitoring.events.RAISE
        monitoring.use_tool_id(number, _TOOL_NAME)
        monitoring.register_callback(number, raised, self._raised)
        monitoring.set_events(number, raised)
        try:
            yield
        finally:
            monitoring.set_events(number, 0)
            monitoring.free_tool_id(number)

    @contextmanager
    def begin_schedule(self) -> Iterator[None]:
        """Discard the previous schedule's stacks; record the names of threads created from now."""
        self._stacks.clear()
        self._names.clear()
        self._names[threading.get_ident()] = "the model"
        base: Any = threading.Thread
        names = self._names

        class NamedThread(base):  # type: ignore[misc]
            def run(self) -> None:
                names[threading.get_ident()] = self.name
                super().run()

        threading.Thread = NamedThread  # type: ignore[misc]
        try:
            yield
        finally:
            threading.Thread = base  # type: ignore[misc]

    def texts(self) -> tuple[str, ...]:
        """Return each thread with its stack, innermost first, in the order of their starts."""
        return tuple(
            "\n".join((f"Thread {name!r} waits:", *(f"    {frame}" for frame in stack)))
            for thread, name in self._names.items()
            if (stack := self._stacks.get(thread)) is not None
        )

    def _raised(self, _code: object, _offset: int, error: BaseException) -> None:
        # Called again for each frame that the exception passes: the first is where it waits.
        if self._is_scheduler_error(error):
            self._stacks.setdefault(threading.get_ident(), capture())
