"""Servers that lose, mix, delay or withhold output, or let one client harm another."""

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
                "        data = os.pread(self._memfd, length, start)\n        with self._lock:\n"
                "            if start",
                "        data = os.pread(self._memfd, length, self._end_offset - length)\n"
                "        with self._lock:\n            if start",
            ),
        ),
        STREAMS + "many",
    ),
    Mutation(
        "lets a stalled reader hold up the job and everybody",
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
        ("lifecycle.literal",),
    ),
    # Bytes.
    Mutation(
        "loses the oldest output of a reader that falls behind",
        (
            Edit(
                "follow.py",
                "            hold_s = sent_at_s",
                "            reader.offset += max(0, pending_bytes - 700_000)\n"
                "            pending_bytes = min(pending_bytes, 700_000)\n            hold_s = sent_at_s",
            ),
        ),
        STREAMS + "writes",
    ),
    Mutation(
        "sends the last byte of a large piece again",
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
        "replays only what a small buffer holds",
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
        "starts late joiners at the present end",
        (
            Edit(
                "service.py",
                "            return log.reader_at(request.from_offset)  # 0 when absent",
                # From 33 bytes on: the job of `identity.roles` says one word, and its user comes late, too.
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
        "mixes the jobs of one program",
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
        "takes errors for something else than output",
        (
            Edit(
                "spawn.py",
                "            LIBC.posix_spawn_file_actions_adddup2(actions, output_fd, 2),\n",
                "",
            ),
        ),
        STREAMS + "order",
    ),
    Mutation(
        "tells exit code 0 of a job whose children it had to kill",
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
        "delivers what children say after their job's end",
        (Edit("job.py", "        self._kill()\n        self._drain", "        self._drain"),),
        STREAMS + "survivor",
    ),
    Mutation(
        "listens to escaped children for a quarter of a minute",
        (Edit("job.py", "DRAIN_MAX_S: Final = 2.0", "DRAIN_MAX_S: Final = 15.0"),),
        STREAMS + "survivor",
    ),
    # Time.
    Mutation(
        "holds small output back for more",
        (
            Edit(
                "follow.py",
                "if live and hold_s > 0 and pending_bytes < batching.flush_bytes:",
                "if live and pending_bytes < batching.flush_bytes and (\n"
                "                reader.offset or pending_bytes > 64\n            ):",
            ),
            Edit("follow.py", "min(hold_s, lease_s)", "lease_s"),
        ),
        STREAMS + "live",
    ),
    Mutation(
        "gives up on a reader that has waited for a second amid the output",
        (
            Edit(
                "follow.py",
                "                reader.wait(1, lease_s)\n",
                "                waiting_since_s = time.monotonic()\n"
                "                reader.wait(1, lease_s)\n"
                "                if reader.offset > 64 and time.monotonic() > waiting_since_s + 1:\n"
                "                    return\n",
            ),
        ),
        STREAMS + "paused-server",
    ),
    Mutation(
        "closes the log before the status is final",
        (
            Edit(
                "job.py",
                "        usage = self._tree.last_usage()\n        self._process",
                "        usage = self._tree.last_usage()\n        self.log.close()\n"
                "        time.sleep(0.2)\n"
                "        self._process",
            ),
        ),
        STREAMS + "end",
    ),
    Mutation(
        "dies when a client gives up on a silent job",
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
        "ignores the offset asked for",
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
        "waits at an offset beyond the end",
        (Edit("log.py", "        if offset > extent.end_offset:\n", "        if offset < 0:\n"),),
        STREAMS + "resume",
    ),
    Mutation(
        "tells offsets that are one too high",
        (
            Edit(
                "wire.py",
                "parts = [_OFFSET_TAG, _varint(chunk.offset)]",
                "parts = [_OFFSET_TAG, _varint(chunk.offset + 1)]",
            ),
        ),
        STREAMS + "resume",
    ),
    Mutation(
        "forgets offsets beyond 4 MB",
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
        "follows although it is not to",
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
        "takes the last line for none",
        (
            Edit(
                "log.py",
                '            if newest and data.endswith(b"\\n"):',
                '            if newest and data.endswith(b"\\r"):',
            ),
        ),
        STREAMS + "tails",
    ),
    Mutation(
        "starts readers that come back to a running job at its present end",
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
    # Many.
    Mutation(
        "admits half as many streams as were promised",
        (
            Edit(
                "config.py",
                "    max_streams: int = _setting(\n        NUMBER, 1000,",
                "    max_streams: int = _setting(\n        NUMBER, 500,",
            ),
        ),
        STREAMS + "thousand",
    ),
    Mutation(
        "ends the other streams of a job when one client goes away",
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
        "refuses a stream without saying why",
        (
            Edit(
                "follow.py",
                'f"max capacity reached: {self._maximum} streams are open, as many as this "',
                'f"{self._maximum} streams are open, as many as this "',
            ),
        ),
        STREAMS + "capacity",
    ),
    Mutation(
        "keeps a cancelled stream's slot",
        (
            Edit("service.py", CANCEL, "if not context.is_active():"),
            Edit("service.py", "if context.add_callback(slot.release):", "if context.is_active():"),
        ),
        STREAMS + "cancel",
    ),
    Mutation(
        "does not notice that a client has vanished",
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
        "keeps what it has sent, for each client",
        (
            Edit(
                "follow.py",
                FOLLOW_CALL,
                "                chunk = reader.read(granted_bytes)\n"
                '                reader.__dict__.setdefault("sent", []).append(chunk)\n'
                "                yield chunk\n",
            ),
        ),
        STREAMS + "stalled",
    ),
    Mutation(
        "keeps the memory of output that it has dropped",
        (Edit("log.py", "        if dropped >= PUNCH_STEP_BYTES:\n", "        if dropped < 0:\n"),),
        STREAMS + "retention",
    ),
    Mutation(
        "does not count what a reader missed",
        (
            Edit(
                "log.py",
                "return Chunk(start, data, start - offset), at_end\n            # Overtaken",
                "return Chunk(start, data, 0), at_end\n            # Overtaken",
            ),
        ),
        STREAMS + "retention",
    ),
    # Rounds and rounds.
    Mutation(
        "keeps a descriptor of each job that has ended",
        (
            Edit(
                "spawn.py",
                "        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)\n        os.close(self.pidfd)\n",
                "        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)\n",
            ),
        ),
        STREAMS + "soak",
    ),
    Mutation(
        "keeps 16 KiB for each stream that there was",
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
        "leaves a thread behind for each stream",
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
