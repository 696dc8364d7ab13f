"""Races planted in the courier; a part of `planted.PLANTED`."""

from typing import Final

from harness.races.planting import planted_race

COURIER: Final = "worker_service/courier.py"
DETECTOR, DFS, PCT = "detector", "dfs", "pct"

COURIER_RACES = (
    planted_race(
        "a thread takes its reader while a message is on its way", "courier.cancel", COURIER, """\
-            return self._owner is _Owner.THREAD
+            return True
""",
        (DFS, PCT),
    ),
    planted_race(
        "a reader changes its owner without the lock", "courier.follow", COURIER, """\
     def wake(self) -> None:
         \"""See `LogReader.wake`. If the courier has the reader, it looks for more by itself.\"""
-        with self._turn:
+        if self:
""",
        (DETECTOR,),
    ),
)  # fmt: skip
