"""Records are written and read back as they were; what is missing is BROKEN, never empty."""

from pathlib import Path

import pytest

from harness.record.history import (
    Call,
    Fact,
    History,
    Outcome,
    Record,
    Recorder,
    Stream,
    from_json,
    load,
    save,
    to_json,
)
from harness.record.verdict import BrokenError

CALL = Call("stop 1", "StopJob", Outcome.UNKNOWN, "DEADLINE_EXCEEDED", "late", 0.5, 1.5, {"a": [1]})
STREAM = Stream(
    "reader 1", "id", Outcome.OK, "OK", "", 5, "ab" * 32, 0.1, 2.0,
    start_offset=7, missed_bytes=2, wrong_at=9, gap="gap", offsets_told=True, text="\xff\x00\n",
    first_byte_s=0.2, last_byte_s=1.9, timeline=((0.2, 1), (1.9, 5)),
)  # fmt: skip
FACT = Fact("usage", {"samples": [[0.5, 1]], "limit": None, "odd": "\ud800"})


@pytest.mark.parametrize("record", [CALL, STREAM, FACT], ids=["call", "stream", "fact"])
def test_a_record_survives_its_line(record: Record) -> None:
    line = to_json(record)
    assert "\n" not in line
    assert from_json(line) == record


@pytest.mark.parametrize("line", ["", "{}", '{"kind": "no"}', '{"kind": "fact"}', "[1]", "\x00"])
def test_a_line_that_is_no_record_is_broken(line: str) -> None:
    with pytest.raises(BrokenError, match="no record"):
        from_json(line)


def test_a_history_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    save(History([CALL, STREAM, FACT]), path)
    assert load(path).records == (CALL, STREAM, FACT)
    assert [each.name for each in tmp_path.iterdir()] == ["history.jsonl"]


def test_a_history_that_is_not_there_or_no_text_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenError, match="no history"):
        load(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BrokenError, match="no history"):
        load(tmp_path / "binary")


def test_a_record_that_a_judge_needs_is_there_once_or_the_run_is_broken() -> None:
    history = History([CALL, FACT, FACT])
    assert history.call("stop 1") is CALL
    for look in (lambda: history.call("stop"), lambda: history.fact("usage")):
        with pytest.raises(BrokenError, match="must have one"):
            look()
    with pytest.raises(BrokenError, match="no number"):
        History([FACT]).number("usage")


def test_labels_are_found_by_their_beginning() -> None:
    history = History([CALL, STREAM, FACT])
    assert history.calls("stop ") == [CALL]
    assert history.streams("reader") == [STREAM]
    assert history.facts() == [FACT]
    assert history.calls("start") == []


def test_a_recorder_keeps_the_order() -> None:
    recorder = Recorder()
    for number in range(3):
        recorder.fact(str(number), number)
    assert [fact.value for fact in recorder.history().facts()] == [0, 1, 2]
    assert recorder.now_s() >= 0
