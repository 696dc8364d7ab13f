"""Tells a listener of every access to the attributes of chosen classes, and to what these hold.

An attribute counts whether the object has it or its class has a default for it (`self.count += 1`
reads the default, first); methods and properties do not, but what an object has in a method's place
does.

An attribute that is bound to a plain dict, set, list or bytearray gets one that tells of its own
reads and writes: `jobs[key] = job` writes the dict, though it only reads the attribute. A deque
becomes one that hands on what its users knew, as a queue does. What C code does to them directly
(`heapq`, a memoryview) is not seen.

An attribute may be declared atomic: one reference that is published without a lock on purpose.
Reading it then takes what its writer knew, as an atomic load does elsewhere. Each needs its reason.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MemberDescriptorType
from typing import Any, Final, Protocol

from harness.races.detector import Beside, Variable

_KEPT: Final = "_races_variables"

_READS: Final[dict[type, tuple[str, ...]]] = {
    dict: (
        "__getitem__", "__contains__", "__iter__", "__reversed__", "__len__", "__eq__", "__or__",
        "__ror__", "get", "keys", "values", "items", "copy",
    ),
    set: (
        "__contains__", "__iter__", "__len__", "__eq__", "__or__", "__and__", "__sub__", "__xor__",
        "copy", "union", "intersection", "difference", "symmetric_difference", "isdisjoint",
        "issubset", "issuperset",
    ),
    list: (
        "__getitem__", "__contains__", "__iter__", "__reversed__", "__len__", "__eq__", "__add__",
        "__mul__", "copy", "index", "count",
    ),
    bytearray: (
        "__getitem__", "__contains__", "__iter__", "__len__", "__eq__", "__add__", "find", "rfind",
        "index", "count", "startswith", "endswith", "copy",
    ),
}  # fmt: skip
_WRITES: Final[dict[type, tuple[str, ...]]] = {
    dict: (
        "__setitem__", "__delitem__", "__ior__", "pop", "popitem", "clear", "update", "setdefault",
    ),
    set: (
        "__ior__", "__iand__", "__isub__", "__ixor__", "add", "discard", "remove", "pop", "clear",
        "update", "intersection_update", "difference_update", "symmetric_difference_update",
    ),
    list: (
        "__setitem__", "__delitem__", "__iadd__", "__imul__", "append", "extend", "insert", "pop",
        "remove", "clear", "sort", "reverse",
    ),
    bytearray: (
        "__setitem__", "__delitem__", "__iadd__", "__imul__", "append", "extend", "insert", "pop",
        "remove", "clear", "reverse",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch.

    Attributes:
        classes: whose instances' attributes count.
        atomic: `Class.attribute` of what is published without a lock on purpose, and why.
        settled: `Class.attribute` of deques, and of what is atomic, that other scenarios explore,
            and which: here a search of everything lets nobody in at them.
    """

    classes: tuple[type, ...] = ()
    atomic: Mapping[str, str] = field(default_factory=dict)
    settled: Mapping[str, str] = field(default_factory=dict)


class Listener(Protocol):
    """Who is told. Called in the accessing thread, before the access.

    Attributes:
        beside: see `detector.Beside`.
    """

    beside: Beside

    def read(self, variable: Variable) -> None:
        """Hear of a read."""

    def write(self, variable: Variable) -> None:
        """Hear of a write."""

    def put(self, variable: Variable) -> None:
        """Hear that something is about to be put into a deque."""

    def taken(self, variable: Variable) -> None:
        """Hear that something was taken out of a deque, or that what is atomic has been read."""

    def looked(self, variable: Variable) -> None:
        """Hear that somebody looked how much a deque holds."""


Current = Callable[[], Listener | None]


@contextmanager
def watched(watch: Watch, current: Current) -> Iterator[None]:
    """Tell the current listener, if there is one, of every access until the end."""
    with ExitStack() as stack:
        for watched_class in watch.classes:
            stack.callback(_instrument(watched_class, watch, current))
        yield


def _instrument(watched_class: type, watch: Watch, current: Current) -> Callable[[], None]:
    """Change a class; return what changes it back."""
    # Functions as yet, which take the object first: mypy takes them for bound ones.
    get: Callable[..., object] = watched_class.__getattribute__
    put: Callable[..., None] = watched_class.__setattr__
    remove: Callable[..., None] = watched_class.__delattr__
    class_name = watched_class.__name__
    counts = _counting(watched_class)

    def variable(listener: Listener, owner: object, name: str) -> Variable:
        kept = _kept(listener, owner)
        found = kept.get(name)
        if found is None:
            label = f"{class_name}.{name}"
            # One step: two threads that come first together get the same.
            found = kept.setdefault(
                name, Variable(label, label in watch.atomic, settled=label in watch.settled)
            )
        return found

    def getattribute(self: object, name: str) -> object:
        listener = current()
        if listener is None or not counts(self, name):
            return get(self, name)
        read = variable(listener, self, name)
        listener.read(read)
        value = get(self, name)
        if read.atomic:
            # Its writer may have come between: what it knew is known to who has its value.
            listener.taken(read)
        return value

    def setattribute(self: object, name: str, value: object) -> None:
        listener = current()
        if listener is not None:
            label = f"{class_name}.{name}"
            value = _telling(value, listener, label, settled=label in watch.settled)
            listener.write(variable(listener, self, name))
        put(self, name, value)

    def deleteattribute(self: object, name: str) -> None:
        listener = current()
        if listener is not None:
            listener.write(variable(listener, self, name))
        remove(self, name)

    return _replaced(
        watched_class,
        {
            "__getattribute__": getattribute,
            "__setattr__": setattribute,
            "__delattr__": deleteattribute,
        },
    )


def _replaced(
    watched_class: type, functions: Mapping[str, Callable[..., object]]
) -> Callable[[], None]:
    """Give a class other functions; return what gives it back its own."""
    own = {name: vars(watched_class).get(name) for name in functions}
    for name, function in functions.items():
        setattr(watched_class, name, function)

    def restore() -> None:
        for name, original in own.items():
            if original is None:
                delattr(watched_class, name)
            else:
                setattr(watched_class, name, original)

    return restore


def _counting(watched_class: type) -> Callable[[object, str], bool]:
    """Return what tells whether a name stands for a value of an object.

    A property stands before what the object has, a method behind it. A slot looks like a property
    and holds a value; all else in a class is a default.
    """
    names = {
        name: value
        for base in reversed(watched_class.__mro__)
        for name, value in vars(base).items()
        if not isinstance(value, MemberDescriptorType)
    }
    never = {
        name
        for name, value in names.items()
        if name.startswith("__") or hasattr(type(value), "__set__")
    }
    unless_own = {name for name, value in names.items() if hasattr(type(value), "__get__")}

    def counts(owner: object, name: str) -> bool:
        return name not in never and (name not in unless_own or name in _own_attributes(owner))

    return counts


def _own_attributes(owner: object) -> dict[str, Any]:
    """Return what an object has outside its slots."""
    try:
        attributes: dict[str, Any] = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return {}
    return attributes


def _kept(listener: Listener, owner: object) -> dict[str, Variable]:
    """Return an object's variables: kept in it, or, where slots leave no room, beside it."""
    try:
        attributes: dict[str, Any] = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        kept, _ = listener.beside.setdefault(id(owner), ({}, owner))
        return kept
    found: dict[str, Variable] | None = attributes.get(_KEPT)
    return found if found is not None else attributes.setdefault(_KEPT, {})


def _telling(value: object, listener: Listener, label: str, *, settled: bool) -> object:
    """Return a container that tells of its accesses in place of a plain one."""
    if type(value) is deque:
        telling = _TellingDeque(value, value.maxlen)
    elif (kind := _TELLING.get(type(value))) is not None:
        telling = kind(value)
    else:
        return value
    telling.told = (listener, Variable(f"what {label} holds", settled=settled))
    return telling


def _telling_class(base: type) -> Any:  # noqa: ANN401 - a class made at run time
    kinds = dict.fromkeys(_READS[base], "read") | dict.fromkeys(_WRITES[base], "write")
    methods = {name: _telling_method(base, name, kind) for name, kind in kinds.items()}
    # Copies and slices are plain: they belong to whoever made them.
    return type(f"Telling{base.__name__.capitalize()}", (base,), {"told": None, **methods})


def _telling_method(base: type, name: str, kind: str) -> Callable[..., object]:
    original = getattr(base, name)

    def method(self: Any, *args: object, **named: object) -> object:  # noqa: ANN401 - see above
        if self.told is not None:
            listener, variable = self.told
            getattr(listener, kind)(variable)
        return original(self, *args, **named)

    return method


_TELLING: Final = {base: _telling_class(base) for base in _READS}


class _TellingDeque(deque[Any]):
    """A deque between threads; its two ends are one step each, as CPython promises."""

    told: tuple[Listener, Variable]

    def __len__(self) -> int:
        length = super().__len__()
        # Asked of one that is being made, too.
        if hasattr(self, "told"):
            self.told[0].looked(self.told[1])
        return length

    def append(self, item: Any, /) -> None:  # noqa: ANN401 - whatever is put
        listener, variable = self.told
        listener.put(variable)
        super().append(item)

    def popleft(self) -> Any:  # noqa: ANN401 - whatever was put
        listener, variable = self.told
        listener.looked(variable)
        item = super().popleft()
        listener.taken(variable)
        return item

    def appendleft(self, item: Any, /) -> None:  # noqa: ANN401 - whatever is put
        listener, variable = self.told
        listener.put(variable)
        super().appendleft(item)

    def pop(self) -> Any:  # type: ignore[override]  # noqa: ANN401 - whatever was put
        listener, variable = self.told
        listener.looked(variable)
        item = super().pop()
        listener.taken(variable)
        return item
