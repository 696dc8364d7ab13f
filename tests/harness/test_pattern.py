"""The bytes that writers write are the bytes that readers expect, at every offset."""

import json
import subprocess
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from harness.payloads import payload
from harness.payloads.burst_writer import BLOCK_BYTES, Pattern

PATTERN = Pattern("seed")
offsets = st.integers(0, 5 * BLOCK_BYTES) | st.sampled_from(
    [0, 15, 16, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 8, 2 * BLOCK_BYTES + 16]
)


@given(offset=offsets, length=st.integers(0, 300), cut=st.integers(0, 300))
def test_a_slice_is_the_same_however_it_is_cut(offset: int, length: int, cut: int) -> None:
    cut = min(cut, length)
    whole = PATTERN.read(offset, length)
    assert len(whole) == length
    assert PATTERN.read(offset, cut) + PATTERN.read(offset + cut, length - cut) == whole
    assert PATTERN.first_difference(offset, whole) is None


@given(offset=offsets, at=st.integers(0, 199))
def test_a_changed_byte_is_found_where_it_is(offset: int, at: int) -> None:
    data = bytearray(PATTERN.read(offset, 200))
    data[at] ^= 1
    assert PATTERN.first_difference(offset, bytes(data)) == at


@given(offset=offsets, shift=st.integers(1, 3 * BLOCK_BYTES))
def test_shifted_output_is_noticed(offset: int, shift: int) -> None:
    # Long enough to reach the head of a block, which tells blocks apart.
    assert PATTERN.first_difference(offset, PATTERN.read(offset + shift, BLOCK_BYTES)) is not None


def test_other_seeds_have_other_bytes() -> None:
    assert PATTERN.first_difference(100, Pattern("other").read(100, 100)) is not None


def run_writer(plan: list[dict[str, object]], **options: object) -> subprocess.Popen[bytes]:
    command, arguments = payload("burst_writer", "seed", json.dumps(plan))
    return subprocess.Popen([command, *arguments], stdout=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def test_a_writer_writes_its_plan() -> None:
    plan: list[dict[str, object]] = [
        {"bytes": 5, "write": 1, "repeat": 2},
        {"bytes": BLOCK_BYTES, "write": 65_536, "pause_ms": 1},
        {"exit": 7},
        {"bytes": 100},
    ]
    with run_writer(plan) as process:
        data, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    assert data == PATTERN.read(0, BLOCK_BYTES + 10)


def test_a_writer_waits_at_its_gate_and_leaves_no_gate_behind(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with run_writer([{"bytes": 3}, {"gate": str(gate)}, {"bytes": 3}]) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == PATTERN.read(0, 3)
        made = threading.Event()
        while not gate.exists():
            made.wait(0.01)
            assert process.poll() is None
        with gate.open("wb"):
            rest, _ = process.communicate(timeout=30)
    assert rest == PATTERN.read(3, 3)
    assert list(tmp_path.iterdir()) == []
