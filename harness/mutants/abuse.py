"""Servers that let themselves be worn out."""

from typing import Final

from harness.mutants.mutant import Mutant

CALLED: Final = "            with self._call(method, context) as call:\n"
READ_FIRST: Final = "            requests = iter([next(requests)])\n"

MUTANTS: Final = (
    Mutant(
        "leaves a descriptor open for each stream", "service.py",
        "        reader = _reader(log, request)\n",
        "        reader = _reader(log, request)\n        __import__('os').dup(2)\n",
        "abuse.resets",
    ),
    Mutant(
        "bears any number of pings", "server.py",
        '("grpc.so_reuseport", 0),',
        '("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0),',
        "abuse.pings",
    ),
    Mutant(
        "takes requests of any size", "server.py",
        '("grpc.max_receive_message_length", settings.max_receive_size),',
        '("grpc.max_receive_message_length", -1),',
        "abuse.oversized",
    ),
    Mutant(
        "takes metadata of any size", "server.py",
        '("grpc.so_reuseport", 0),',
        '("grpc.so_reuseport", 0), ("grpc.max_metadata_size", 1 << 24),'
        ' ("grpc.absolute_max_metadata_size", 1 << 24),',
        "abuse.oversized",
    ),
    Mutant(
        "allows any number of calls on a connection", "server.py",
        '("grpc.max_concurrent_streams", settings.max_concurrent_streams),',
        '("grpc.max_concurrent_streams", 2**31 - 1),',
        "abuse.streams",
    ),
    Mutant(
        "waits ten minutes for a handshake", "server.py",
        "milliseconds(settings.handshake_timeout)", "600_000", "abuse.handshakes",
    ),
    Mutant(
        # Not each: it is to have room for all ten thousand, and to leave what is left of them.
        "leaves a descriptor open for one connection in four", "tls.py",
        "        stamp = self._stamp()\n        if", "        stamp = self._stamp()\n"
        "        self.count = getattr(self, 'count', 0) + 1\n"
        "        if self.count % 4 == 0:\n            os.dup(2)\n        if",
        "abuse.idle",
    ),
    Mutant(
        "sends one message at a time", "service.py",
        "        return map(encode_output, chunks)\n",
        "        for chunk in chunks:\n            with _ONE_AT_A_TIME:\n"
        "                yield encode_output(chunk)\n",
        "abuse.windows",
        more=(
            (
                "service.py",
                'audit = logging.getLogger("worker_service.audit")\n',
                """audit = logging.getLogger("worker_service.audit")
_ONE_AT_A_TIME = __import__("threading").Lock()
""",
            ),
        ),
    ),
    Mutant(
        "waits an hour for a request", "service.py",
        "with self._timers.calling(cut, within_s):", "with self._timers.calling(cut, 3600.0):",
        "abuse.half-sent",
    ),
    Mutant(
        "asks who calls only when the request is there", "service.py",
        f"{CALLED}                response", f"{READ_FIRST}{CALLED}                response",
        "abuse.half-sent",
        more=(
            (
                "service.py",
                f"{CALLED}                slot",
                f"{READ_FIRST}{CALLED}                slot",
            ),
        ),
    ),
    Mutant(
        "says nothing of what is lacking", "worker.py",
        'raise HostExhaustedError(f"a pipe', 'raise RuntimeError(f"a pipe', "abuse.descriptors",
    ),
)  # fmt: skip
