"""Servers that are wrong in a corner only: for one value, one combination, or the second time.

Their kinds come from faults that were written by somebody who did not know the checks, and that the
checks missed at first; see docs/mutation-score.md.
"""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

LIFECYCLE: Final = "lifecycle."
STREAMS: Final = "streams."
IDENTITY: Final = "identity."

_NEXT: Final = 'page.next_page_token = f"{self._page_prefix}{last_number}"\n'
_LAST_OF_PAGE: Final = "            last_number = job.number\n        return page\n"
_ENDED_AT: Final = "            ended_at=timestamp(status.ended_at_s),\n            limits="
_WHOLE: Final = """\
                if whole:
                    with self._lock:
                        segment.newlines = newlines
"""
_FOUND: Final = '_find_program(command.name, environment[b"PATH"],'

MUTANTS: Final = (
    Mutation(
        "reloads its authorities only with its own certificate",
        (
            Edit(
                "tls.py",
                "if (material, trusted) == self._used:",
                "if material.certificate == self._used[0].certificate:",
            ),
        ),
        IDENTITY + "rotation",
    ),
    Mutation(
        "goes on trusting an authority that was removed",
        (
            Edit(
                "tls.py",
                "        trusted = material.trusted()\n        if",
                '        trusted = b"".join({material.trusted(), self._used[1]})\n        if',
            ),
        ),
        IDENTITY + "rotation",
    ),
    Mutation(
        "describes its API to users",
        (
            Edit(
                "identity.py",
                'v1alpha.ServerReflection/ServerReflectionInfo": _ADMINS',
                'v1alpha.ServerReflection/ServerReflectionInfo": _EVERYBODY',
            ),
        ),
        LIFECYCLE + "health",
    ),
    Mutation(
        "counts stops that wait among the other calls",
        (Edit("gate.py", "self._stops if method == _STOP else self._others", "self._others"),),
        LIFECYCLE + "waiting-stop",
    ),
    Mutation(
        "lets a query wait for a stop",
        (
            Edit(
                "service.py",
                "        self.readers = Readers()\n",
                "        self.readers = Readers()\n"
                "        self.guard = __import__('threading').Lock()\n",
            ),
            Edit(
                "service.py",
                "        status = self._worker.stop(",
                "        with self.guard:\n            status = self._worker.stop(",
            ),
            Edit(
                "service.py",
                "        status = self._worker.query(",
                "        with self.guard:\n            status = self._worker.query(",
            ),
        ),
        LIFECYCLE + "waiting-stop",
    ),
    Mutation(
        "lets every stop wait that comes",
        (
            Edit(
                "gate.py",
                'Admission(unary_threads, "stops wait',
                'Admission(unary_threads + 1, "stops wait',
            ),
        ),
        LIFECYCLE + "waiting-stop",
    ),
    Mutation(
        "accepts a role with bytes after its text",
        (Edit("identity.py", "der[1] != len(der) - header_bytes", "der[1] > len(der)"),),
        IDENTITY + "certificates",
    ),
    Mutation(
        "accepts RSA keys of two sizes only",
        (
            Edit(
                "identity.py",
                "key.key_size >= RSA_MIN_BITS:",
                "key.key_size in {RSA_MIN_BITS, 2 * RSA_MIN_BITS}:",
            ),
        ),
        IDENTITY + "certificates",
    ),
    Mutation(
        "accepts of all curves only P-256",
        (Edit("identity.py", "key.key_size >= EC_MIN_BITS:", "key.key_size == EC_MIN_BITS:"),),
        IDENTITY + "certificates",
    ),
    Mutation(
        "knows a role by the serial number",
        (
            Edit(
                "gate.py",
                "        self._deny_list = deny_list\n",
                "        self._deny_list = deny_list\n"
                "        self._known: dict[int, Identity] = {}\n",
            ),
            Edit(
                "gate.py",
                'identify(cast("AuthContext", context.auth_context()))\n',
                'identify(cast("AuthContext", context.auth_context()))\n'
                "        identity = self._known.setdefault(identity.serial_number, identity)\n",
            ),
        ),
        IDENTITY + "certificates",
    ),
    Mutation(
        "sends the whole log for a tail of 0 bytes",
        (Edit("service.py", 'case "tail_bytes":', 'case "tail_bytes" if request.tail_bytes:'),),
        STREAMS + "tails",
    ),
    Mutation(
        "adds a line to a tail if the output ends within a line",
        (
            Edit(
                "log.py",
                "if bytes(self._read(position - 1, 1).data) == _NEWLINE:",
                "if self._read(position - 1, 1).data:",
            ),
        ),
        STREAMS + "tails",
    ),
    Mutation(
        "takes the newlines of a segment that grows from an earlier tail",
        (
            Edit("log.py", "segment.newlines if whole else None", "segment.newlines"),
            Edit("log.py", _WHOLE, "                segment.newlines = newlines\n"),
        ),
        STREAMS + "tails",
    ),
    Mutation(
        "ends a stream that starts at an offset, and does not follow, too early",
        (
            Edit(
                "service.py",
                "until_offset=log.extent().end_offset if request.no_follow",
                "until_offset=log.extent().end_offset - reader.offset if request.no_follow",
            ),
        ),
        STREAMS + "tails",
    ),
    Mutation(
        "leaves out the offset 0",
        (
            Edit(
                "wire.py",
                "    if chunk.data:\n",
                "    if not chunk.offset:\n        parts = []\n    if chunk.data:\n",
            ),
        ),
        STREAMS + "tails",
    ),
    Mutation(
        "lists no end of jobs that a signal ended",
        (
            Edit(
                "service.py",
                "        ended_at=timestamp(status.ended_at_s),\n        log_size",
                "        ended_at=None if status.signal else timestamp(status.ended_at_s),\n"
                "        log_size",
            ),
        ),
        LIFECYCLE + "times",
    ),
    Mutation(
        "reports no end of jobs that failed",
        (
            Edit(
                "service.py",
                _ENDED_AT,
                _ENDED_AT.replace("),\n", ") if not status.exit_code else None,\n"),
            ),
        ),
        LIFECYCLE + "times",
    ),
    Mutation(
        "gives a full last page a token",
        (
            Edit(
                "service.py",
                _LAST_OF_PAGE,
                "            last_number = job.number\n"
                "        if len(page.jobs) == request.page_size:\n"
                f"            {_NEXT}        return page\n",
            ),
        ),
        LIFECYCLE + "pages",
    ),
    Mutation(
        "gives the last page of a filtered list a token",
        (
            Edit(
                "service.py",
                _LAST_OF_PAGE,
                "            last_number = job.number\n"
                "        if request.status and page.jobs and not page.next_page_token:\n"
                f"            {_NEXT}        return page\n",
            ),
        ),
        LIFECYCLE + "pages",
    ),
    Mutation(
        "does not continue a paused job at its stop",
        (Edit("tree.py", "        _send(send, signal.SIGCONT)\n", "        pass\n"),),
        LIFECYCLE + "stopped-job",
    ),
    Mutation(
        "cuts a requested grace period to whole seconds",
        (
            Edit(
                "service.py",
                "request.grace_period_ms / 1000 if",
                "request.grace_period_ms // 1000 if",
            ),
        ),
        LIFECYCLE + "escalates",
    ),
    Mutation(
        "counts a grace period in ticks of 400 ms",
        (
            Edit(
                "worker.py",
                "        if not 0 <= grace_s <= GRACE_MAX_S:\n",
                "        grace_s = grace_s // 0.4 * 0.4\n"
                "        if not 0 <= grace_s <= GRACE_MAX_S:\n",
            ),
        ),
        LIFECYCLE + "escalates",
    ),
    Mutation(
        "looks a program up in its own PATH, whatever the job's is",
        (Edit("spawn.py", _FOUND, _FOUND.replace("environment", "inherited")),),
        LIFECYCLE + "surroundings",
    ),
    Mutation(
        "looks a program up in its own PATH after the job's",
        (
            Edit(
                "spawn.py",
                _FOUND,
                _FOUND.replace('[b"PATH"]', '[b"PATH"] + b":" + inherited[b"PATH"]'),
            ),
        ),
        LIFECYCLE + "surroundings",
    ),
    Mutation(
        "repeats the value in the refusal of a variable's name",
        (Edit("spawn.py", "environment key {key.partition('=')[0]!r}", "environment key {key!r}"),),
        LIFECYCLE + "surroundings",
    ),
    Mutation(
        "repeats the value in the refusal of a variable's NUL",
        (Edit("spawn.py", '(f"environment[{key!r}]", f', '(f"environment[{key}={value}]", f'),),
        LIFECYCLE + "surroundings",
    ),
    Mutation(
        "bounds the text of a refusal in characters, not in bytes",
        (
            Edit(
                "gate.py",
                "    if len(whole) > _DETAIL_MAX_BYTES:\n"
                '        kept = whole[:_DETAIL_MAX_BYTES].decode(errors="ignore")\n',
                "    if len(detail) > _DETAIL_MAX_BYTES:\n"
                "        kept = detail[:_DETAIL_MAX_BYTES]\n",
            ),
        ),
        LIFECYCLE + "bad-commands",
    ),
    Mutation(
        "bounds the text of a refusal at 64 KiB",
        (Edit("gate.py", "_DETAIL_MAX_BYTES: Final = 1024", "_DETAIL_MAX_BYTES: Final = 65_536"),),
        LIFECYCLE + "bad-commands",
    ),
    Mutation(
        "says that it deleted a job whose id is in upper case, and keeps it",
        (
            Edit(
                "worker.py",
                "        self._forget(status.job_id)\n\n    def running",
                "        self._forget(job_id)\n\n    def running",
            ),
        ),
        LIFECYCLE + "ids",
    ),
    Mutation(
        "deletes no job whose id has no hyphens",
        (
            Edit(
                "service.py",
                "        self._worker.delete(request.job_id)\n",
                '        if "-" not in request.job_id:\n'
                '            raise InvalidRequestError("job_id has no hyphens")\n'
                "        self._worker.delete(request.job_id)\n",
            ),
        ),
        LIFECYCLE + "ids",
    ),
)
_NOTHING: Final = "if given != Limits():"
GUEST_MUTANTS: Final = (
    Mutation(
        "runs a job without the limits of disks that it requests, without limits",
        (
            Edit(
                "worker.py",
                _NOTHING,
                'if any(getattr(given, n) is not None for n in Limits.__slots__ if n != "io_max"):',
            ),
        ),
        "limits.without-limits",
    ),
    Mutation(
        "takes a limit of 0 for none when it runs without limits",
        (
            Edit(
                "worker.py",
                _NOTHING,
                "if any(getattr(given, name) for name in Limits.__slots__):",
            ),
        ),
        "limits.without-limits",
    ),
)
