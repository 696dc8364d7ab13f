"""Races planted in the service's real classes, and the techniques that must find each of them.

A new race is one row: the scenario that must fail, the file below the source tree, and the change
as a diff's lines: removed, added, and as much context as makes the place unique.
"""

from typing import Final

from harness.races.planting import planted_race
from tests.races.planted_courier import COURIER_RACES

FOLLOW: Final = "worker_service/follow.py"
LOG: Final = "worker_service/log.py"
JOB: Final = "worker_service/job.py"
WORKER: Final = "worker_service/worker.py"
WATCHED: Final = "worker_service/watched_files.py"
REACTOR: Final = "worker_service/reactor.py"

DETECTOR, DFS, RANDOM, PCT, HISTORY = "detector", "dfs", "random", "pct", "linearizability"

PLANTED = (
    # Slots and the budget.
    planted_race(
        "slots are counted outside the lock", "follow.admission", FOLLOW, """\
-        with self._lock:
+        if True:
             if self._taken >= self._maximum:
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "a slot is found free and taken in two critical sections", "follow.slots", FOLLOW, """\
                 )
+        with self._lock:
             self._taken += 1
""",
        (DFS, RANDOM),
    ),
    planted_race(
        "a slot's release is checked before the lock", "follow.release", FOLLOW, """\
-        with self._lock:
-            if not slot.released:
+        if not slot.released:
+            with self._lock:
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "budget bytes are released without the lock", "follow.budget", FOLLOW, """\
-        with self._lock:
-            self._held_bytes -= granted_bytes
+        self._held_bytes -= granted_bytes
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "the remaining budget is read before the lock", "follow.budget", FOLLOW, """\
+        share = self._limit_bytes
+        left = self._limit_bytes - self._held_bytes
         with self._lock:
-            share = self._limit_bytes // max(1, self._streams)
-            left = self._limit_bytes - self._held_bytes
             granted = min(wanted_bytes, max(MESSAGE_MIN_BYTES, min(share, left)))
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "a cancelled stream keeps its budget", "follow.stream", FOLLOW, """\
-            try:
-                yield reader.read(granted_bytes)
-            finally:
+            yield reader.read(granted_bytes)
+            if not reader.cancelled:
""",
        (DFS, PCT),
    ),
    # The log.
    planted_race(
        "the log's end is read before the reader is queued", "log.follow", LOG, """\
-        with self._lock:
-            if self._closed or self._end_offset >= wanted_offset:
-                return False
+        if self._closed or self._end_offset >= wanted_offset:
+            return False
+        with self._lock:
""",
        (DETECTOR, DFS, PCT),
    ),
    planted_race(
        "a cancel is checked before the reader is queued", "log.cancel", LOG, """\
-            if not self._cancelled.is_set():
-                self._wakeup.wait(timeout_s)
+            self._wakeup.wait(timeout_s)
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "a close wakes only one reader", "log.two-readers", LOG, """\
-            woken = list(self._waiting)
+            woken = list(self._waiting)[:1]
""",
        (DFS, PCT),
    ),
    planted_race(
        "a reader's wake-up is cleared after it was queued", "log.follow", LOG, """\
-            reader.prepare_wait(wanted_offset)
@@
-            return True
+        reader.prepare_wait(wanted_offset)
+        return True
""",
        (DFS, PCT),
    ),
    planted_race(
        "the end offset is published before the bytes", "log.segments", LOG, """\
-        count = os.readv(pipe_fd, (self._unused_memory()[:max_bytes],))
+        memory = self._unused_memory()[:max_bytes]
+        with self._lock:
+            self._end_offset += 1
+        count = os.readv(pipe_fd, (memory,))
+        with self._lock:
+            self._end_offset -= 1
         with self._lock:
             self._end_offset += count
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "the extent is read without the lock", "log.order", LOG, """\
-        with self._lock:
+        if self:
             return Extent(self._first_offset, self._end_offset, self._closed)
""",
        (DETECTOR, DFS, PCT, HISTORY),
    ),
    planted_race(
        "a segment is dropped before the first offset is published", "log.drop", LOG, """\
             dropped = self._segments.pop(0)
+        with self._lock:
             end_offset = self._segments[0].start if self._segments else self._end_offset
""",
        (DFS, PCT),
    ),
    planted_race(
        "a reader looks for its segment after the lock", "log.drop", LOG, """\
                 return Chunk(start, memoryview(b""), start - offset)
+        if self:
             segment = self._segment_at(start)
""",
        (DETECTOR, DFS, PCT),
    ),
    planted_race(
        "a retention is applied after the end is published", "log.order", LOG, """\
             self._end_offset += count
+        with self._lock:
             dropped = self._take_dropped()
""",
        (DFS, PCT, HISTORY),
    ),
    planted_race(
        "a closed log is trimmed without the lock", "log.follow", LOG, """\
             self._failure = failure
-            self._trim()
             woken = list(self._waiting)
             self._waiting.clear()
+        self._trim()
""",
        (DETECTOR,),
    ),
    planted_race(
        "a search for lines looks for its segment after the lock", "log.tail", LOG, """\
                 if position <= self._first_offset:
                     return self._first_offset
+            if self:
                 segment = self._segment_at(position - 1)
""",
        (DETECTOR,),
    ),
    planted_race(
        "counted newlines are kept without the lock", "log.tails", LOG, """\
-                    with self._lock:
-                        segment.newlines = newlines
+                    segment.newlines = newlines
""",
        (DETECTOR,),
    ),
    planted_race(
        "two locks are acquired in two orders", "log.cancel-close", LOG, """\
             self._waiting.clear()
-        for reader in woken:
-            reader.wake()
+            for reader in woken:
+                reader.wake()

@@
         self._cancelled = threading.Event()
+        self._own = threading.Lock()
         self.offset = offset
@@
-        self._cancelled.set()
-        self._wakeup.set()
+        with self._own:
+            self._cancelled.set()
+            self._log._forget(self)
+            self._wakeup.set()

@@
     def wake(self) -> None:
+        with self._own:
+            pass
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "missed bytes are not reported", "log.retention", LOG, """\
-            return Chunk(start, segment.memory[position : position + length], start - offset)
+            return Chunk(start, segment.memory[position : position + length], 0)
""",
        (DETECTOR, DFS, PCT),
    ),
    planted_race(
        "a cancel wakes no reader", "follow.silent", LOG, """\
         self._cancelled.set()
-        self._wakeup.set()
""",
        (DFS, PCT),
    ),
    *COURIER_RACES,
    # Jobs.
    planted_race(
        "a job's exit is checked only at the end of its output", "job.start-stop", JOB, """\
         self._tree.watch(self._scheduler, self._finish_if_complete)
-        self._finish_if_complete()
""",
        (DFS, RANDOM, PCT),
    ),
    planted_race(
        "a stop does not wait for the job's end", "job.two-stops", WORKER, """\
-        ended = job.wait_ended(grace_s + KILL_MAX_S + DRAIN_MAX_S, given_up)
+        ended = True
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "a job is EXITED before its exit status is known", "job.history", JOB, """\
         self._exited_at_s = time.time()
+        self._status = replace(self._status, state=State.EXITED)
         self._scheduler.unwatch(self._process.pidfd)
""",
        (DFS, PCT, HISTORY),
    ),
    planted_race(
        "a job's end is published before its output is drained", "job.stream-exit", JOB, """\
-        if self._exit is not None and not self._output_open and self._tree.is_gone():
+        if self._exit is not None and self._tree.is_gone():
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "a process is reaped twice", "job.query-exit", JOB, """\
         self._tree.watch(self._scheduler, self._finish_if_complete)
         self._finish_if_complete()
+        self._finish_if_complete()

     def _on_drain_timeout(self) -> None:
@@

     def _finish(self) -> None:
-        if self._exit is None or self._status.ended_at_s is not None:
+        if self._exit is None:
             return
         self._cancel(self._drain_timer)
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "the log is closed before the status is final", "job.stream-exit", JOB, """\
+        self.log.close(self._output_failure)
         usage = self._attempt(self._tree.last_usage)
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "a stop changes the job outside the reactor's thread", "job.stop-exit", WORKER, """\
-        self._reactor.call_soon(lambda: job.request_stop(grace_s))
+        job.request_stop(grace_s)
""",
        (DETECTOR, DFS, PCT),
    ),
    # The job table and the shutdown.
    planted_race(
        "a start in progress is not counted", "worker.close-start", WORKER, """\
-            self._starting += 1
+            self._starting += 0
@@
-                self._starting -= 1
""",
        (DETECTOR, DFS, PCT),
    ),
    planted_race(
        "a close checks for starts once instead of in a loop", "worker.close-starts", WORKER, """\
-            self._none_starting.wait_for(lambda: self._starting == 0, timeout=KILL_MAX_S)
+            self._starting and self._none_starting.wait(timeout=KILL_MAX_S)
""",
        (DFS, PCT),
    ),
    planted_race(
        "the last start does not notify the close", "worker.close-start", WORKER, """\
-                self._none_starting.notify_all()
""",
        (DETECTOR, DFS, PCT),
    ),
    planted_race(
        "the job table is written without its lock", "worker.list", WORKER, """\
-        with self._lock:  # before it can end and expire
-            job.number = next(self._numbers)
-            self._jobs[job_id] = job
+        job.number = next(self._numbers)
+        self._jobs[job_id] = job
""",
        (DETECTOR,),
    ),
    planted_race(
        "the closing flag is read before the lock", "worker.close-start", WORKER, """\
-        with self._lock:
-            if self._closing:
-                raise ShuttingDownError("the server is shutting down and starts no more jobs")
+        if self._closing:
+            raise ShuttingDownError("the server is shutting down and starts no more jobs")
+        with self._lock:
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "a job cannot be queried while another starts", "worker.table", WORKER, """\
-            job = self._jobs.get(canonical)
+            job = self._jobs.get(canonical) if not self._starting else None
""",
        (DFS, PCT, HISTORY),
    ),
    planted_race(
        "each of two closes leaves the work to the other", "worker.closes", WORKER, """\
-        if already_closing:
+        if self._closing:
""",
        (DFS, RANDOM, PCT),
    ),
    # The shutdown against other calls.
    planted_race(
        "a close stops the jobs outside the reactor's thread", "close.stop", WORKER, """\
         if already_closing:
             return
+        for job in jobs:
+            job.request_stop(grace_s)
""",
        (DETECTOR, DFS),
    ),
    planted_race(
        "a close forgets the jobs that it has ended", "close.query", WORKER, """\
                 logger.error("job %s did not end at shutdown", job.status().job_id)
+        with self._lock:
+            self._jobs.clear()
         self._reactor.stop(timeout_s=KILL_MAX_S)
""",
        (DETECTOR, DFS, PCT),
    ),
    planted_race(
        "a close ends the reactor before its jobs", "close.follow", WORKER, """\
         for job in jobs:
-            if not job.wait_ended(max(0.0, deadline_s - time.monotonic())):
+            if not job.wait_ended(0) and time.monotonic() > deadline_s:
                 logger.error("job %s did not end at shutdown", job.status().job_id)
""",
        (DFS, PCT),
    ),
    planted_race(
        "a close gives jobs no grace period", "close.exit", WORKER, """\
         if already_closing:
             return
+        grace_s = 0
""",
        (DFS, PCT),
    ),
    # The deny list.
    planted_race(
        "a changed deny list counts as read before it is read", "deny.change", WATCHED, """\
-        with self._lock:
-            stamp = self._stamp_now()
-            if stamp != self._stamp or not self._settled or self._refused:
-                self._reload(stamp)
-            return self._value
+        stamp = self._stamp_now()
+        if stamp != self._stamp or not self._settled or self._refused:
+            self._stamp = stamp
+            with self._lock:
+                self._reload(stamp)
+        return self._value
""",
        (DETECTOR, DFS, PCT),
    ),
    # The reactor.
    planted_race(
        "a failing callback ends the reactor", "reactor.failure", REACTOR, """\
             logger.exception("a callback of the reactor failed")
+            raise
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "the reactor is woken before the work is queued", "reactor.order", REACTOR, """\
+        os.eventfd_write(self._wakeup_fd, 1)
         self._soon.append(callback)
-        os.eventfd_write(self._wakeup_fd, 1)

""",
        (DFS, PCT),
    ),
    planted_race(
        "work queued while other work runs is dropped", "reactor.call-soon", REACTOR, """\
-            for _ in range(len(self._soon)):
-                self._call(self._soon.popleft())
+            for callback in list(self._soon):
+                self._call(callback)
+            self._soon.clear()
""",
        (DETECTOR, DFS, RANDOM, PCT),
    ),
    planted_race(
        "an ended reactor closes the descriptor that others write to", "reactor.stop", REACTOR, """\
-        # Open as long as any thread may submit work: after `stop` its number could be reused.
-        weakref.finalize(self, os.close, self._wakeup_fd)
@@
         self._epoll.close()
+        os.close(self._wakeup_fd)

""",
        (DFS, PCT),
    ),
)  # fmt: skip
