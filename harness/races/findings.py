"""The detector's findings, as values and as text in the style of Go's race reports."""

import linecache
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_RULE: Final = "=" * 18


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function}() at {short(self.file)}:{self.line}  {source(self)}".rstrip()


@dataclass(frozen=True, slots=True)
class Access:
    """One thread's access to a variable.

    Attributes:
        kind: "read" or "write".
        thread: its name.
        stack: innermost first.
        locks: the locks that the thread held, by where each was created.
    """

    kind: str
    thread: str
    stack: tuple[Frame, ...]
    locks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataRace:
    """Two unordered accesses to one variable, at least one of them a write."""

    variable: str
    present: Access
    previous: Access

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the same two places, so that a race is reported once."""
        places = sorted(
            (access.kind, *(f"{frame.file}:{frame.line}" for frame in access.stack[:1]))
            for access in (self.present, self.previous)
        )
        return ("race", self.variable, *map(tuple, places))

    def text(self) -> str:
        """Both stacks, and the locks that each thread held."""
        return "\n".join(
            (
                _RULE,
                f"DATA RACE on {self.variable}",
                *_access_lines(self.present.kind.capitalize(), self.present),
                *_access_lines(f"Previous {self.previous.kind}", self.previous),
                "No lock, event, queue, start or join orders these accesses.",
                _RULE,
            )
        )


@dataclass(frozen=True, slots=True)
class LockStep:
    """A lock that was acquired while another was held."""

    held: str
    taken: str
    thread: str
    stack: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class LockCycle:
    """Locks that threads acquire in different orders, a potential deadlock."""

    steps: tuple[LockStep, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the same places, so that a cycle is reported once."""
        return ("cycle", *sorted(f"{step.held}>{step.taken}" for step in self.steps))

    def text(self) -> str:
        """Each step with its stack."""
        lines = [_RULE, "LOCK ORDER: potential deadlock, threads acquire these locks in a cycle"]
        for step in self.steps:
            lines.append(f"Thread {step.thread!r} holds the lock {step.held}")
            lines.append(f"  and acquires the lock {step.taken}:")
            lines += [f"    {frame}" for frame in step.stack]
        return "\n".join((*lines, _RULE))


RaceFinding = DataRace | LockCycle


def _access_lines(title: str, access: Access) -> list[str]:
    held = ", ".join(access.locks) or "no lock"
    head = f"{title} by thread {access.thread!r}, holding {held}:"
    return [head, *(f"    {frame}" for frame in access.stack)]


def short(file: str) -> str:
    """Return a path relative to the working directory or to a directory `impl`."""
    path = Path(file)
    for root in (Path.cwd(), *(parent for parent in path.parents if parent.name == "impl")):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(Path(*path.parts[-2:]))


def source(frame: Frame) -> str:
    """Return the text of a frame's line, without a trailing comment."""
    return linecache.getline(frame.file, frame.line).partition("  # ")[0].strip()
