"""What a relay does to the traffic that passes: nothing, one mutant, or a note of what it could."""

import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy

import grpc
from google.protobuf.message import Message

from harness.wire.changes import Memory
from harness.wire.mutants import FieldMutant, StatusMutant, StreamMutant, WireMutant

Status = tuple[grpc.StatusCode, str]


class Tap:
    """Changes nothing. Its methods may be called by any thread."""

    def message(self, message: Message) -> None:
        """Change a request or a response, in place."""

    def stream(
        self, rpc: str, messages: Iterator[Message], gone: threading.Event
    ) -> Iterator[Message]:
        """Return the messages of a stream as its client gets them.

        Args:
            rpc: its rpc's name.
            messages: as the server sends them.
            gone: set when the client has left.
        """
        del rpc, gone
        return messages

    def status(self, rpc: str, status: grpc.StatusCode, details: str) -> Status:
        """Return the status and the details of a call as its client gets them."""
        del rpc
        return status, details


class MutantTap(Tap):
    """Applies one mutant. Shared state and its guard: `_memory`, `applied` under `_lock`.

    `applied` is how many messages, streams or statuses it has changed.
    """

    def __init__(self, mutant: WireMutant) -> None:
        self._mutant = mutant
        self._lock = threading.Lock()
        self._memory = Memory()
        self.applied = 0

    def message(self, message: Message) -> None:
        """See `Tap`."""
        mutant = self._mutant
        if isinstance(mutant, FieldMutant) and message.DESCRIPTOR.full_name == mutant.message:
            with self._lock:
                self.applied += mutant.change(message, self._memory)

    def stream(
        self, rpc: str, messages: Iterator[Message], gone: threading.Event
    ) -> Iterator[Message]:
        """See `Tap`."""
        mutant = self._mutant
        if not isinstance(mutant, StreamMutant) or rpc != mutant.rpc:
            return messages
        with self._lock:
            self.applied += 1
        return mutant.change(messages, gone)

    def status(self, rpc: str, status: grpc.StatusCode, details: str) -> Status:
        """See `Tap`."""
        mutant = self._mutant
        if not isinstance(mutant, StatusMutant) or rpc != mutant.rpc:
            return status, details
        changed = mutant.change(status, details)
        with self._lock:
            self.applied += changed != (status, details)
        return changed


class SurveyTap(Tap):
    """Changes nothing, and notes which mutants would change something.

    Shared state and its guard: all fields under `_lock`.
    """

    def __init__(self, mutants: Sequence[WireMutant]) -> None:
        self._lock = threading.Lock()
        self._pending = {mutant.name: mutant for mutant in mutants}
        self._memory: dict[str, Memory] = {}
        self.effective: set[str] = set()

    def message(self, message: Message) -> None:
        """See `Tap`."""
        with self._lock:
            for mutant in list(self._pending.values()):
                if isinstance(mutant, FieldMutant) and (
                    message.DESCRIPTOR.full_name == mutant.message
                ):
                    memory = self._memory.setdefault(mutant.name, Memory())
                    self._note(mutant, effective=mutant.change(deepcopy(message), memory))

    def stream(
        self, rpc: str, messages: Iterator[Message], gone: threading.Event
    ) -> Iterator[Message]:
        """See `Tap`."""
        del gone
        with self._lock:
            for mutant in list(self._pending.values()):
                if isinstance(mutant, StreamMutant):
                    self._note(mutant, effective=rpc == mutant.rpc)
        return messages

    def status(self, rpc: str, status: grpc.StatusCode, details: str) -> Status:
        """See `Tap`."""
        with self._lock:
            for mutant in list(self._pending.values()):
                if isinstance(mutant, StatusMutant) and rpc == mutant.rpc:
                    changed = mutant.change(status, details)
                    self._note(mutant, effective=changed != (status, details))
        return status, details

    def _note(self, mutant: WireMutant, *, effective: bool) -> None:
        if effective:
            self.effective.add(mutant.name)
            del self._pending[mutant.name]
