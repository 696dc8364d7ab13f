"""Servers that lose, mix, delay or withhold output, leak, or let one client harm another."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

STREAMS: Final = "streams."
FOLLOW_CALL: Final = "                yield reader.read(granted_bytes)\n"
CANCEL: Final = "if not context.add_callback(reader.cancel):"

MUTANTS: Final = (
    # Found in other implementations of this API.
    Mutation(
        "sends chunks that alias a buffer which the next output overwrites",
        (
            Edit(
                "log.py",
                "                self._segments.append(last)\n",
                "                if self._segments:\n"
                "                    last.memory = self._segments[-1].memory\n"
                "                self._segments.append(last)\n",
            ),
        ),
        STREAMS + "many",
    ),
    Mutation(
        "holds the log's lock while it sends, so a stalled reader blocks the job",
        (
            Edit(
                "follow.py",
                FOLLOW_CALL,
                "                chunk = reader.read(granted_bytes)\n"
                "                with reader._log._lock:\n                    yield chunk\n",
            ),
        ),
        STREAMS + "stalled",
    ),
    Mutation(
        "never ends a stream",
        (
            Edit(
                "log.py", "            self._closed = True\n", "            self._closed = False\n"
            ),
        ),
        STREAMS + "end",
    ),
    # Bytes.
    Mutation(
        "changes a bit of each message's first byte",
        (
            Edit(
                "wire.py",
                "_varint(len(chunk.data)), chunk.data,",
                "_varint(len(chunk.data)), bytes([chunk.data[0] ^ 1]), chunk.data[1:],",
            ),
        ),
        STREAMS + "writes",
        ("lifecycle.literal",),
    ),
    Mutation(
        "drops pending output of a reader that falls behind",
        (
            Edit(
                "follow.py",
                "            hold_s = reader.sent_at_s",
                "            reader.offset += max(0, pending_bytes - 700_000)\n"
                "            pending_bytes = min(pending_bytes, 700_000)\n"
                "            hold_s = reader.sent_at_s",
            ),
        ),
        STREAMS + "writes",
    ),
    Mutation(
        "repeats the last byte of a large chunk",
        (
            Edit(
                "log.py",
                "        self.offset = chunk.offset + len(chunk.data)\n",
                "        self.offset = chunk.offset + len(chunk.data) - (len(chunk.data) > 100_000)\n",
            ),
        ),
        STREAMS + "writes",
    ),
    Mutation(
        "replays only the last 64 KiB of an ended job",
        (
            Edit(
                "service.py",
                "            return log.reader_at(request.from_offset)  # 0 when absent",
                "            return log.reader_at(max(request.from_offset, "
                "log.extent().end_offset - 65_536 if log.extent().closed else 0))",
            ),
        ),
        STREAMS + "after-end",
    ),
    Mutation(
        "starts late joiners at the current end",
        (
            Edit(
                "service.py",
                "            return log.reader_at(request.from_offset)  # 0 when absent",
                # Only beyond 32 bytes: `identity.roles` streams a job with one word, and joins late.
                "            seen = _reader.__dict__.setdefault('seen', set())\n"
                "            end = log.extent().end_offset\n"
                "            late = request.job_id in seen and end > 32 and not log.extent().closed\n"
                "            seen.add(request.job_id)\n"
                "            return log.reader_at(request.from_offset or end * late)",
            ),
        ),
        STREAMS + "late-joiner",
    ),
    Mutation(
        "shares one log among all jobs of a program",
        (
            Edit(
                "worker.py",
                "log=OutputLog(self._settings.log_retention_bytes),",
                'log=self.__dict__.setdefault("_logs", {}).setdefault(\n                command.name, '
                "OutputLog(self._settings.log_retention_bytes)\n            ),",
            ),
        ),
        STREAMS + "two-jobs",
        ("lifecycle.literal", "identity.roles"),
    ),
    Mutation(
        "does not capture standard error",
        (
            Edit(
                "spawn.py",
                "            LIBC_AT_ONCE.posix_spawn_file_actions_adddup2(actions, output_fd, 2),\n",
                "",
            ),
        ),
        STREAMS + "order",
    ),
    Mutation(
        "reports exit code 0 in every case",
        (
            Edit(
                "job.py",
                "            exit_code=self._exit.exit_code,\n",
                "            exit_code=0,\n",
            ),
        ),
        STREAMS + "survivor",
    ),
    Mutation(
        "does not kill the children of an ended job",
        (
            Edit(
                "job.py",
                "            self._tree.kill()\n",
                "            self._exit is None and self._tree.kill()\n",
            ),
        ),
        STREAMS + "survivor",
    ),
    Mutation(
        "reads from escaped children for 15 s",
        (Edit("job.py", "DRAIN_MAX_S: Final = 2.0", "DRAIN_MAX_S: Final = 15.0"),),
        STREAMS + "survivor",
    ),
    # Time.
    Mutation(
        "holds small output back until more is written",
        (
            Edit(
                "follow.py",
                "if live and hold_s > 0 and pending_bytes < batching.flush_bytes:",
                "if live and pending_bytes < batching.flush_bytes and (\n"
                "                reader.offset or pending_bytes > 64\n            ):",
            ),
            Edit("follow.py", "min(hold_s, lease_s)", "lease_s"),
            Edit("server.py", "encode_output, when.flush_interval_s", "encode_output, 99"),
        ),
        STREAMS + "live",
    ),
    Mutation(
        "ends a stream that had no output for a second",
        (
            Edit(
                "courier.py",
                "            if self._owner is _Owner.LOG:\n                pending_bytes, closed",
                "            if self.offset > 64 and time.monotonic() > self.sent_at_s + 1:\n"
                "                self.cancel()\n"
                "            if self._owner is _Owner.LOG:\n                pending_bytes, closed",
            ),
        ),
        STREAMS + "paused-server",
    ),
    Mutation(
        "closes the log before the status is final",
        (
            Edit(
                "job.py",
                "        usage = self._attempt(self._tree.last_usage)\n",
                "        usage = self._attempt(self._tree.last_usage)\n        self.log.close()\n"
                "        time.sleep(0.2)\n",
            ),
        ),
        STREAMS + "end",
    ),
    Mutation(
        "exits when a client cancels a stream of a silent job",
        (
            Edit(
                "service.py",
                CANCEL,
                'if not context.add_callback(lambda: reader.offset or __import__("os")._exit(9)):',
            ),
        ),
        STREAMS + "deadline",
    ),
    # Offsets.
    Mutation(
        "ignores the requested offset",
        (
            Edit(
                "service.py",
                "            return log.reader_at(request.from_offset)  # 0 when absent",
                "            return log.reader_at(0)",
            ),
        ),
        STREAMS + "resume",
    ),
    Mutation(
        "accepts an offset beyond the end and waits",
        (Edit("log.py", "        if offset > extent.end_offset:\n", "        if offset < 0:\n"),),
        STREAMS + "resume",
    ),
    Mutation(
        "sends offsets that are one too high",
        (
            Edit(
                "wire.py",
                "= [_OFFSET_TAG, _varint(chunk.offset)]",
                "= [_OFFSET_TAG, _varint(chunk.offset + 1)]",
            ),
        ),
        STREAMS + "resume",
    ),
    Mutation(
        "limits requested offsets to 4 MB",
        (
            Edit(
                "service.py",
                "            return log.reader_at(request.from_offset)  # 0 when absent",
                "            return log.reader_at(min(request.from_offset, 4_000_000))",
            ),
        ),
        STREAMS + "faults",
    ),
    Mutation(
        "follows although no_follow is set",
        (
            Edit(
                "service.py",
                "if request.no_follow else None",
                "if request.no_follow and not reader else None",
            ),
        ),
        STREAMS + "tails",
    ),
    Mutation(
        "does not count the last line of a tail",
        (
            Edit(
                "log.py",
                "            wanted += 1  # it ends",
                "            wanted += 0  # it ends",
            ),
        ),
        STREAMS + "tails",
    ),
    Mutation(
        "resumes streams of a running job at its current end",
        (
            Edit(
                "service.py",
                "            return log.reader_at(request.from_offset)  # 0 when absent",
                "            end = 0 if log.extent().closed else log.extent().end_offset\n"
                "            return log.reader_at(request.from_offset and max(request.from_offset, end))",
            ),
        ),
        STREAMS + "live-faults",
    ),
    # Many readers, and slots.
    Mutation(
        "admits half of the default maximum of streams",
        (
            Edit(
                "config.py",
                "_number(1, _THREADS_MAX), 1000,",
                "_number(1, _THREADS_MAX), 500,",
            ),
        ),
        STREAMS + "thousand",
    ),
    Mutation(
        "accepts calls one by one, each after a message of every other stream",
        (Edit("server.py", "        request_calls(self._server, _CALLS_AT_A_TIME)\n", ""),),
        STREAMS + "stampede",
    ),
    Mutation(
        "lets one stream of fifty wait two seconds before each message",
        (
            Edit(
                "follow.py",
                "            granted_bytes = budget.reserve(",
                '            number = reader.__dict__.setdefault("number", budget._streams)\n'
                "            time.sleep(2.0 * (number % 50 == 49))\n"
                "            granted_bytes = budget.reserve(",
            ),
        ),
        STREAMS + "stampede",
    ),
    Mutation(
        "cancels all streams of a job when one client disconnects",
        (
            Edit(
                "service.py",
                CANCEL,
                "if not context.add_callback(\n"
                "            lambda: [each.cancel() for each in (reader, *list(log._waiting))]\n        ):",
            ),
        ),
        STREAMS + "bursty",
    ),
    Mutation(
        "admits one stream too many",
        (Edit("follow.py", "if self._taken >= self._maximum:", "if self._taken > self._maximum:"),),
        STREAMS + "capacity",
    ),
    Mutation(
        "refuses a stream without a reason",
        (
            Edit(
                "follow.py",
                'f"max capacity reached: {self._maximum} {self._state}',
                'f"{self._maximum} {self._state}',
            ),
        ),
        STREAMS + "capacity",
    ),
    Mutation(
        "keeps a cancelled stream's slot",
        (
            Edit("service.py", CANCEL, "if not context.is_active():"),
            Edit(
                "gate.py",
                "                context.add_callback(slot.release)\n",
                "                pass\n",
            ),
        ),
        STREAMS + "cancel",
    ),
    Mutation(
        "does not set the keepalive ping timeout",
        (
            Edit(
                "server.py",
                '        ("grpc.http2.ping_timeout_ms", milliseconds(settings.keepalive_timeout)),\n',
                "",
            ),
        ),
        STREAMS + "slots",
    ),
    # Memory.
    Mutation(
        "keeps all sent chunks of each stream in memory",
        (
            Edit(
                "follow.py",
                FOLLOW_CALL,
                "                chunk = reader.read(granted_bytes)\n"
                '                sent = reader.__dict__.setdefault("sent", [])\n'
                "                sent.append(bytes(chunk.data))\n"
                "                yield chunk\n",
            ),
        ),
        STREAMS + "stalled",
    ),
    Mutation(
        "does not free the memory of dropped output",
        (Edit("log.py", "        del self._segments[:count]\n", ""),),
        STREAMS + "retention",
    ),
    Mutation(
        "does not report missed bytes",
        (
            Edit(
                "log.py",
                "segment.memory[position : position + length], start - offset)",
                "segment.memory[position : position + length], 0)",
            ),
        ),
        STREAMS + "retention",
    ),
    # Leaks.
    Mutation(
        "leaks a descriptor for each job",
        (
            Edit(
                "spawn.py",
                "        finally:\n            os.close(self.pidfd)\n",
                "        finally:\n            pass\n",
            ),
        ),
        STREAMS + "soak",
    ),
    Mutation(
        "leaks 16 KiB for each stream",
        (
            Edit(
                "service.py",
                "        reader = _reader(log, request)\n",
                "        reader = _reader(log, request)\n"
                '        self.__dict__.setdefault("_readers", []).append((reader, bytearray(16384)))\n',
            ),
        ),
        STREAMS + "soak",
    ),
    Mutation(
        "leaks a thread for each stream",
        (
            Edit(
                "service.py",
                CANCEL,
                "if not context.add_callback(\n            lambda: (\n                reader.cancel(),\n"
                '                (lib := __import__("threading")).Thread(\n'
                "                    target=lib.Event().wait, daemon=True\n                ).start(),\n"
                "            )\n        ):",
            ),
        ),
        STREAMS + "soak",
    ),
)
