"""Job workers with other APIs than ours, each with faults that are switched on.

They represent other people's servers: no code of ours. `KINDS` are their APIs, described in
`tests/dialects`; `FAULTS` are those that public job workers were seen to have.
`python -m tests.support.foreign_server KIND [--fault FAULT]... --listen HOST:PORT --ca --cert
--key`.
"""

import argparse
import itertools
import os
import re
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final, cast

# It must be set before gRPC is imported. Both are of TLS 1.2, and no client has a PSK.
os.environ["GRPC_SSL_CIPHER_SUITES"] = (
    "ECDHE-RSA-AES128-GCM-SHA256" if "old-tls" in sys.argv else "ECDHE-PSK-CHACHA20-POLY1305"
)

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection
from grpc_tools import protoc

from tests.support.original_server import GRACE_S, Job

PROTOS: Final = Path(__file__).parents[1] / "dialects"
_WORD: Final = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")
_QUOTES: Final = re.compile(r"""'[^']*'|"[^"]*\"""")
FAULTS: Final = (
    "corrupt", "tail-lost", "children-left", "missing-program", "unknown-job", "never-running",
    "workflow-command", "exit-codes", "old-tls", "endless", "says-stopped",
)  # fmt: skip


class Api:
    """An API's messages, and how a job's words, id and state stand in them."""

    service: str
    rpcs: tuple[str, str, str, str]  # start, stop, query, stream
    roles: ClassVar[dict[str, tuple[str, ...]]] = {}  # OU -> rpcs; empty: no roles

    def __init__(self) -> None:
        package = self.service.rpartition(".")[0]
        name = f"{package.partition('.')[0]}.proto"
        with TemporaryDirectory() as directory:
            made = Path(directory) / "descriptors"
            protoc.main(["protoc", f"-I{PROTOS}", f"--descriptor_set_out={made}", name])
            [file] = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file
        self.pool = descriptor_pool.DescriptorPool()
        self.pool.Add(file)
        self.classes: dict[str, Any] = {
            each.name: message_factory.GetMessageClass(
                self.pool.FindMessageTypeByName(f"{package}.{each.name}")
            )
            for each in file.message_type
        }
        self.numbers = itertools.count(1)

    def response(self, rpc: str, **fields: Any) -> Any:
        return self.classes[f"{rpc}Response"](**fields)

    def words(self, request: Any) -> list[str]:
        raise NotImplementedError

    def new_id(self) -> str:
        return str(uuid.uuid4())

    def id_of(self, request: Any) -> str:
        return str(request.id)

    def started(self, job_id: str) -> Any:
        raise NotImplementedError

    def state(self, job_id: str, job: Job | None, code: int | None) -> Any:
        raise NotImplementedError

    def chunk(self, data: bytes) -> Any:
        raise NotImplementedError


class Units(Api):
    service = "units.v1.Units"
    rpcs = ("Launch", "Halt", "Inspect", "Follow")
    roles: ClassVar[dict[str, tuple[str, ...]]] = {
        "operator": rpcs, "viewer": ("Inspect", "Follow")
    }  # fmt: skip

    def words(self, request: Any) -> list[str]:
        return [request.program, *request.args]

    def started(self, job_id: str) -> Any:
        return self.response("Launch", id=job_id)

    def state(self, job_id: str, job: Job | None, code: int | None) -> Any:
        del job_id, job
        if code is None:
            return self.response("Inspect", state="STATE_RUNNING")
        if code >= 0:
            return self.response("Inspect", state="STATE_DONE", exit_code=code)
        text = str(signal.strsignal(-code)).lower()
        return self.response("Inspect", state="STATE_STOPPED", signal=text)

    def chunk(self, data: bytes) -> Any:
        return self.response("Follow", output=data)


class Nested(Api):
    service = "nested.Nested"
    rpcs = ("Submit", "Kill", "Get", "Output")

    def words(self, request: Any) -> list[str]:
        return list(request.job.command)

    def new_id(self) -> str:
        return f"job_{uuid.uuid4().hex}"

    def id_of(self, request: Any) -> str:
        return f"{request.id.prefix}_{request.id.suffix}"

    def _job(self, job_id: str, **fields: Any) -> Any:
        prefix, _, suffix = job_id.partition("_")
        return self.classes["Job"](id={"prefix": prefix, "suffix": suffix}, **fields)

    def started(self, job_id: str) -> Any:
        return self.response("Submit", job=self._job(job_id))

    def state(self, job_id: str, job: Job | None, code: int | None) -> Any:
        pid = job.process.pid if job else 0
        if code is None:
            return self.response("Get", job=self._job(job_id, pid=pid, running={}))
        ended = {"exit_code": max(code, -1)}
        return self.response("Get", job=self._job(job_id, pid=pid, ended=ended))

    def chunk(self, data: bytes) -> Any:
        return self.response("Output", stdout=data)


class Required(Api):
    service = "required.Required"
    rpcs = ("Start", "Stop", "Status", "Tail")

    def words(self, request: Any) -> list[str]:
        if request.cpu <= 0 or request.memory_bytes <= 0:
            raise ValueError("cpu and memory_bytes are required")
        # shlex.split takes seconds for some megabytes.
        words = _WORD.findall(request.command_line)
        return [_QUOTES.sub(lambda each: each[0][1:-1], word) for word in words]

    def new_id(self) -> str:
        return str(next(self.numbers))

    def started(self, job_id: str) -> Any:
        return self.response("Start", id=int(job_id))

    def state(self, job_id: str, job: Job | None, code: int | None) -> Any:
        del job_id, job
        text = "running" if code is None else f"exit status {code}"
        if code is not None and code < 0:
            text = f"signal: {str(signal.strsignal(-code)).lower()}"
        return self.response("Status", status=text)

    def chunk(self, data: bytes) -> Any:
        return self.response("Tail", content=data)


KINDS: Final[dict[str, type[Api]]] = {"units": Units, "nested": Nested, "required": Required}


class LeavesChildren(Job):
    """A job whose children outlive its main process."""

    def _end(self) -> None:
        self.process.wait()


class Service:
    """The four rpcs of an API, with faults."""

    def __init__(self, api: Api, faults: Collection[str]) -> None:
        self.api = api
        self.faults = faults
        self.jobs: dict[str, Job | None] = {}
        self.said_stopped: set[str] = set()

    def start(self, request: Any, context: grpc.ServicerContext) -> Any:
        job = None
        try:
            kind = LeavesChildren if "children-left" in self.faults else Job
            job = kind(self.api.words(request))
        except (OSError, ValueError) as error:
            if "missing-program" not in self.faults:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        job_id = self.api.new_id()
        self.jobs[job_id] = job
        return self.api.started(job_id)

    def _job(self, request: Any, context: grpc.ServicerContext) -> Job | None:
        job_id = self.api.id_of(request)
        if job_id not in self.jobs:
            if "workflow-command" in self.faults:
                context.abort(grpc.StatusCode.UNKNOWN, "no job\n::error title=x::y")
            code = "UNKNOWN" if "unknown-job" in self.faults else "NOT_FOUND"
            context.abort(grpc.StatusCode[code], f"no job {job_id}")
        return self.jobs[job_id]

    def stop(self, request: Any, context: grpc.ServicerContext) -> Any:
        job = self._job(request, context)
        if job is not None and not job.ended:
            send: Callable[[int], None] = job.signal
            if "children-left" in self.faults:
                send = job.process.send_signal
            send(signal.SIGTERM)
            if "says-stopped" in self.faults:
                self.said_stopped.add(self.api.id_of(request))
                return self.api.response(self.api.rpcs[1])
            send(signal.SIGCONT)
            if not job.wait_ended(GRACE_S):
                send(signal.SIGKILL)
                job.wait_ended(GRACE_S)
        return self.api.response(self.api.rpcs[1])

    def query(self, request: Any, context: grpc.ServicerContext) -> Any:
        job = self._job(request, context)
        code = 127 if job is None else job.process.returncode if job.ended else None
        if code is None and "never-running" in self.faults:
            code = 0
        if code is None and self.api.id_of(request) in self.said_stopped:
            code = -signal.SIGTERM
        if code and code > 0 and "exit-codes" in self.faults:
            code = 1
        return self.api.state(self.api.id_of(request), job, code)

    def stream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        job = self._job(request, context)
        if self.api.service == Required.service:
            yield self.api.response("Tail", banner="here it comes")
        for data in job.follow(context) if job else ():
            yield self.api.chunk(b"?" + data[1:] if "corrupt" in self.faults else data)
            if "tail-lost" in self.faults and job is not None and job.ended:
                return  # one chunk after the end was seen, whatever is left
        if "endless" in self.faults:
            cancelled = threading.Event()
            if context.add_callback(cancelled.set):
                cancelled.wait()

    def close(self) -> None:
        """End all that is left."""
        for job in self.jobs.values():
            # The number of an ended job's group may be another's by now.
            if job is not None and not job.ended:
                job.signal(signal.SIGKILL)


def _unit_of(context: grpc.ServicerContext) -> str:
    """Return the organisational unit of the caller's certificate."""
    [pem] = cast("list[bytes]", context.auth_context()["x509_pem_cert"])
    subject = x509.load_pem_x509_certificate(pem).subject
    units = [
        each.value for each in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    ]
    return str(units[0]) if len(units) == 1 else ""


def handlers(service: Service) -> dict[str, Any]:
    api = service.api

    def guarded(rpc: str, work: Any) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            if api.roles and rpc not in api.roles.get(_unit_of(context), ()):
                context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{rpc} is not allowed")
            return work(request, context)

        make = (
            grpc.unary_stream_rpc_method_handler
            if rpc == api.rpcs[3]
            else grpc.unary_unary_rpc_method_handler
        )
        return make(
            call,
            request_deserializer=api.classes[f"{rpc}Request"].FromString,
            response_serializer=api.classes[f"{rpc}Response"].SerializeToString,
        )

    work = (service.start, service.stop, service.query, service.stream)
    return {rpc: guarded(rpc, each) for rpc, each in zip(api.rpcs, work, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--fault", choices=FAULTS, action="append", default=[])
    for name in ("listen", "ca", "cert", "key"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    api = KINDS[options.kind]()
    pair = (Path(options.key).read_bytes(), Path(options.cert).read_bytes())
    server = grpc.server(ThreadPoolExecutor(200))
    service = Service(api, options.fault)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(api.service, handlers(service)),)
    )
    if api.service == Required.service:
        reflection.enable_server_reflection((api.service,), server, pool=api.pool)
    credentials = grpc.ssl_server_credentials(
        [pair], Path(options.ca).read_bytes(), require_client_auth=True
    )
    server.add_secure_port(options.listen, credentials)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    server.start()
    ended.wait()
    service.close()


if __name__ == "__main__":
    main()
