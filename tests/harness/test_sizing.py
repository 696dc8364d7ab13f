"""How much many readers receive each: less of a server with small messages."""

from types import SimpleNamespace
from typing import Any

import pytest

from harness.checks.common import KIB, MIB
from harness.checks.streams.plans import bytes_for_readers


@pytest.mark.parametrize(
    ("largest_bytes", "size_bytes"), [(512 * KIB, MIB), (4 * KIB, 128 * KIB), (80, 64 * KIB)]
)
def test_readers_of_small_messages_receive_less(largest_bytes: int, size_bytes: int) -> None:
    stage: Any = SimpleNamespace(nonce=lambda: "seed", record=lambda _: None)
    client: Any = SimpleNamespace(
        must_start=lambda *_: "job",
        stream=lambda *_, **__: SimpleNamespace(largest_message_bytes=largest_bytes),
    )
    assert bytes_for_readers(stage, client, MIB, 32) == size_bytes
