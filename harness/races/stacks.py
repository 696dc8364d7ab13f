"""Where the threads of a model stood when none of them could go on.

A scheduler ends a deadlock by an exception in each thread, there where it waits. The stack is taken
when that is raised: on its way out it is replaced by others wherever a thread gives something back.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from harness.races.detector import capture

if TYPE_CHECKING:
    from harness.races.report import Frame

_TOOL_NAME: Final = "harness.races"
_TOOL_IDS: Final = range(6)  # all that sys.monitoring has


class Stacks:
    """The stacks of one schedule, the latest.

    Shared state: two dicts, in which each thread of the model writes its own entry, in one step.

    Args:
        is_the_end: tells by which exception a scheduler ends a thread.
    """

    def __init__(self, is_the_end: Callable[[BaseException], bool]) -> None:
        self._is_the_end = is_the_end
        self._names: dict[int, str] = {}
        self._stacks: dict[int, tuple[Frame, ...]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take stacks until the end; none where debuggers have all of `sys.monitoring`."""
        monitoring = sys.monitoring
        free = [number for number in _TOOL_IDS if monitoring.get_tool(number) is None]
        if len(free) < 2:  # noqa: PLR2004 - ours, and the scheduler's, which must have one
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
    def of_a_schedule(self) -> Iterator[None]:
        """Forget all others, and know the threads that are made from now on by their names."""
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
        # Told of again in each frame that it passes: the first is where the thread waits.
        if self._is_the_end(error):
            self._stacks.setdefault(threading.get_ident(), capture())
