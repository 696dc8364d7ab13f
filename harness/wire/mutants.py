"""Generates the wire mutants of an API from its descriptors.

A mutant's name is stable: `wire.QueryJobResponse.ended_at.dropped` is what is done to a field,
`wire.StreamLogs.stream.reordered` to the messages of a stream, and
`wire.QueryJob.status.NOT_FOUND.next` to the status of a call.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import grpc
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import Message

from harness.wire.changes import (
    CHANGES,
    Change,
    Memory,
    apply_stale,
    apply_swap,
    is_map,
    parents,
    same_type,
)
from harness.wire.streams import CHANGES as STREAM_CHANGES
from harness.wire.streams import HARMLESS, StreamChange

FieldPath = tuple[FieldDescriptor, ...]
# Applied to the message that has the field.
Apply = Callable[[Message, Memory], bool]

STATUSES: Final = tuple(sorted(grpc.StatusCode, key=lambda code: code.value[0]))
DETAILS_DROPPED: Final = "details-dropped"


@dataclass(frozen=True, slots=True)
class FieldMutant:
    """Changes one field in each message of a type.

    Attributes:
        name: of the mutant.
        message: full name of the rpc's message.
        path: the fields from that message to the one that is changed.
        apply: changes the message that has the field; returns whether it did.
    """

    name: str
    message: str
    path: FieldPath
    apply: Apply = field(repr=False)
    harmless = False

    def change(self, message: Message, memory: Memory) -> bool:
        """Change a message; return whether anything changed."""
        found = [self.apply(parent, memory) for parent in parents(message, self.path)]
        return any(found)


@dataclass(frozen=True, slots=True)
class StreamMutant:
    """Changes the messages of each stream of an rpc.

    Attributes:
        name: of the mutant.
        rpc: the rpc's name.
        change: returns the changed messages.
        harmless: whether the API allows the change: every check must pass.
    """

    name: str
    rpc: str
    change: StreamChange = field(repr=False)
    harmless: bool = False


@dataclass(frozen=True, slots=True)
class StatusMutant:
    """Changes one status of an rpc to another, or drops the details of all.

    Attributes:
        name: of the mutant.
        rpc: the rpc's name.
        status: the changed one; None: every status but OK.
        instead: its replacement; None: the status stays, and its details are dropped.
    """

    name: str
    rpc: str
    status: grpc.StatusCode | None
    instead: grpc.StatusCode | None
    harmless = False

    def change(self, status: grpc.StatusCode, details: str) -> tuple[grpc.StatusCode, str]:
        """Return the changed status and details of a call."""
        if self.instead is None:
            return status, ""
        return (self.instead, details) if status is self.status else (status, details)


WireMutant = FieldMutant | StreamMutant | StatusMutant


def generate(service: ServiceDescriptor) -> tuple[WireMutant, ...]:
    """Return all mutants of a service, in the order of its descriptors."""
    mutants: dict[str, WireMutant] = {}
    for method in service.methods:
        found: tuple[WireMutant, ...] = (
            *_of_message(method.input_type),
            *_of_message(method.output_type),
            *_of_stream(method),
            *_of_status(method),
        )
        # A message of several rpcs has its mutants once.
        mutants |= {mutant.name: mutant for mutant in found}
    return tuple(mutants.values())


def _of_message(kind: Descriptor) -> Iterator[FieldMutant]:
    for path in _paths(kind, ()):
        for name, apply in _changes(path):
            words = ".".join((kind.name, *(each.name for each in path), name))
            yield FieldMutant(f"wire.{words}", kind.full_name, path, apply)


def _paths(kind: Descriptor, before: FieldPath) -> Iterator[FieldPath]:
    """Yield the path of every field, those of nested messages after their own."""
    for each in kind.fields:
        path = (*before, each)
        yield path
        nested = each.message_type
        if (
            nested is not None
            and not is_map(each)
            and all(nested is not p.message_type for p in before)
        ):
            yield from _paths(nested, path)


def _changes(path: FieldPath) -> Iterator[tuple[str, Apply]]:
    """Yield each change of a path's last field, with its name."""
    last = path[-1]
    key = tuple(each.name for each in path)
    for change in CHANGES:
        if change.suits(last):
            yield change.name, _plain(change, last)
    yield "stale", lambda message, memory: apply_stale(message, last, memory, key)
    owner: Any = last.containing_type
    siblings = [each for each in owner.fields if same_type(each, last)]
    for one, other in pairwise(siblings):
        if one is last:
            yield f"swapped-with-{other.name}", _swap(last, other)


def _plain(change: Change, last: FieldDescriptor) -> Apply:
    return lambda message, _: change.apply(message, last)


def _swap(last: FieldDescriptor, sibling: FieldDescriptor) -> Apply:
    return lambda message, _: apply_swap(message, last, sibling)


def _of_stream(method: MethodDescriptor) -> Iterator[StreamMutant]:
    if not method.server_streaming:
        return
    for name, change in STREAM_CHANGES.items():
        yield StreamMutant(f"wire.{method.name}.stream.{name}", method.name, change)
    if {"message", "offset"} <= set(method.output_type.fields_by_name):
        for name, change in HARMLESS.items():
            yield StreamMutant(
                f"wire.{method.name}.stream.{name}", method.name, change, harmless=True
            )


def _of_status(method: MethodDescriptor) -> Iterator[StatusMutant]:
    for number, status in enumerate(STATUSES):
        for name, step in (("next", 1), ("previous", -1)):
            instead = STATUSES[(number + step) % len(STATUSES)]
            words = f"{method.name}.status.{status.name}.{name}"
            yield StatusMutant(f"wire.{words}", method.name, status, instead)
    yield StatusMutant(f"wire.{method.name}.status.{DETAILS_DROPPED}", method.name, None, None)
