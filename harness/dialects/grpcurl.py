"""Calls in the words of grpcurl, a common client of any gRPC server: what an author repeats."""

from collections.abc import Sequence

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from harness.host.cert_files import CertFiles


def grpcurl(
    address: str, files: CertFiles, path: str, message: Message, described: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the words of a command that makes a call.

    Args:
        address: HOST:PORT.
        files: of the client.
        path: of the rpc, `/package.Service/Method`.
        message: the request.
        described: options that say where the messages are described; none: by reflection.
    """
    data = MessageToJson(message, preserving_proto_field_name=True, indent=None)
    certificates = ("-cacert", str(files.ca), "-cert", str(files.cert), "-key", str(files.key))
    return ("grpcurl", *certificates, *described, "-d", data, address, path.lstrip("/"))
