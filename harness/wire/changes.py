"""Changes of one field of a message, each applicable by the field's type alone."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_WHOLE: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


class Memory(dict[tuple[str, ...], tuple[Any, bool]]):
    """Path of a field -> its value in the previous message, and whether it was set there."""


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of change.

    Attributes:
        name: what is done to the field, as a participle; the end of a mutant's name.
        suits: whether a field can be changed so.
        apply: changes the field of a message, if its value allows; returns whether it did.
    """

    name: str
    suits: Callable[[FieldDescriptor], bool]
    apply: Callable[[Message, FieldDescriptor], bool]


def is_map(field: FieldDescriptor) -> bool:
    """Return whether a field is a map."""
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def is_set(message: Message, field: FieldDescriptor) -> bool:
    """Return whether a field is sent: present, or other than its default."""
    if field.has_presence:
        return message.HasField(field.name)
    value = getattr(message, field.name)
    return len(value) > 0 if field.is_repeated else bool(value != field.default_value)


def _single(*kinds: int) -> Callable[[FieldDescriptor], bool]:
    return lambda field: not field.is_repeated and field.cpp_type in kinds


def _is_text(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_STRING


def _is_message(field: FieldDescriptor) -> bool:
    return field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE


def _is_list(field: FieldDescriptor) -> bool:
    return field.is_repeated and not is_map(field)


def _drop(message: Message, field: FieldDescriptor) -> bool:
    if not is_set(message, field):
        return False
    message.ClearField(field.name)
    return True


def _zero(message: Message, field: FieldDescriptor) -> bool:
    if not message.HasField(field.name) or getattr(message, field.name) == field.default_value:
        return False
    setattr(message, field.name, field.default_value)
    return True


def _empty(message: Message, field: FieldDescriptor) -> bool:
    if not message.HasField(field.name) or not getattr(message, field.name).ByteSize():
        return False
    message.ClearField(field.name)
    getattr(message, field.name).SetInParent()
    return True


def _invent(message: Message, field: FieldDescriptor) -> bool:
    group = field.containing_oneof
    if message.WhichOneof(group.name) if group is not None else message.HasField(field.name):
        return False
    if _is_message(field):
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, field.default_value)
    return True


def _add(step: int) -> Callable[[Message, FieldDescriptor], bool]:
    def apply(message: Message, field: FieldDescriptor) -> bool:
        if field.has_presence and not message.HasField(field.name):
            return False
        try:
            setattr(message, field.name, getattr(message, field.name) + step)
        except ValueError:  # beyond the type's range
            return False
        return True

    return apply


def _flip(message: Message, field: FieldDescriptor) -> bool:
    setattr(message, field.name, not getattr(message, field.name))
    return True


def _next_value(message: Message, field: FieldDescriptor) -> bool:
    kind: Any = field.enum_type
    numbers = [value.number for value in kind.values]
    place = numbers.index(getattr(message, field.name)) + 1
    setattr(message, field.name, numbers[place % len(numbers)])
    return True


def _neighbour(value: Any) -> Any:  # noqa: ANN401 - text or bytes
    """Return a text or bytes whose last unit is another one."""
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    return value[:-1] + chr(ord(value[-1]) ^ 1)


def _change_byte(message: Message, field: FieldDescriptor) -> bool:
    value = getattr(message, field.name)
    if not value:
        return False
    setattr(message, field.name, _neighbour(value))
    return True


def _on_list(
    least: int, edit: Callable[[list[Any]], list[Any]]
) -> Callable[[Message, FieldDescriptor], bool]:
    """Return a change that replaces a list of at least so many elements, if that differs."""

    def apply(message: Message, field: FieldDescriptor) -> bool:
        values = [deepcopy(each) for each in getattr(message, field.name)]
        edited = edit(values) if len(values) >= least else values
        if edited == values:
            return False
        message.ClearField(field.name)
        getattr(message, field.name).extend(edited)
        return True

    return apply


def _on_map(
    edit: Callable[[dict[Any, Any]], dict[Any, Any]],
) -> Callable[[Message, FieldDescriptor], bool]:
    """Return a change that replaces a map that has entries, if that differs."""

    def apply(message: Message, field: FieldDescriptor) -> bool:
        values = dict(getattr(message, field.name))
        edited = edit(values) if values else values
        if edited == values:
            return False
        message.ClearField(field.name)
        getattr(message, field.name).update(edited)
        return True

    return apply


def _change_keys(values: dict[Any, Any]) -> dict[Any, Any]:
    return {_neighbour(key) if key else key: value for key, value in values.items()}


def _change_values(values: dict[Any, Any]) -> dict[Any, Any]:
    return {key: _neighbour(value) if value else value for key, value in values.items()}


def _is_text_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and is_map(field) and all(_is_text(each) for each in kind.fields)


def _can_be_empty(field: FieldDescriptor) -> bool:
    return field.has_presence and not _is_message(field)


CHANGES: Final = (
    Change("dropped", lambda _: True, _drop),
    Change("zeroed", _can_be_empty, _zero),
    Change("emptied", _single(FieldDescriptor.CPPTYPE_MESSAGE), _empty),
    Change("invented", lambda field: field.has_presence, _invent),
    Change("plus-one", _single(*_WHOLE), _add(1)),
    Change("minus-one", _single(*_WHOLE), _add(-1)),
    Change("flipped", _single(FieldDescriptor.CPPTYPE_BOOL), _flip),
    Change("next-value", _single(FieldDescriptor.CPPTYPE_ENUM), _next_value),
    Change("byte-changed", _single(FieldDescriptor.CPPTYPE_STRING), _change_byte),
    Change("last-dropped", _is_list, _on_list(1, lambda values: values[:-1])),
    Change("first-repeated", _is_list, _on_list(1, lambda values: values[:1] + values)),
    Change("reversed", _is_list, _on_list(2, lambda values: values[::-1])),
    Change(
        "byte-changed", lambda field: _is_list(field) and _is_text(field),
        _on_list(1, lambda values: [_neighbour(each) if each else each for each in values]),
    ),
    Change("entry-dropped", is_map, _on_map(lambda values: dict(list(values.items())[1:]))),
    Change("keys-changed", _is_text_map, _on_map(_change_keys)),
    Change("values-changed", _is_text_map, _on_map(_change_values)),
)  # fmt: skip


def apply_stale(
    message: Message, field: FieldDescriptor, memory: Memory, path: tuple[str, ...]
) -> bool:
    """Give a field the value that it had in the previous message; return whether that differs."""
    value, was_set = _get(message, field)
    old, old_set = memory.get(path, (value, was_set))
    memory[path] = (value, was_set)
    if (old, old_set) == (value, was_set):
        return False
    _put(message, field, old, was_set=old_set)
    return True


def apply_swap(message: Message, field: FieldDescriptor, sibling: FieldDescriptor) -> bool:
    """Exchange two fields of the same type; return whether they differ."""
    both = [_get(message, each) for each in (field, sibling)]
    if both[0] == both[1]:
        return False
    # First what becomes absent: of a oneof, setting one clears the other.
    pairs = sorted(zip((sibling, field), both, strict=True), key=lambda pair: pair[1][1])
    for each, (value, was_set) in pairs:
        _put(message, each, value, was_set=was_set)
    return True


def _get(message: Message, field: FieldDescriptor) -> tuple[Any, bool]:
    """Return a copy of a field's value, and whether it is set."""
    value = getattr(message, field.name)
    copied = dict(value) if is_map(field) else deepcopy(value)
    return (list(copied) if field.is_repeated and not is_map(field) else copied), is_set(
        message, field
    )


def _put(message: Message, field: FieldDescriptor, value: Any, *, was_set: bool) -> None:  # noqa: ANN401 - any field's
    message.ClearField(field.name)
    if not was_set:
        return
    if is_map(field):
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    elif _is_message(field):
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def same_type(field: FieldDescriptor, other: FieldDescriptor) -> bool:
    """Return whether the values of two fields could be exchanged."""
    return (field.type, field.is_repeated, field.message_type, field.enum_type) == (
        other.type, other.is_repeated, other.message_type, other.enum_type,
    )  # fmt: skip


def parents(message: Message, path: tuple[FieldDescriptor, ...]) -> Iterator[Message]:
    """Yield the messages that have a path's last field: several if the path has a list."""
    if len(path) == 1:
        yield message
        return
    first = path[0]
    if first.is_repeated:
        for each in getattr(message, first.name):
            yield from parents(each, path[1:])
    elif message.HasField(first.name):
        yield from parents(getattr(message, first.name), path[1:])
