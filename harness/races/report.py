"""What the detector found, as values, and as text like Go's race reports."""

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
    """One thread's touch of a variable.

    Attributes:
        kind: "read" or "write".
        thread: its name.
        stack: innermost first.
        locks: what the thread held then, by where each lock was made.
    """

    kind: str
    thread: str
    stack: tuple[Frame, ...]
    locks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataRace:
    """Two accesses, one a write, with nothing that puts one before the other."""

    variable: str
    present: Access
    previous: Access

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same two places, so that a race is told once."""
        places = sorted(
            (access.kind, *(f"{frame.file}:{frame.line}" for frame in access.stack[:1]))
            for access in (self.present, self.previous)
        )
        return ("race", self.variable, *map(tuple, places))

    def text(self) -> str:
        """Both stacks, and the locks that were held and did not help."""
        return "\n".join(
            (
                _RULE,
                f"DATA RACE on {self.variable}",
                *_access_lines(self.present.kind.capitalize(), self.present),
                *_access_lines(f"Previous {self.previous.kind}", self.previous),
                "No lock, event, queue, start or join puts one before the other.",
                _RULE,
            )
        )


@dataclass(frozen=True, slots=True)
class LockStep:
    """A lock that was taken while another was held."""

    held: str
    taken: str
    thread: str
    stack: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class LockCycle:
    """Locks that threads take in different orders: one unlucky moment, and they wait for ever."""

    steps: tuple[LockStep, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same places."""
        return ("cycle", *sorted(f"{step.held}>{step.taken}" for step in self.steps))

    def text(self) -> str:
        """Each step with its stack."""
        lines = [_RULE, "LOCK ORDER: these threads can wait for each other for ever"]
        for step in self.steps:
            lines.append(f"Thread {step.thread!r} holds the lock {step.held}")
            lines.append(f"  and takes the lock {step.taken}:")
            lines += [f"    {frame}" for frame in step.stack]
        return "\n".join((*lines, _RULE))


Found = DataRace | LockCycle


def _access_lines(title: str, access: Access) -> list[str]:
    held = ", ".join(access.locks) or "no lock"
    head = f"{title} by thread {access.thread!r}, holding {held}:"
    return [head, *(f"    {frame}" for frame in access.stack)]


def short(file: str) -> str:
    """Return a path as a reader of this project writes it."""
    path = Path(file)
    for root in (Path.cwd(), *(parent for parent in path.parents if parent.name == "impl")):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(Path(*path.parts[-2:]))


def source(frame: Frame) -> str:
    """Return the text of a frame's line, without a comment behind it."""
    return linecache.getline(frame.file, frame.line).partition("  # ")[0].strip()
