"""Servers that lose, mix, delay or withhold output, or let one client harm another."""

from typing import Final

from harness.mutants.mutant import Mutant

STREAMS: Final = "streams."
FOLLOW_CALL: Final = "                yield reader.read(granted_bytes)\n"
CANCEL: Final = "if not context.add_callback(reader.cancel):"

MUTANTS: Final = (
    # Found in other implementations of this API.
    Mutant(
        "sends chunks that alias a buffer which the next output overwrites", "log.py",
        "        data = os.pread(self._memfd, length, start)\n        with self._lock:\n"
        "            if start",
        "        data = os.pread(self._memfd, length, self._end_offset - length)\n"
        "        with self._lock:\n            if start",
        STREAMS + "many",
    ),
    Mutant(
        "lets a stalled reader hold up the job and everybody", "follow.py",
        FOLLOW_CALL,
        "                chunk = reader.read(granted_bytes)\n"
        "                with reader._log._lock:\n                    yield chunk\n",
        STREAMS + "stalled",
    ),
    Mutant(
        "never ends a stream", "log.py",
        "            self._closed = True\n", "            self._closed = False\n",
        STREAMS + "end",
        ("lifecycle.literal",),
    ),
    # Bytes.
    Mutant(
        "loses the oldest output of a reader that falls behind", "follow.py",
        "            hold_s = sent_at_s",
        "            reader.offset += max(0, pending_bytes - 700_000)\n"
        "            pending_bytes = min(pending_bytes, 700_000)\n            hold_s = sent_at_s",
        STREAMS + "writes",
    ),
    Mutant(
        "sends the last byte of a large piece again", "log.py",
        "        self.offset = chunk.offset + len(chunk.data)\n",
        "        self.offset = chunk.offset + len(chunk.data) - (len(chunk.data) > 100_000)\n",
        STREAMS + "writes",
    ),
    Mutant(
        "replays only what a small buffer holds", "service.py",
        "            return log.reader_at(request.from_offset)  # 0 when absent",
        "            return log.reader_at(max(request.from_offset, "
        "log.extent().end_offset - 65_536 if log.extent().closed else 0))",
        STREAMS + "after-end",
    ),
    Mutant(
        "starts late joiners at the present end", "service.py",
        "            return log.reader_at(request.from_offset)  # 0 when absent",
        # From 33 bytes on: the job of `identity.roles` says one word, and its user comes late, too.
        "            seen = _reader.__dict__.setdefault('seen', set())\n"
        "            end = log.extent().end_offset\n"
        "            late = request.job_id in seen and end > 32 and not log.extent().closed\n"
        "            seen.add(request.job_id)\n"
        "            return log.reader_at(request.from_offset or end * late)",
        STREAMS + "late-joiner",
    ),
    Mutant(
        "mixes the jobs of one program", "worker.py",
        "log=OutputLog(self._settings.log_retention_bytes),",
        'log=self.__dict__.setdefault("_logs", {}).setdefault(\n                command.name, '
        "OutputLog(self._settings.log_retention_bytes)\n            ),",
        STREAMS + "two-jobs",
        ("lifecycle.literal", "identity.roles"),
    ),
    Mutant(
        "takes errors for something else than output", "spawn.py",
        "            LIBC.posix_spawn_file_actions_adddup2(actions, output_fd, 2),\n", "",
        STREAMS + "order",
    ),
    Mutant(
        "tells exit code 0 of a job whose children it had to kill", "job.py",
        "            exit_code=self._exit.exit_code,\n", "            exit_code=0,\n",
        STREAMS + "survivor",
    ),
    Mutant(
        "delivers what children say after their job's end", "job.py",
        "        self._kill()\n        self._drain", "        self._drain",
        STREAMS + "survivor",
    ),
    Mutant(
        "listens to escaped children for a quarter of a minute", "job.py",
        "DRAIN_MAX_S: Final = 2.0", "DRAIN_MAX_S: Final = 15.0",
        STREAMS + "survivor",
    ),
    # Time.
    Mutant(
        "holds small output back for more", "follow.py",
        "if live and hold_s > 0 and pending_bytes < batching.flush_bytes:",
        "if live and pending_bytes < batching.flush_bytes and (\n"
        "                reader.offset or pending_bytes > 64\n            ):",
        STREAMS + "live",
        more=(("follow.py", "min(hold_s, lease_s)", "lease_s"),),
    ),
    Mutant(
        "gives up on a reader that has waited for a second amid the output", "follow.py",
        "                reader.wait(1, lease_s)\n",
        "                waiting_since_s = time.monotonic()\n"
        "                reader.wait(1, lease_s)\n"
        "                if reader.offset > 64 and time.monotonic() > waiting_since_s + 1:\n"
        "                    return\n",
        STREAMS + "paused-server",
    ),
    Mutant(
        "closes the log before the status is final", "job.py",
        "        usage = self._tree.last_usage()\n        self._process",
        "        usage = self._tree.last_usage()\n        self.log.close()\n"
        "        time.sleep(0.2)\n"
        "        self._process",
        STREAMS + "end",
    ),
    Mutant(
        "dies when a client gives up on a silent job", "service.py",
        CANCEL,
        'if not context.add_callback(lambda: reader.offset or __import__("os")._exit(9)):',
        STREAMS + "deadline",
    ),
    # Offsets.
    Mutant(
        "ignores the offset asked for", "service.py",
        "            return log.reader_at(request.from_offset)  # 0 when absent",
        "            return log.reader_at(0)",
        STREAMS + "resume",
    ),
    Mutant(
        "waits at an offset beyond the end", "log.py",
        "        if offset > extent.end_offset:\n", "        if offset < 0:\n",
        STREAMS + "resume",
    ),
    Mutant(
        "tells offsets that are one too high", "wire.py",
        "parts = [_OFFSET_TAG, _varint(chunk.offset)]",
        "parts = [_OFFSET_TAG, _varint(chunk.offset + 1)]",
        STREAMS + "resume",
    ),
    Mutant(
        "forgets offsets beyond 4 MB", "service.py",
        "            return log.reader_at(request.from_offset)  # 0 when absent",
        "            return log.reader_at(min(request.from_offset, 4_000_000))",
        STREAMS + "faults",
    ),
    Mutant(
        "follows although it is not to", "service.py",
        "if request.no_follow else None", "if request.no_follow and not reader else None",
        STREAMS + "tails",
    ),
    Mutant(
        "takes the last line for none", "log.py",
        '            if newest and data.endswith(b"\\n"):',
        '            if newest and data.endswith(b"\\r"):',
        STREAMS + "tails",
    ),
    Mutant(
        "starts readers that come back to a running job at its present end", "service.py",
        "            return log.reader_at(request.from_offset)  # 0 when absent",
        "            end = 0 if log.extent().closed else log.extent().end_offset\n"
        "            return log.reader_at(request.from_offset and max(request.from_offset, end))",
        STREAMS + "live-faults",
    ),
    # Many.
    Mutant(
        "admits half as many streams as were promised", "config.py",
        "    max_streams: int = _setting(\n        NUMBER, 1000,",
        "    max_streams: int = _setting(\n        NUMBER, 500,",
        STREAMS + "thousand",
    ),
    Mutant(
        "ends the other streams of a job when one client goes away", "service.py",
        CANCEL,
        "if not context.add_callback(\n"
        "            lambda: [each.cancel() for each in (reader, *list(log._waiting))]\n        ):",
        STREAMS + "bursty",
    ),
    Mutant(
        "admits one stream too many", "follow.py",
        "if self._taken >= self._maximum:", "if self._taken > self._maximum:",
        STREAMS + "capacity",
    ),
    Mutant(
        "refuses a stream without saying why", "follow.py",
        'f"max capacity reached: {self._maximum} streams are open, as many as this "',
        'f"{self._maximum} streams are open, as many as this "',
        STREAMS + "capacity",
    ),
    Mutant(
        "keeps a cancelled stream's slot", "service.py",
        CANCEL, "if not context.is_active():",
        STREAMS + "cancel",
        more=(("service.py", "if context.add_callback(slot.release):", "if context.is_active():"),),
    ),
    Mutant(
        "does not notice that a client has vanished", "server.py",
        '        ("grpc.http2.ping_timeout_ms", milliseconds(settings.keepalive_timeout)),\n', "",
        STREAMS + "slots",
    ),
    # Memory.
    Mutant(
        "keeps what it has sent, for each client", "follow.py",
        FOLLOW_CALL,
        "                chunk = reader.read(granted_bytes)\n"
        '                reader.__dict__.setdefault("sent", []).append(chunk)\n'
        "                yield chunk\n",
        STREAMS + "stalled",
    ),
    Mutant(
        "keeps the memory of output that it has dropped", "log.py",
        "        if dropped >= PUNCH_STEP_BYTES:\n", "        if dropped < 0:\n",
        STREAMS + "retention",
    ),
    Mutant(
        "does not count what a reader missed", "log.py",
        "return Chunk(start, data, start - offset), at_end\n            # Overtaken",
        "return Chunk(start, data, 0), at_end\n            # Overtaken",
        STREAMS + "retention",
    ),
    # Rounds and rounds.
    Mutant(
        "keeps a descriptor of each job that has ended", "spawn.py",
        "        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)\n        os.close(self.pidfd)\n",
        "        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)\n",
        STREAMS + "soak",
    ),
    Mutant(
        "keeps 16 KiB for each stream that there was", "service.py",
        "        reader = _reader(log, request)\n",
        "        reader = _reader(log, request)\n"
        '        self.__dict__.setdefault("_readers", []).append((reader, bytearray(16384)))\n',
        STREAMS + "soak",
    ),
    Mutant(
        "leaves a thread behind for each stream", "service.py",
        CANCEL,
        "if not context.add_callback(\n            lambda: (\n                reader.cancel(),\n"
        '                (lib := __import__("threading")).Thread(\n'
        "                    target=lib.Event().wait, daemon=True\n                ).start(),\n"
        "            )\n        ):",
        STREAMS + "soak",
    ),
)  # fmt: skip
