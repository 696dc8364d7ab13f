"""The writer and the checker agree on every byte, however a stream is cut, and on nothing else."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.checker import Checker
from loadtests.emitter import GATE_TIMEOUT_S, MONOTONIC, WritePlan, bodies, head
from loadtests.jobs import writer_command
from loadtests.pacer import Pace, bursts, flood

SEED, SIZE = "seed", 80


def written(count: int) -> bytes:
    texts = bodies(SEED, SIZE)
    return b"".join(
        head(SIZE, number, number * 10, number * 10 + 1, number * 10 + 2)
        + texts[number % len(texts)]
        for number in range(count)
    )


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


@given(st.integers(1, 40), st.lists(st.integers(0, 10_000), max_size=20))
def test_stream_cut_anywhere_is_correct(count: int, cuts: list[int]) -> None:
    checker = Checker(SEED, SIZE)
    for number, piece in enumerate(pieces(written(count), cuts)):
        checker.take(piece, 1000 + number)
    checker.finish()
    assert checker.wrong == ""
    assert checker.checked_bytes == checker.offset == count * SIZE
    assert list(checker.rows[0::5]) == list(range(count))
    assert list(checker.rows[1::5]) == [number * 10 for number in range(count)]


@given(st.integers(0, 20 * SIZE - 1), st.integers(1, 255), st.lists(st.integers(0, 2000)))
def test_wrong_byte_anywhere_is_found(at: int, flip: int, cuts: list[int]) -> None:
    data = bytearray(written(20))
    data[at] ^= flip
    checker = Checker(SEED, SIZE)
    for piece in pieces(bytes(data), cuts):
        checker.take(piece, 0)
    checker.finish()
    assert checker.wrong.startswith(f"at message {at // SIZE} ")


@given(st.integers(1, 15 * SIZE), st.integers(1, 4 * SIZE))
def test_omitted_or_repeated_piece_is_found(at: int, length: int) -> None:
    data = written(20)
    for broken in (data[:at] + data[at + length :], data[: at + length] + data[at:]):
        checker = Checker(SEED, SIZE)
        checker.take(broken, 0)
        checker.finish()
        assert checker.wrong or checker.checked_bytes != len(data)


@given(st.integers(1, 15 * SIZE), st.integers(1, 4 * SIZE), st.lists(st.integers(0, 2000)))
def test_bytes_after_a_reported_gap_are_checked(at: int, dropped: int, cuts: list[int]) -> None:
    data = written(20)
    checker = Checker(SEED, SIZE)
    checker.take(data[:at], 0)
    checker.miss(dropped)
    for piece in pieces(data[at + dropped :], cuts):
        checker.take(piece, 0)
    checker.finish()
    assert checker.wrong == ""
    assert checker.offset == len(data)
    assert checker.missed_bytes == dropped


@pytest.mark.parametrize("pace", [bursts(3, 0.02, 0.1), flood(50)])
def test_job_writes_by_its_pace_what_the_checker_expects(pace: Pace) -> None:
    command, arguments = writer_command(WritePlan(pace, SIZE, SEED, "", MONOTONIC))
    done = subprocess.run([command, *arguments], capture_output=True, check=True, timeout=30)
    checker = Checker(SEED, SIZE)
    checker.take(done.stdout, 0)
    assert checker.wrong == ""
    numbers, planned, begun = (list(checker.rows[column::5]) for column in range(3))
    assert numbers == list(range(pace.count + 1))
    if not pace.is_flood:
        zero_ns = planned[1]
        assert [each - zero_ns for each in planned[1:]] == [
            pace.due_ns(number) for number in range(pace.count)
        ]
    assert all(later >= sooner for sooner, later in zip(planned, begun, strict=True))


def test_blocked_writer_skips_no_message_and_keeps_planned_instants() -> None:
    pace = Pace(4000, 1, 100_000)  # 0.4 s, more than a pipe takes
    command, arguments = writer_command(WritePlan(pace, 256, SEED, "", MONOTONIC))
    script = """if True:
        import json, subprocess, sys, time
        job = subprocess.Popen(json.loads(sys.argv[1]), stdout=subprocess.PIPE)
        first = job.stdout.read(256)  # it runs
        time.sleep(1.0)
        sys.stdout.buffer.write(first + job.stdout.read())
    """
    words = [sys.executable, "-c", script, json.dumps([command, *arguments])]
    done = subprocess.run(words, capture_output=True, check=True, timeout=30)
    checker = Checker(SEED, 256)
    checker.take(done.stdout, 0)
    assert checker.wrong == ""
    assert list(checker.rows[0::5]) == list(range(4001))
    planned, begun = list(checker.rows[1::5])[1:], list(checker.rows[2::5])[1:]
    assert planned[-1] - planned[0] == pace.due_ns(pace.count - 1)
    assert max(b - p for p, b in zip(planned, begun, strict=True)) > 300_000_000


def test_writer_whose_gate_never_opens_times_out(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    written_plan = WritePlan(flood(1), SIZE, SEED, str(gate), MONOTONIC)
    command, (*options, source, plan) = writer_command(written_plan)
    shortened = source.replace(f"GATE_TIMEOUT_S = {GATE_TIMEOUT_S}", "GATE_TIMEOUT_S = 1")
    words = [command, *options, shortened, plan]
    done = subprocess.run(words, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"no gate opened in 1 s\n")
    assert not gate.exists()
