"""Faults in the defence against abuse, and the abuse check that catches each."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

CALLED: Final = "            with self._call(method, context, kind) as call:\n"
STREAM_CALLED: Final = (
    "            with (\n                self._call(method, context, self._streams)"
)
READ_FIRST: Final = "            requests = iter([next(requests)])\n"

MUTANTS: Final = (
    Mutation(
        "leaks a descriptor per stream",
        (
            Edit(
                "service.py",
                "        reader = _reader(log, request)\n",
                "        reader = _reader(log, request)\n        __import__('os').dup(2)\n",
            ),
        ),
        "abuse.resets",
    ),
    Mutation(
        "accepts any number of pings",
        (
            Edit(
                "server.py",
                '("grpc.so_reuseport", 0),',
                '("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0),',
            ),
        ),
        "abuse.pings",
    ),
    Mutation(
        "accepts requests of any size",
        (
            Edit(
                "server.py",
                '("grpc.max_receive_message_length", settings.max_receive_size),',
                '("grpc.max_receive_message_length", -1),',
            ),
        ),
        "abuse.oversized",
    ),
    Mutation(
        "accepts metadata of any size",
        (
            Edit(
                "server.py",
                '("grpc.so_reuseport", 0),',
                '("grpc.so_reuseport", 0), ("grpc.max_metadata_size", 1 << 24),'
                ' ("grpc.absolute_max_metadata_size", 1 << 24),',
            ),
        ),
        "abuse.oversized",
    ),
    Mutation(
        "allows any number of calls on a connection",
        (
            Edit(
                "server.py",
                '("grpc.max_concurrent_streams", settings.max_concurrent_streams),',
                '("grpc.max_concurrent_streams", 2**31 - 1),',
            ),
        ),
        "abuse.streams",
    ),
    Mutation(
        "waits ten minutes for a handshake",
        (Edit("server.py", "milliseconds(settings.handshake_timeout)", "600_000"),),
        "abuse.handshakes",
    ),
    Mutation(
        # Not every connection: the server needs descriptors for all ten thousand, and to keep some.
        "leaks a descriptor for every fourth connection",
        (
            Edit(
                "tls.py",
                "        trusted = material.trusted()\n        if",
                "        trusted = material.trusted()\n"
                "        self.count = getattr(self, 'count', 0) + 1\n"
                "        if self.count % 4 == 0:\n            __import__('os').dup(2)\n        if",
            ),
        ),
        "abuse.idle",
    ),
    Mutation(
        "sends output to one stream at a time",
        (
            Edit(
                "service.py",
                "        return map(encode_output, chunks)\n",
                "        for chunk in chunks:\n            with _ONE_AT_A_TIME:\n"
                "                yield encode_output(chunk)\n",
            ),
            Edit(
                "service.py",
                "class JobWorkerService(",
                '_ONE_AT_A_TIME = __import__("threading").Lock()\n\n\nclass JobWorkerService(',
            ),
        ),
        "abuse.windows",
    ),
    Mutation(
        "waits an hour for a call's message",
        (
            Edit(
                "gate.py",
                "with self._timers.calling(cut, within_s):",
                "with self._timers.calling(cut, 3600.0):",
            ),
        ),
        "abuse.half-sent",
    ),
    Mutation(
        "authenticates a call only after its message",
        (
            Edit(
                "gate.py",
                f"{CALLED}                response",
                f"{READ_FIRST}{CALLED}                response",
            ),
            Edit(
                "gate.py",
                STREAM_CALLED,
                f"{READ_FIRST}{STREAM_CALLED}",
            ),
        ),
        "abuse.half-sent",
    ),
    Mutation(
        "does not report that no descriptor is left",
        (Edit("worker.py", 'raise HostExhaustedError(f"a pipe', 'raise RuntimeError(f"a pipe'),),
        "abuse.descriptors",
    ),
)
