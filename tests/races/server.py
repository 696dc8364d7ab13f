"""The classes that the detector watches in a running server, for `races server`."""

from harness.races.instrumentation import Watch
from worker_service.deny import DenyList
from worker_service.follow import Admission, ByteBudget, Slot
from worker_service.job import Job
from worker_service.log import LogReader, OutputLog
from worker_service.reactor import Reactor, Timer
from worker_service.timers import Timers
from worker_service.worker import Worker

WATCH = Watch(
    (
        Admission,
        ByteBudget,
        DenyList,
        Slot,
        Job,
        LogReader,
        OutputLog,
        Reactor,
        Timer,
        Timers,
        Worker,
    ),
    atomic={
        "Job._status": "one reference to a frozen object, written by the reactor's thread only; a "
        "reader gets the one before or the one after, both correct",
    },
)
