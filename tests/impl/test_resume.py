"""When a broken stream is tried again, and what each output adds: without a clock or a network."""

import grpc
import pytest

from worker_service.client import Output
from worker_service.resume import MENDABLE, ONCE, Patience, following

PATIENCE = Patience(give_up_after_s=60, first_pause_s=0.2, longest_pause_s=5)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("failures", "without_progress_s", "luck", "expected_s"),
    [
        (1, 0, 0, 0.1),
        (1, 0, 0.5, 0.15),
        (2, 0, 0, 0.2),
        (3, 0, 0, 0.4),
        (5, 0, 0, 1.6),
        (6, 0, 0, 2.5),  # 6.4 s would be beyond the bound
        (6, 0, 0.5, 3.75),
        (1000, 0, 0, 2.5),
        (10**9, 0, 0, 2.5),
        (9, 58, 0, 2.0),  # the last attempt is at the end of the patience
        (9, 59.5, 0.9, 0.5),
        (9, 60, 0, None),
        (9, 61, 0.9, None),
        (1, 3600, 0, None),
    ],
)
def test_pauses_double_up_to_a_bound_until_the_patience_ends(
    failures: int, without_progress_s: float, luck: float, expected_s: float | None
) -> None:
    pause_s = PATIENCE.pause_s(UNAVAILABLE, failures, without_progress_s, luck)
    assert pause_s == (None if expected_s is None else pytest.approx(expected_s))


@pytest.mark.parametrize("code", grpc.StatusCode, ids=lambda code: code.name)
def test_only_what_another_attempt_may_mend_is_tried_again(code: grpc.StatusCode) -> None:
    mendable = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert {each.name for each in MENDABLE} == mendable
    assert (PATIENCE.pause_s(code, 1, 0, 0) is not None) == (code.name in mendable)
    assert ONCE.pause_s(code, 1, 0, 0) is None


@pytest.mark.parametrize(
    ("sent", "next_offset", "expected"),
    [
        (Output(0, b"abc"), 0, Output(0, b"abc")),
        (Output(3, b"def"), 3, Output(3, b"def")),
        # Repeated, in part or as a whole.
        (Output(0, b"abc"), 2, Output(2, b"c")),
        (Output(0, b"abc"), 3, Output(3, b"")),
        (Output(0, b"abc"), 9, Output(3, b"")),
        # A gap is what lies between, whatever the server says of it.
        (Output(7, b"hij", 4), 3, Output(7, b"hij", 4)),
        (Output(7, b"hij"), 3, Output(7, b"hij", 4)),
        (Output(7, b"hij", 7), 6, Output(7, b"hij", 1)),
        (Output(7, b"", 4), 3, Output(7, b"", 4)),
        # A tail's first output: only the server knows what it left out.
        (Output(7, b"hij", 2), None, Output(7, b"hij", 2)),
    ],
)
def test_each_output_adds_what_follows_and_says_what_is_missing(
    sent: Output, next_offset: int | None, expected: Output
) -> None:
    assert following(sent, next_offset) == expected
