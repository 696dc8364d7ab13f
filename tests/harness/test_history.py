"""Records survive writing and reading; a missing or invalid record is BROKEN."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from harness.record.history import (
    Call,
    Cause,
    History,
    Interruption,
    Observation,
    Outcome,
    Record,
    Recorder,
    Stream,
    from_json,
    load,
    save,
    to_json,
)
from harness.record.verdict import BrokenError, Finding, Verdict


class Colour(StrEnum):
    """An enum of a check's own."""

    RED = "red"


@dataclass(frozen=True, slots=True)
class Sample:
    """A value inside an observation."""

    at_s: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class EveryField(Observation):
    """Fields of every kind that an observation may have."""

    samples: tuple[Sample, ...]
    pairs: tuple[tuple[float, int], ...]
    limit: float | None
    colour: Colour
    is_done: bool
    text: str
    by_name: dict[str, int]


CALL = Call("stop 1", "StopJob", Outcome.UNKNOWN, "DEADLINE_EXCEEDED", "late", 0.5, 1.5, {"a": [1]})
STREAM = Stream(
    "reader 1", "id", Outcome.OK, "OK", "", 5, "ab" * 32, 0.1, 2.0,
    start_offset=7, missed_bytes=2, wrong_at=9, gap="gap", offsets_reported=True, text="\xff\x00\n",
    first_byte_s=0.2, last_byte_s=1.9, timeline=((0.2, 1), (1.9, 5)),
)  # fmt: skip
INTERRUPTION = Interruption(
    Cause.PROMISE_BROKEN, "no job", Finding(Verdict.FAIL, "a job starts", "UNAVAILABLE", "OK")
)
OBSERVATION = EveryField(
    (Sample(0.5, Colour.RED), Sample(1e-9, Colour.RED)), ((0.1, 1), (0.2, 2**63)), None, Colour.RED,
    is_done=True, text="\ud800\x00\n", by_name={"a": 1},
)  # fmt: skip


@pytest.mark.parametrize(
    "record", [CALL, STREAM, INTERRUPTION, OBSERVATION], ids=lambda each: type(each).__name__
)
def test_record_survives_the_round_trip_through_its_line(record: Record) -> None:
    line = to_json(record)
    assert "\n" not in line
    assert from_json(line) == record


@pytest.mark.parametrize(
    "line", ["", "{}", '{"kind": "call"}', '{"kind": []}', '{"kind": "EveryField"}', "[1]", "\x00"]
)
def test_line_that_is_not_a_record_is_broken(line: str) -> None:
    with pytest.raises(BrokenError, match="not a record of a run"):
        from_json(line)


def test_observation_with_a_field_of_another_type_is_broken() -> None:
    line = to_json(OBSERVATION).replace('"colour": "red"', '"colour": "mauve"')
    with pytest.raises(BrokenError, match=r"not a record of a run.*mauve"):
        from_json(line)


def test_record_of_an_unknown_kind_is_broken_and_the_message_says_what_to_do() -> None:
    line = to_json(OBSERVATION).replace('"EveryField"', '"FieldOfAnotherVersion"')
    with pytest.raises(BrokenError) as raised:
        from_json(line)
    assert str(raised.value) == (
        "unknown kind of record 'FieldOfAnotherVersion'; if another version of the harness wrote "
        "it, read this run with that version, or run the check again"
    )


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (to_json(STREAM).replace('"missed_bytes"', '"lost_bytes"'), "lost_bytes, missed_bytes"),
        (to_json(STREAM).replace('"gap": "gap", ', ""), "gap"),
        (to_json(OBSERVATION).replace('"at_s": 0.5', '"at_s": 0.5, "more": 1'), "samples"),
    ],
)
def test_record_with_other_fields_is_broken_and_not_filled_in(line: str, field: str) -> None:
    with pytest.raises(BrokenError, match=rf"other fields than those of \w+: {field}\)"):
        from_json(line)


def test_two_observations_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Observation, "kinds", dict(Observation.kinds))
    with pytest.raises(TypeError, match=f"another_module and {__name__} .*EveryField; rename one"):
        type("EveryField", (Observation,), {"__module__": "another_module"})
    assert Observation.kinds["EveryField"] is EveryField


def test_history_survives_the_round_trip_through_its_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    save(History([CALL, STREAM, OBSERVATION]), path)
    assert load(path).records == (CALL, STREAM, OBSERVATION)
    assert [each.name for each in tmp_path.iterdir()] == ["history.jsonl"]


def test_history_that_is_missing_or_not_text_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenError, match="no history"):
        load(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BrokenError, match="no history"):
        load(tmp_path / "binary")


def test_lookup_is_broken_unless_exactly_one_record_matches() -> None:
    history = History([CALL, INTERRUPTION, INTERRUPTION, OBSERVATION])
    assert history.call("stop 1") is CALL
    assert history.the(EveryField) is OBSERVATION
    for look_up in (
        lambda: history.call("stop"),
        lambda: history.stream("reader 1"),
        lambda: history.the(Interruption),
    ):
        with pytest.raises(BrokenError, match="must have one"):
            look_up()


def test_calls_and_streams_are_found_by_prefix_and_observations_by_type() -> None:
    history = History([CALL, STREAM, OBSERVATION])
    assert history.calls("stop ") == [CALL]
    assert history.streams("reader") == [STREAM]
    assert history.all(EveryField) == [OBSERVATION]
    assert history.calls("start") == []


def test_recorder_keeps_the_order() -> None:
    recorder = Recorder()
    added = [Interruption(Cause.HARNESS_FAILED, str(number)) for number in range(3)]
    for each in added:
        recorder.add(each)
    assert recorder.history().all(Interruption) == added
    assert recorder.now_s() >= 0
