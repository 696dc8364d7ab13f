"""An independent server of the original's API: only its fields, one thread per stream.

It represents a third party's implementation: it has no code of ours, and none of our additions.
`python -m tests.support.original_server --listen HOST:PORT --ca --cert --key`.
"""

import argparse
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"

import grpc
from cryptography import x509
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

PROTO: Final = Path(__file__).parents[1] / "proto" / "original"
ROLES: Final = {"1.3.6.1.4.1.12345.1.1": "admin", "1.3.6.1.4.1.12345.1.2": "user"}
USER_RPCS: Final = {"QueryJob", "StreamLogs"}
GRACE_S: Final = 2.0


def message_classes() -> dict[str, Any]:
    """Return the original's messages, made from its own .proto."""
    with TemporaryDirectory() as directory:
        target = Path(directory) / "descriptors"
        source = "jobworker/v1/jobworker.proto"
        protoc.main(["protoc", f"-I{PROTO}", f"--descriptor_set_out={target}", source])
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"jobworker.v1.{message.name}")
        )
        for message in files.file[0].message_type
    }


class Job:
    """A process and its output, which grows until both have ended."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        self.output = bytearray()
        self.ended = False
        self.changed = threading.Condition()
        self._ending = threading.Thread(target=self._end, daemon=True)
        self._ending.start()
        threading.Thread(target=self._read, daemon=True).start()

    def _end(self) -> None:
        # Until it is waited for, its group's number cannot be another's.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.signal(signal.SIGKILL)  # what is left of the group, which frees the pipe
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            while data := os.read(pipe.fileno(), 65_536):
                with self.changed:
                    self.output += data
                    self.changed.notify_all()
        self._ending.join()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def wait_ended(self, timeout_s: float) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.ended, timeout_s)

    def follow(self, context: Any) -> Iterator[bytes]:
        offset = 0
        while context.is_active():
            with self.changed:
                if not self.ended and len(self.output) == offset:
                    self.changed.wait(1.0)
                data, ended = bytes(self.output[offset : offset + 262_144]), self.ended
            if not data and ended:
                return
            offset += len(data)
            if data:
                yield data


class Service:
    """The four rpcs."""

    def __init__(self) -> None:
        self.messages = message_classes()
        self.jobs: dict[str, Job] = {}

    def start(self, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            job = Job([request.command_name, *request.command_args])
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            code = grpc.StatusCode.NOT_FOUND if missing else grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, f"{request.command_name}: {error}")
        job_id = str(uuid.uuid4())
        self.jobs[job_id] = job
        return self.messages["StartJobResponse"](job_id=job_id, message="started")

    def job(self, request: Any, context: grpc.ServicerContext) -> Job:
        job = self.jobs.get(request.job_id)
        if job is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no job {request.job_id}")
        return job

    def stop(self, request: Any, context: grpc.ServicerContext) -> Any:
        job = self.job(request, context)
        if not job.ended:
            job.signal(signal.SIGTERM)
            job.signal(signal.SIGCONT)
            if not job.wait_ended(GRACE_S):
                job.signal(signal.SIGKILL)
                job.wait_ended(GRACE_S)
        return self.messages["StopJobResponse"](success=True, message="stopped")

    def query(self, request: Any, context: grpc.ServicerContext) -> Any:
        job = self.job(request, context)
        code = job.process.returncode if job.ended else None
        status = "running" if code is None else "exited" if code >= 0 else "signaled"
        return self.messages["QueryJobResponse"](
            status=status, pid=job.process.pid, exit_code=max(code or 0, 0),
            signal=max(-(code or 0), 0),
        )  # fmt: skip

    def stream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for data in self.job(request, context).follow(context):
            yield self.messages["StreamLogsResponse"](message=data)


def role_of(context: grpc.ServicerContext) -> str:
    [pem] = cast("list[bytes]", context.auth_context()["x509_pem_cert"])
    extensions = x509.load_pem_x509_certificate(pem).extensions
    roles = {ROLES[e.oid.dotted_string] for e in extensions if e.oid.dotted_string in ROLES}
    return roles.pop() if len(roles) == 1 else ""


def handlers(service: Service) -> dict[str, Any]:
    def guarded(rpc: str, work: Any) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            role = role_of(context)
            if role != "admin" and not (role == "user" and rpc in USER_RPCS):
                text = f"role {role or 'none'} is not allowed to call {rpc}"
                context.abort(grpc.StatusCode.PERMISSION_DENIED, text)
            return work(request, context)

        streams = rpc == "StreamLogs"
        make = (
            grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        return make(
            call,
            request_deserializer=service.messages[f"{rpc}Request"].FromString,
            response_serializer=service.messages[f"{rpc}Response"].SerializeToString,
        )

    work = {
        "StartJob": service.start, "StopJob": service.stop, "QueryJob": service.query,
        "StreamLogs": service.stream,
    }  # fmt: skip
    return {rpc: guarded(rpc, each) for rpc, each in work.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("listen", "ca", "cert", "key"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    pair = (Path(options.key).read_bytes(), Path(options.cert).read_bytes())
    server = grpc.server(ThreadPoolExecutor(200))
    handler = grpc.method_handlers_generic_handler("jobworker.v1.JobWorker", handlers(Service()))
    server.add_generic_rpc_handlers((handler,))
    authority = Path(options.ca).read_bytes()
    credentials = grpc.ssl_server_credentials([pair], authority, require_client_auth=True)
    server.add_secure_port(options.listen, credentials)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
