"""Reports every access to the attributes of chosen classes, and to their contents, to a listener.

An attribute counts whether the object has it or its class has a default for it (`self.count += 1`
first reads the default). Methods and properties do not count; a value that an object has in place
of a method does.

An attribute that is bound to a plain dict, set, list or bytearray gets a watched copy that reports
its own reads and writes: `jobs[key] = job` writes the dict, though it only reads the attribute. A
deque becomes one that orders its users as a queue does. Not covered: what C code does to containers
directly (`heapq`, a memoryview).

An attribute may be declared atomic: one reference, published without a lock on purpose. Reading it
then acquires what its writer released, as an atomic load does in C. Each one needs its reason.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MemberDescriptorType
from typing import Any, Final, Protocol

from harness.races.detector import SlotVariables, Variable

_VARIABLES: Final = "_races_variables"

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
    """The attributes to watch.

    Attributes:
        classes: their instances' attributes are watched.
        atomic: `Class.attribute` published without a lock on purpose, with the reason.
        settled: `Class.attribute` of deques and atomics that other scenarios explore, with the
            names of those: in this one an exhaustive search does not switch threads at them.
    """

    classes: tuple[type, ...] = ()
    atomic: Mapping[str, str] = field(default_factory=dict)
    settled: Mapping[str, str] = field(default_factory=dict)


class Listener(Protocol):
    """Receives accesses. Called in the accessing thread.

    Attributes:
        slot_variables: see `detector.SlotVariables`.
    """

    slot_variables: SlotVariables

    def read(self, variable: Variable) -> None:
        """Receive a read, before it happens."""

    def write(self, variable: Variable) -> None:
        """Receive a write, before it happens."""

    def put(self, variable: Variable) -> None:
        """Receive a deque's append, before it happens."""

    def get(self, variable: Variable) -> None:
        """Receive a deque's pop or the read of an atomic, after it happened."""

    def peek(self, variable: Variable) -> None:
        """Receive a read of a deque's length, before or after it happens."""


Current = Callable[[], Listener | None]


@contextmanager
def instrument(watch: Watch, current: Current) -> Iterator[None]:
    """Report every access within the context to the current listener, if one is set."""
    with ExitStack() as stack:
        for watched_class in watch.classes:
            stack.callback(_instrument_class(watched_class, watch, current))
        yield


def _instrument_class(watched_class: type, watch: Watch, current: Current) -> Callable[[], None]:
    """Replace a class's attribute access; return a function that restores it."""
    # These are functions that take the object first; mypy takes them for bound methods.
    get: Callable[..., object] = watched_class.__getattribute__
    put: Callable[..., None] = watched_class.__setattr__
    remove: Callable[..., None] = watched_class.__delattr__
    class_name = watched_class.__name__
    counts = _value_filter(watched_class)

    def variable(listener: Listener, owner: object, name: str) -> Variable:
        variables = _variables_of(listener, owner)
        found = variables.get(name)
        if found is None:
            label = f"{class_name}.{name}"
            # Atomic: two threads that are first at the same time get the same variable.
            found = variables.setdefault(
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
            # A write came between `read` and `value`: acquire what its thread released.
            listener.get(read)
        return value

    def setattribute(self: object, name: str, value: object) -> None:
        listener = current()
        if listener is not None:
            label = f"{class_name}.{name}"
            value = _watch_container(value, listener, label, settled=label in watch.settled)
            listener.write(variable(listener, self, name))
        put(self, name, value)

    def deleteattribute(self: object, name: str) -> None:
        listener = current()
        if listener is not None:
            listener.write(variable(listener, self, name))
        remove(self, name)

    return _replace_methods(
        watched_class,
        {
            "__getattribute__": getattribute,
            "__setattr__": setattribute,
            "__delattr__": deleteattribute,
        },
    )


def _replace_methods(
    watched_class: type, functions: Mapping[str, Callable[..., object]]
) -> Callable[[], None]:
    """Replace methods of a class; return a function that restores them."""
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


def _value_filter(watched_class: type) -> Callable[[object, str], bool]:
    """Return a predicate: whether a name is a value of an object, not a method or property.

    A property takes precedence over the object's own attributes, a method does not. A slot looks
    like a property and holds a value. Everything else in a class is a default.
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
    """Return an object's attributes outside its slots."""
    try:
        attributes: dict[str, Any] = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return {}
    return attributes


def _variables_of(listener: Listener, owner: object) -> dict[str, Variable]:
    """Return an object's variables: stored in the object or, if it has slots, in the listener."""
    try:
        attributes: dict[str, Any] = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        variables, _ = listener.slot_variables.setdefault(id(owner), ({}, owner))
        return variables
    found: dict[str, Variable] | None = attributes.get(_VARIABLES)
    return found if found is not None else attributes.setdefault(_VARIABLES, {})


def _watch_container(value: object, listener: Listener, label: str, *, settled: bool) -> object:
    """Return a watched copy of a plain container; any other value as it is."""
    if type(value) is deque:
        container = _WatchedDeque(value, value.maxlen)
    elif (kind := _WATCHED_CLASSES.get(type(value))) is not None:
        container = kind(value)
    else:
        return value
    container.watcher = (listener, Variable(f"contents of {label}", settled=settled))
    return container


def _make_watched_class(base: type) -> Any:  # noqa: ANN401 - a class made at run time
    kinds = dict.fromkeys(_READS[base], "read") | dict.fromkeys(_WRITES[base], "write")
    methods = {name: _make_watched_method(base, name, kind) for name, kind in kinds.items()}
    # Copies and slices are plain: they belong to the thread that made them.
    return type(f"Watched{base.__name__.capitalize()}", (base,), {"watcher": None, **methods})


def _make_watched_method(base: type, name: str, kind: str) -> Callable[..., object]:
    original = getattr(base, name)

    def method(self: Any, *args: object, **named: object) -> object:  # noqa: ANN401 - see above
        if self.watcher is not None:
            listener, variable = self.watcher
            getattr(listener, kind)(variable)
        return original(self, *args, **named)

    return method


_WATCHED_CLASSES: Final = {base: _make_watched_class(base) for base in _READS}


class _WatchedDeque(deque[Any]):
    """A deque shared by threads; operations on its two ends are atomic, as CPython promises."""

    watcher: tuple[Listener, Variable]

    def __len__(self) -> int:
        length = super().__len__()
        # The constructor calls this, before `watcher` is set.
        if hasattr(self, "watcher"):
            self.watcher[0].peek(self.watcher[1])
        return length

    def append(self, item: Any, /) -> None:  # noqa: ANN401 - the deque's items
        listener, variable = self.watcher
        listener.put(variable)
        super().append(item)

    def popleft(self) -> Any:  # noqa: ANN401 - the deque's items
        listener, variable = self.watcher
        listener.peek(variable)
        item = super().popleft()
        listener.get(variable)
        return item

    def appendleft(self, item: Any, /) -> None:  # noqa: ANN401 - the deque's items
        listener, variable = self.watcher
        listener.put(variable)
        super().appendleft(item)

    def pop(self) -> Any:  # type: ignore[override]  # noqa: ANN401 - the deque's items
        listener, variable = self.watcher
        listener.peek(variable)
        item = super().pop()
        listener.get(variable)
        return item
