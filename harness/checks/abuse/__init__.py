"""Clients that misuse the connection, and a concurrent victim that must not notice."""

from typing import Final

from harness.checks.abuse import connections, half_sent_calls, http2_floods

CHECKS: Final = (*http2_floods.CHECKS, *connections.CHECKS, *half_sent_calls.CHECKS)
