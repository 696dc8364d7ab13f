"""Wire mutants: each generated one changes what its name says, and nothing else."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from harness.checks import ALL
from harness.checks.quick import QUICK
from harness.wire.changes import Memory, is_map
from harness.wire.equivalents import EQUIVALENTS, reason_for
from harness.wire.mutants import FieldMutant, StatusMutant, StreamMutant, WireMutant, generate
from harness.wire.proof import OUT_OF_REACH, SLOWER
from harness.wire.statuses import RETURNED
from harness.wire.streams import CHANGES, HARMLESS, MERGED_MAX_BYTES, READ_AHEAD_MESSAGES
from harness.wire.tap import MutantTap, SurveyTap
from harness.wire.target import SERVICE
from jobworker.v1 import jobworker_pb2 as pb
from worker_service.gate import STATUS_CODES

MUTANTS = generate(SERVICE)
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
FIELD_MUTANTS = [mutant for mutant in MUTANTS if isinstance(mutant, FieldMutant)]
KINDS = {
    kind.full_name: message_factory.GetMessageClass(kind)
    for method in SERVICE.methods
    for kind in (method.input_type, method.output_type)
}


def filled(kind: type[Message], number: int) -> Message:
    """Return a message with every field set: to other values for another number."""
    message = kind()
    for field in fields_of(kind):
        group = field.containing_oneof
        if group is not None and field is not group.fields[number // 2 % len(group.fields)]:
            continue
        if is_map(field):
            getattr(message, field.name).update({f"a{number}": "x", f"b{number}": "y"})
        elif field.message_type is not None:
            nested = message_factory.GetMessageClass(field.message_type)
            values = [filled(nested, number + field.number + n) for n in range(2)]
            if field.is_repeated:
                getattr(message, field.name).extend(values)
            else:
                getattr(message, field.name).CopyFrom(values[0])
        elif field.is_repeated:
            getattr(message, field.name).extend([f"one{number}", f"two{number}"])
        else:
            setattr(message, field.name, _value(field, number + field.number))
    return message


def hollow(kind: type[Message]) -> Message:
    """Return a message whose nested messages are present and empty."""
    message = kind()
    for field in fields_of(kind):
        if field.message_type is not None and not is_map(field):
            value = getattr(message, field.name)
            nested = message_factory.GetMessageClass(field.message_type)
            if field.is_repeated:
                value.extend([nested(), hollow(nested)])
            else:
                value.CopyFrom(hollow(nested))
                value.SetInParent()
    return message


def fields_of(kind: type[Message]) -> list[Any]:
    """Return a message's fields, untyped: there are two implementations of their types."""
    return list(kind.DESCRIPTOR.fields)


def _value(field: FieldDescriptor, number: int) -> object:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return f"text{number}"
        case FieldDescriptor.TYPE_BYTES:
            return b"bytes%d" % number
        case FieldDescriptor.TYPE_BOOL:
            return number % 2 == 0
        case _:
            return number + 10


def effects(mutant: FieldMutant) -> list[Message]:
    """Return the messages that a mutant makes of several ones, where it changes something."""
    kind, memory, changed = KINDS[mutant.message], Memory(), []
    several = [filled(kind, number) for number in (0, 1, 2, 3, 4)]
    for message in (kind(), hollow(kind), *several, kind()):
        before = message.SerializeToString(deterministic=True)
        if mutant.change(message, memory):
            assert message.SerializeToString(deterministic=True) != before, mutant.name
            changed.append(message)
        else:
            assert message.SerializeToString(deterministic=True) == before, mutant.name
    return changed


@pytest.mark.parametrize("mutant", FIELD_MUTANTS, ids=lambda mutant: mutant.name)
def test_field_mutant_changes_some_message_and_reports_exactly_that(mutant: FieldMutant) -> None:
    assert effects(mutant)


def test_every_field_of_every_message_has_mutants_and_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    for method in SERVICE.methods:
        for kind in (method.input_type, method.output_type):
            for field in kind.fields:
                assert f"wire.{kind.name}.{field.name}.dropped" in names
    assert "wire.QueryJobResponse.ended_at.dropped" in names
    assert "wire.StartJobRequest.limits.io_max.device.byte-changed" in names
    assert "wire.StreamLogsResponse.message.byte-changed" in names
    assert "wire.QueryJob.status.NOT_FOUND.next" in names
    assert all(re.fullmatch(r"wire(\.[A-Za-z0-9_-]+){3,}", name) for name in names)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("QueryJobResponse.exit_code.plus-one", {"exit_code": 3}, {"exit_code": 4}),
        ("QueryJobResponse.oom_killed.flipped", {}, {"oom_killed": True}),
        ("QueryJobResponse.output_error.invented", {}, {"output_error": ""}),
        ("QueryJobResponse.status.byte-changed", {"status": "exited"}, {"status": "exitee"}),
        (
            "QueryJobResponse.exit_code.swapped-with-signal",
            {"exit_code": 3, "signal": 9}, {"exit_code": 9, "signal": 3},
        ),
        (
            "StreamLogsRequest.from_offset.swapped-with-tail_bytes",
            {"from_offset": 5}, {"tail_bytes": 5},
        ),
        (
            "StartJobRequest.command_args.reversed",
            {"command_args": ["a", "b"]}, {"command_args": ["b", "a"]},
        ),
        ("StopJobRequest.grace_period_ms.zeroed", {"grace_period_ms": 5}, {"grace_period_ms": 0}),
        (
            "ListJobsResponse.jobs.pid.plus-one",
            {"jobs": [{"pid": 1}, {"pid": 5}]}, {"jobs": [{"pid": 2}, {"pid": 6}]},
        ),
    ],
)  # fmt: skip
def test_change_is_the_named_one(name: str, before: Any, after: Any) -> None:
    mutant = BY_NAME[f"wire.{name}"]
    assert isinstance(mutant, FieldMutant)
    kind = KINDS[mutant.message]
    message = kind(**before)
    assert mutant.change(message, Memory())
    assert message == kind(**after)


def test_stale_value_is_that_of_the_previous_message() -> None:
    tap = MutantTap(BY_NAME["wire.QueryJobResponse.status.stale"])
    answers = [pb.QueryJobResponse(status=status) for status in ("running", "exited", "exited")]
    for answer in answers:
        tap.message(answer)
    assert [answer.status for answer in answers] == ["running", "running", "exited"]
    assert tap.applied == 1


def test_other_messages_pass_unchanged() -> None:
    tap = MutantTap(BY_NAME["wire.QueryJobResponse.status.dropped"])
    other = pb.ListJobsRequest(status="exited")
    tap.message(other)
    assert other.status == "exited"
    assert tap.applied == 0


OUTPUT = [pb.StreamLogsResponse(message=b"%d%d" % (n, n), offset=2 * n) for n in range(3)]


def streamed(change: Callable[..., Iterator[Message]], gone: threading.Event) -> list[Any]:
    return list(
        change(
            (pb.StreamLogsResponse.FromString(each.SerializeToString()) for each in OUTPUT), gone
        )
    )


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("first-lost", [1, 2]), ("last-lost", [0, 1]), ("repeated", [0, 0, 1, 1, 2, 2]),
        ("reordered", [1, 0, 2]), ("held-back", [0, 1, 2]), ("delayed", [0, 1, 2]),
        ("ended-early", [0]), ("never-ended", [0, 1, 2]),
    ],
)  # fmt: skip
def test_stream_is_changed_as_named(name: str, numbers: Sequence[int]) -> None:
    gone = threading.Event()
    gone.set()  # no wait is longer than its client stays
    assert [each.offset // 2 for each in streamed(CHANGES[name], gone)] == numbers


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_change_keeps_every_byte_at_its_offset(name: str) -> None:
    messages = streamed(HARMLESS[name], threading.Event())
    end = 0
    for message in messages:
        assert message.offset == end
        end += len(message.message)
    assert b"".join(message.message for message in messages) == b"001122"
    if name == "split":
        assert len(messages) == 6


def test_merged_stream_ends_with_its_error() -> None:
    def broken() -> Iterator[Message]:
        yield OUTPUT[0]
        raise OSError("cut")

    merged = HARMLESS["merged"](broken(), threading.Event())
    with pytest.raises(OSError, match="cut"):
        list(merged)


def test_merged_stream_reads_little_ahead_of_its_client_and_ends_with_it() -> None:
    read, ended = [], threading.Event()

    def flood() -> Iterator[Message]:
        try:
            for number in range(1000):
                read.append(number)
                yield pb.StreamLogsResponse(message=bytes(MERGED_MAX_BYTES // 4))
        finally:
            ended.set()

    merged: Any = HARMLESS["merged"](flood(), threading.Event())
    sizes = [len(message.message) for message in islice(merged, 5)]
    read_for_five = READ_AHEAD_MESSAGES + 2 + 4 * len(sizes)
    merged.close()
    assert ended.wait(20)
    assert len(read) <= read_for_five
    assert max(sizes) <= MERGED_MAX_BYTES


def test_status_becomes_its_neighbour() -> None:
    unknown = MutantTap(BY_NAME["wire.QueryJob.status.NOT_FOUND.next"])
    code = grpc.StatusCode.NOT_FOUND
    assert unknown.status("QueryJob", code, "x") == (grpc.StatusCode.ALREADY_EXISTS, "x")
    assert unknown.status("StopJob", code, "x") == (code, "x")
    silent = MutantTap(BY_NAME["wire.QueryJob.status.details-dropped"])
    assert silent.status("QueryJob", code, "x") == (code, "")
    assert (unknown.applied, silent.applied) == (1, 1)


def test_survey_names_what_would_be_changed_and_changes_nothing() -> None:
    survey = SurveyTap(MUTANTS)
    answer = pb.QueryJobResponse(status="exited", exit_code=3)
    survey.message(answer)
    survey.status("QueryJob", grpc.StatusCode.NOT_FOUND, "x")
    list(survey.stream("StreamLogs", iter(OUTPUT), threading.Event()))
    assert answer == pb.QueryJobResponse(status="exited", exit_code=3)
    assert "wire.QueryJobResponse.exit_code.dropped" in survey.effective
    assert "wire.QueryJobResponse.signal.dropped" not in survey.effective
    assert "wire.QueryJobResponse.exit_code.stale" not in survey.effective
    assert "wire.QueryJob.status.NOT_FOUND.next" in survey.effective
    assert "wire.QueryJob.status.OK.next" not in survey.effective
    assert "wire.StreamLogs.stream.reordered" in survey.effective


def test_each_equivalent_has_a_mutant_and_a_reason() -> None:
    for row, reason in EQUIVALENTS.items():
        assert len(reason) > 10, row
        matching = [name for name in BY_NAME if reason_for(name) == reason]
        assert matching, f"{row} matches no mutant: take it out"


def test_tables_name_existing_checks() -> None:
    names = {check.name for check in ALL}
    assert names >= SLOWER
    assert set(QUICK) >= set(OUT_OF_REACH)


def test_mutants_have_all_kinds() -> None:
    def count(kind: type[WireMutant]) -> int:
        return sum(isinstance(mutant, kind) for mutant in MUTANTS)

    assert count(FieldMutant) > 400
    assert count(StatusMutant) == 35 * len(SERVICE.methods)
    assert count(StreamMutant) == len(CHANGES) + len(HARMLESS)


def test_table_of_statuses_has_those_of_the_server_and_no_rpc_that_does_not_exist() -> None:
    code = grpc.StatusCode
    # A process that outlives SIGKILL, and an rpc that does not exist.
    elsewhere = {code.DEADLINE_EXCEEDED, code.UNIMPLEMENTED}
    assert set(STATUS_CODES.values()) - elsewhere == set(RETURNED) - {code.OK}
    rpcs = {method.name for method in SERVICE.methods}
    assert {rpc for each in RETURNED.values() for rpc in each} == rpcs
