"""Writers write the bytes that readers expect, at every offset, according to their plan."""

import subprocess
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from harness.checks.common import HELLO_BYTES, WriterStep, plan_text
from harness.payloads import payload
from harness.payloads.burst_writer import BLOCK_BYTES, Pattern

PATTERN = Pattern("seed")
offsets = st.integers(0, 5 * BLOCK_BYTES) | st.sampled_from(
    [0, 15, 16, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 8, 2 * BLOCK_BYTES + 16]
)


@given(offset=offsets, length=st.integers(0, 300), cut=st.integers(0, 300))
def test_a_slice_equals_its_parts(offset: int, length: int, cut: int) -> None:
    cut = min(cut, length)
    whole = PATTERN.read(offset, length)
    assert len(whole) == length
    assert PATTERN.read(offset, cut) + PATTERN.read(offset + cut, length - cut) == whole
    assert PATTERN.first_difference(offset, whole) is None


@given(offset=offsets, at=st.integers(0, 199))
def test_first_difference_is_the_index_of_a_changed_byte(offset: int, at: int) -> None:
    data = bytearray(PATTERN.read(offset, 200))
    data[at] ^= 1
    assert PATTERN.first_difference(offset, bytes(data)) == at


@given(offset=offsets, shift=st.integers(1, 3 * BLOCK_BYTES))
def test_shifted_output_differs(offset: int, shift: int) -> None:
    # Long enough to contain the head of a block, which is different in each block.
    assert PATTERN.first_difference(offset, PATTERN.read(offset + shift, BLOCK_BYTES)) is not None


def test_different_seeds_have_different_bytes() -> None:
    assert PATTERN.first_difference(100, Pattern("other").read(100, 100)) is not None


@given(st.text(alphabet=st.characters(codec="utf-8")), st.integers(0, 5))
def test_no_block_begins_with_bytes_that_a_broken_server_sends_for_none(
    seed: str, number: int
) -> None:
    head = Pattern(seed).read(number * BLOCK_BYTES, 16)
    assert 0 not in head


def run_writer(*steps: WriterStep) -> subprocess.Popen[bytes]:
    command, arguments = payload("burst_writer", "seed", plan_text(steps))
    return subprocess.Popen([command, *arguments], stdout=subprocess.PIPE)


def test_a_writer_writes_its_plan() -> None:
    steps = (
        WriterStep(5, write_bytes=1, repeat=2),
        WriterStep(BLOCK_BYTES, write_bytes=65_536, pause_ms=1),
        WriterStep(),
    )
    with run_writer(*steps) as process:
        data, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert data == PATTERN.read(0, BLOCK_BYTES + 10)


def test_a_writer_waits_at_its_gate_and_removes_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    steps = (WriterStep(3), WriterStep(3, gate=str(gate)))
    with run_writer(*steps) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == PATTERN.read(0, 3)
        never = threading.Event()
        while not gate.exists():
            never.wait(0.01)
            assert process.poll() is None
        with gate.open("wb"):
            rest, _ = process.communicate(timeout=30)
    assert rest == PATTERN.read(3, 3)
    assert list(tmp_path.iterdir()) == []


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_what_a_gated_writer_writes_first_ends_a_line(seed: str) -> None:
    assert Pattern(seed).read(0, HELLO_BYTES)[-1:] == b"\n"
