"""Which servers the client calls without a proxy."""

import pytest

from worker_service.client import _is_loopback


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("localhost:50051", True),
        ("LOCALHOST:50051", True),
        ("server.localhost:50051", True),
        ("127.0.0.1:50051", True),
        ("127.8.9.10", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("10.0.0.1:50051", False),
        ("[2001:db8::1]:50051", False),
        ("localhost.example.com:50051", False),
        ("example.com:50051", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_are_called_without_a_proxy(server: str, expected: bool) -> None:
    assert _is_loopback(server) is expected
