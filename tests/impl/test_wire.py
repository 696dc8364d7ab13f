"""Conversions to messages and back lose nothing."""

from hypothesis import given
from hypothesis import strategies as st

from jobworker.v1 import jobworker_pb2 as pb
from worker_service import wire
from worker_service.cgroup import IoMax, Limits, Usage
from worker_service.log import Chunk

U64 = st.integers(0, 2**64 - 1)
OPTIONAL = st.none() | st.integers(1, 2**31)


@given(offset=U64, data=st.binary(max_size=300), missed=U64)
def test_encode_output_equals_protobufs_encoding(offset: int, data: bytes, missed: int) -> None:
    encoded = wire.encode_output(Chunk(offset, memoryview(data), missed))
    expected = pb.StreamLogsResponse(message=data, offset=offset, missed_bytes=missed)
    assert pb.StreamLogsResponse.FromString(encoded) == expected
    assert len(encoded) == len(expected.SerializeToString())


@given(
    limits=st.builds(
        Limits,
        cpu_millicores=OPTIONAL,
        memory_max_bytes=OPTIONAL,
        io_weight=OPTIONAL,
        io_max=st.lists(st.builds(IoMax, st.text(max_size=9), OPTIONAL, OPTIONAL)).map(tuple),
        pids_max=OPTIONAL,
    )
)
def test_limits_round_trip_through_their_message(limits: Limits) -> None:
    message = wire.limits_to_message(limits)
    assert message is not None
    assert wire.limits_from_message(message) == limits


def test_usage_round_trips_through_its_message_and_has_all_its_fields() -> None:
    usage = Usage(*range(1, 10))
    message = wire.usage_to_message(usage)
    assert message is not None
    assert wire.usage_from_message(message) == usage
    assert {field.name for field in pb.ResourceUsage.DESCRIPTOR.fields} == set(Usage.__slots__)
