"""Message types of a server: from a .proto file, a descriptor set, or the server's reflection.

Also paths in messages: `job.spec.command`. A path may pass through repeated messages, of which it
means the first, and may end at a oneof, whose value is the name of the field that is set.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    OneofDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import DecodeError, Message
from grpc_reflection.v1alpha import reflection_pb2

from harness.host.processes import run
from harness.record.verdict import BrokenError

COMPILE_TIMEOUT_S: Final = 60.0
REFLECT_TIMEOUT_S: Final = 20.0
_REFLECTION: Final = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
_WHOLE: Final = {
    FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}  # fmt: skip
_REAL: Final = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}


class UnfitValueError(ValueError):
    """A value cannot be written into a field of its type."""


def compiled(proto: Path, imports: Iterable[Path] = ()) -> bytes:
    """Compile a .proto file and what it imports; return its descriptor set.

    Raises:
        BrokenError: it cannot be read, or has errors; has the compiler's words.
    """
    imports = list(imports)
    if not proto.is_file():
        raise BrokenError(f"protocol.proto: {str(proto)!r} is not a file")
    if folder := next((str(each) for each in imports if not each.is_dir()), ""):
        raise BrokenError(f"protocol.imports: {folder!r} is not a directory")
    with tempfile.TemporaryDirectory(prefix="jobworker-protoc-") as scratch:
        made = Path(scratch) / "set"
        roots = [*imports, proto.parent]
        # Without Python's path of the caller's directory, whose files could hide the compiler's.
        words = [sys.executable, "-P", "-m", "grpc_tools.protoc", "--include_imports"]
        words += [f"--proto_path={root}" for root in (*roots, _well_known_types())]
        done = run([*words, f"--descriptor_set_out={made}", str(proto)], COMPILE_TIMEOUT_S)
        if done.exit_code != 0:
            raise BrokenError(f"protocol.proto: {_one_line(done.stderr or done.stdout)}")
        return made.read_bytes()


def _well_known_types() -> Path:
    import grpc_tools  # noqa: PLC0415 - only a dialect with a .proto file needs it

    return Path(grpc_tools.__path__[0]) / "_proto"


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def reflected(channel: grpc.Channel, service: str) -> bytes:
    """Return the descriptor set of a service, as the server describes it.

    Raises:
        BrokenError: the server has no reflection, or not this service.
    """
    for path in _REFLECTION:
        try:
            return _reflected(channel, path, service)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                text = f"{error.code().name}: {error.details()}"
                raise BrokenError(f"protocol.reflection: {text}") from error
    raise BrokenError(
        "protocol.reflection: the server has no reflection (UNIMPLEMENTED); give protocol.proto or "
        "protocol.descriptor_set instead"
    )


def _reflected(channel: grpc.Channel, path: str, service: str) -> bytes:
    ask: Any = channel.stream_stream(
        path,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

    def answer(request: reflection_pb2.ServerReflectionRequest) -> list[bytes]:
        for response in ask(iter([request]), timeout=REFLECT_TIMEOUT_S):
            if response.HasField("error_response"):
                raise BrokenError(
                    f"protocol.reflection: {request.file_containing_symbol or 'a file'}: "
                    f"{response.error_response.error_message}"
                )
            return list(response.file_descriptor_response.file_descriptor_proto)
        return []

    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    waiting = answer(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service))
    while waiting:
        file = descriptor_pb2.FileDescriptorProto.FromString(waiting.pop())
        if file.name in files:
            continue
        files[file.name] = file
        for name in file.dependency:
            if name not in files:
                request = reflection_pb2.ServerReflectionRequest(file_by_filename=name)
                waiting += answer(request)
    return descriptor_pb2.FileDescriptorSet(file=files.values()).SerializeToString()


class Schema:
    """The messages of one service.

    Raises:
        BrokenError: the descriptor set cannot be read, or has not this service.
    """

    def __init__(self, descriptor_set: bytes, service: str) -> None:
        pool = descriptor_pool.DescriptorPool()
        try:
            files = {
                file.name: file
                for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
            }
            added: set[str] = set()
            for name in files:
                _add(pool, files, name, added)
        except (DecodeError, TypeError) as error:
            raise BrokenError(f"protocol: its descriptors cannot be read: {error}") from error
        try:
            self.service: ServiceDescriptor = pool.FindServiceByName(service)
        except KeyError:
            names = [
                f"{file.package}.{each.name}" if file.package else each.name
                for file in files.values()
                for each in file.service
            ]
            known = ", ".join(names) or "none"
            raise BrokenError(
                f"protocol.service: no service {service!r}; the schema has: {known}"
            ) from None

    def method(self, name: str, where: str) -> MethodDescriptor:
        """Return an rpc.

        Raises:
            BrokenError: the service has no such rpc.
        """
        method = self.service.methods_by_name.get(name)
        if method is None:
            known = ", ".join(self.service.methods_by_name)
            raise BrokenError(
                f"{where}.rpc: {self.service.full_name} has no rpc {name!r}; it has: {known}"
            )
        return method


def _add(
    pool: descriptor_pool.DescriptorPool,
    files: dict[str, descriptor_pb2.FileDescriptorProto],
    name: str,
    added: set[str],
) -> None:
    """Add a file to a pool, after those that it imports."""
    if name in added or name not in files:
        return
    added.add(name)
    for other in files[name].dependency:
        _add(pool, files, other, added)
    pool.Add(files[name])


def message_class(descriptor: Descriptor) -> type[Message]:
    """Return the class of a message type."""
    return message_factory.GetMessageClass(descriptor)


class FieldPath:
    """A path in messages of one type.

    Args:
        descriptor: the message's type.
        text: the path; its parts are separated by dots.
        where: table and key of the path, for errors.

    Raises:
        BrokenError: a part is not a field; names those that exist.
    """

    def __init__(self, descriptor: Descriptor, text: str, where: str) -> None:
        self.text = text
        self._where = where
        self._parents: list[FieldDescriptor] = []
        self._oneof: OneofDescriptor | None = None
        *parents, last = text.split(".")
        for name in parents:
            field = self._field(descriptor, name)
            if field.message_type is None:
                raise BrokenError(
                    f"{where}: {name!r} in {text!r} is a {_kind(field)}, not a message"
                )
            self._parents.append(field)
            descriptor = field.message_type
        if last in descriptor.oneofs_by_name:
            self._oneof = descriptor.oneofs_by_name[last]
        else:
            self._last = self._field(descriptor, last)

    def _field(self, descriptor: Descriptor, name: str) -> FieldDescriptor:
        field = descriptor.fields_by_name.get(name)
        if field is None:
            known = ", ".join([*descriptor.fields_by_name, *descriptor.oneofs_by_name])
            raise BrokenError(
                f"{self._where}: message {descriptor.full_name} has no field {name!r}; "
                f"it has: {known or 'none'}"
            )
        return field

    @property
    def is_repeated(self) -> bool:
        """Whether it ends at a repeated field other than a map."""
        return self._oneof is None and self._last.is_repeated and not self.is_map

    @property
    def is_map(self) -> bool:
        """Whether it ends at a map."""
        kind = None if self._oneof is not None else self._last.message_type
        return kind is not None and bool(kind.GetOptions().map_entry)

    @property
    def message_type(self) -> Descriptor | None:
        """The type of the messages that it ends at; None: at no message."""
        return None if self._oneof is not None else self._last.message_type

    @property
    def kind(self) -> str:
        """What it ends at: `oneof`, `map`, the name of a message, or a type without its size."""
        if self._oneof is not None or self.is_map:
            return "map" if self._oneof is None else "oneof"
        if self._last.message_type is not None:
            return str(self._last.message_type.full_name)
        if self._last.enum_type is not None:
            return "enum"
        if self._last.cpp_type in _WHOLE:
            return "integer"
        return "float" if self._last.cpp_type in _REAL else _kind(self._last).split()[-1]

    @property
    def can_be_unset(self) -> bool:
        """Whether a message can be without the value: the field, or the message it is alone in."""
        if self._oneof is not None or self._last.has_presence:
            return True
        if any(parent.is_repeated for parent in self._parents):
            return True
        if not self._parents:
            return False
        parent = self._parents[-1]
        fields = [] if parent.message_type is None else parent.message_type.fields
        return parent.containing_oneof is not None or len(fields) == 1

    def require(self, *kinds: str, can_repeat: bool = False) -> Self:
        """Return itself if it ends at one value of one of the kinds, or at a list if it can repeat.

        Raises:
            BrokenError: it does not; names the type that it has.
        """
        if self.kind not in kinds or (self.is_repeated and not can_repeat):
            raise self._unfit(" or ".join(kinds))
        return self

    def require_list(self, kind: str) -> Self:
        """Return itself if it ends at a list of a kind.

        Raises:
            BrokenError: it does not; names the type that it has.
        """
        if self.kind != kind or not self.is_repeated:
            raise self._unfit(f"repeated {kind}")
        return self

    def _unfit(self, allowed: str) -> BrokenError:
        got = "oneof" if self._oneof is not None else _kind(self._last)
        return BrokenError(f"{self._where}: {self.text!r} is a {got}; it must be: {allowed}")

    def values(self) -> list[str]:
        """Return the names of the enum that it ends at, or of the oneof's fields; else none."""
        if self._oneof is not None:
            return [field.name for field in self._oneof.fields]
        enum = self._last.enum_type
        return [] if enum is None else [value.name for value in enum.values]

    def clear(self, message: Message) -> None:
        """Remove the value, such as a constant that is replaced."""
        target: Any = message
        for field in self._parents:
            target = getattr(target, field.name)
            if field.is_repeated:
                if not len(target):
                    return
                target = target[0]
        if self._oneof is None:
            target.ClearField(self._last.name)

    def set(self, message: Message, value: Any) -> None:  # noqa: ANN401 - of any field
        """Write a value: a list for a repeated field, names for enums, a dict for a map.

        Raises:
            UnfitValueError: the field's type cannot have it.
        """
        target: Any = message
        for field in self._parents:
            target = getattr(target, field.name)
            if field.is_repeated:
                target = target[0] if len(target) else target.add()
            target.SetInParent()
        if self._oneof is not None:
            raise UnfitValueError(
                f"{self._where}: {self.text!r} is a oneof; name one of its fields"
            )
        name = self._last.name
        try:
            if self.is_map:
                getattr(target, name).update(value)
            elif self._last.is_repeated:
                values = value if isinstance(value, list | tuple) else [value]
                getattr(target, name).extend(self._value(each) for each in values)
            else:
                setattr(target, name, self._value(value))
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UnfitValueError(
                f"{self._where}: {self.text!r} is a {_kind(self._last)} and cannot be "
                f"{value!r}: {error}"
            ) from error

    def _value(self, value: Any) -> Any:  # noqa: ANN401 - of any field
        kind, enum = self._last.cpp_type, self._last.enum_type
        if enum is not None:
            known = enum.values_by_name
            if value not in known:
                raise ValueError(f"its values are {', '.join(known)}")
            return known[value].number
        if kind == FieldDescriptor.CPPTYPE_STRING and self._last.type == self._last.TYPE_BYTES:
            return value if isinstance(value, bytes) else str(value).encode()
        if kind in _WHOLE and not isinstance(value, bool):
            number = int(value)
            if value not in {number, str(number)}:
                raise ValueError("not a whole number")
            return number
        if kind in _REAL and not isinstance(value, bool):
            return float(value)
        return value

    def get(self, message: Message) -> Any:  # noqa: ANN401 - of any field
        """Return the value: enums by name; None if it is absent."""
        target: Any = message
        for field in self._parents:
            if field.is_repeated:
                items = getattr(target, field.name)
                if not len(items):
                    return None
                target = items[0]
                continue
            if not target.HasField(field.name):
                return None
            target = getattr(target, field.name)
        if self._oneof is not None:
            return target.WhichOneof(self._oneof.name)
        field = self._last
        if field.has_presence and not target.HasField(field.name):
            return None
        value = getattr(target, field.name)
        if field.enum_type is not None and not field.is_repeated:
            known = field.enum_type.values_by_number.get(value)
            return str(value) if known is None else known.name
        return value


def _kind(field: FieldDescriptor) -> str:
    """Return the name of a field's type."""
    repeated = "repeated " if field.is_repeated else ""
    if field.message_type is not None:
        return repeated + str(field.message_type.full_name)
    if field.enum_type is not None:
        return repeated + str(field.enum_type.full_name)
    names = descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)  # type: ignore[arg-type]
    return repeated + names.removeprefix("TYPE_").lower()
