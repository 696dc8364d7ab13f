"""gRPC channels with mutual TLS."""

from collections.abc import Sequence
from typing import Final

import grpc

from harness.host.cert_files import CertFiles

MESSAGE_MAX_BYTES: Final = 64 * 1024 * 1024
# A server is judged directly, never through a proxy that the environment names.
NO_PROXY: Final = ("grpc.enable_http_proxy", 0)
ChannelOptions = Sequence[tuple[str, int | str]]


def open_channel(address: str, files: CertFiles, options: ChannelOptions = ()) -> grpc.Channel:
    """Return a channel with its own connection, which no other channel shares."""
    credentials = grpc.ssl_channel_credentials(
        files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
    )
    settings: list[tuple[str, int | str]] = [
        ("grpc.use_local_subchannel_pool", 1),
        NO_PROXY,
        ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
        # Reconnect soon to a server that was restarted.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
        *options,
    ]
    return grpc.secure_channel(address, credentials, settings)
