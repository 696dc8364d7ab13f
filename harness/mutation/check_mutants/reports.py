"""Servers that report jobs or themselves wrongly, or start jobs in wrong surroundings."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

LIFECYCLE: Final = "lifecycle."

MUTANTS: Final = (
    Mutation(
        "never reports when a job ended",
        (
            Edit(
                "service.py",
                "ended_at=timestamp(status.ended_at_s),\n            limits",
                "limits",
            ),
        ),
        LIFECYCLE + "times",
        also=("lifecycle.record",),
    ),
    Mutation(
        "reports times in whole seconds",
        (
            Edit(
                "wire.py",
                "stamp.FromNanoseconds(int(seconds * 1e9))",
                "stamp.FromNanoseconds(int(seconds) * 1_000_000_000)",
            ),
        ),
        LIFECYCLE + "times",
    ),
    Mutation(
        "reports that it does not serve",
        (
            Edit(
                "server.py",
                "health_pb2.HealthCheckResponse.SERVING)",
                "health_pb2.HealthCheckResponse.NOT_SERVING)",
            ),
        ),
        LIFECYCLE + "health",
    ),
    Mutation(
        "has no health of the API",
        (Edit("server.py", 'for name in ("", _SERVICE_NAME):', 'for name in ("",):'),),
        LIFECYCLE + "health",
    ),
    Mutation(
        "gives jobs a standard input that never ends",
        (
            Edit(
                "spawn.py",
                'actions, 0, b"/dev/null", os.O_RDONLY',
                'actions, 0, b"/dev/zero", os.O_RDONLY',
            ),
        ),
        LIFECYCLE + "inheritance",
    ),
    Mutation(
        "starts jobs with a umask of 0",
        (
            Edit(
                "server.py",
                "        self._server.start()\n",
                "        self._server.start()\n        os.umask(0)\n",
            ),
        ),
        LIFECYCLE + "inheritance",
    ),
    Mutation(
        "keeps its own variables where a start gives others",
        (
            Edit(
                "spawn.py",
                "environment = inherited | requested",
                "environment = requested | inherited",
            ),
        ),
        LIFECYCLE + "surroundings",
    ),
    Mutation(
        "metrics count no refusals",
        (Edit("metrics.py", "            if reason:\n", "            if not reason:\n"),),
        LIFECYCLE + "metrics",
    ),
    Mutation(
        "metrics count only the calls that succeed",
        (
            Edit(
                "gate.py",
                "            self.counts.count(call)",
                "            if call.code is grpc.StatusCode.OK:\n                self.counts.count(call)",
            ),
        ),
        LIFECYCLE + "metrics",
    ),
    Mutation(
        "metrics forget what ended streams were sent",
        (
            Edit(
                "follow.py",
                "                self._ended_bytes += reader.read_bytes\n",
                "",
            ),
        ),
        LIFECYCLE + "metrics",
    ),
    Mutation(
        "metrics do not see a reader that is behind",
        (
            Edit(
                "follow.py",
                "[reader.pending_bytes()[0] for reader in readers]",
                "[0 for reader in readers]",
            ),
        ),
        LIFECYCLE + "metrics",
    ),
    Mutation(
        "metrics take every end for a success",
        (
            Edit(
                "worker.py",
                "self._ended[status.outcome] += 1",
                "self._ended[Outcome.SUCCEEDED] += 1",
            ),
        ),
        LIFECYCLE + "metrics",
    ),
    Mutation(
        "metrics report when the server's certificate began to be valid",
        (
            Edit(
                "tls.py",
                "expires_at_s = chain[0].not_valid_after_utc",
                "expires_at_s = chain[0].not_valid_before_utc",
            ),
        ),
        LIFECYCLE + "metrics",
    ),
)
