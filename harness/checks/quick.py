"""The quick checks: each takes less than 2 s on two cores, on a host without cgroup v2.

They are what is run often: by the integration tests, and against each mutant of the code.
"""

from typing import Final

# With the seconds that each took on two cores.
QUICK: Final = (
    "identity.certificate-rules",  # 1.7
    "identity.certificates",  # 1.8
    "identity.denied",  # 1.8
    "identity.openssl",  # 1.1
    "identity.roles",  # 0.2
    "identity.rotation",  # 1.6
    "identity.strangers",  # 0.5
    "identity.versions",  # 0.3
    "lifecycle.background",  # 0.1
    "lifecycle.bad-commands",  # 1.0
    "lifecycle.concurrent-stops",  # 1.6
    "lifecycle.ended-descriptors",  # 1.4
    "lifecycle.escalates",  # 1.5
    "lifecycle.exit-codes",  # 0.8
    "lifecycle.ids",  # 0.8
    "lifecycle.inheritance",  # 0.7
    "lifecycle.last-words",  # 0.3
    "lifecycle.literal",  # 0.0
    "lifecycle.pages",  # 1.5
    "lifecycle.record",  # 0.1
    "lifecycle.signals",  # 0.2
    "lifecycle.stop-race",  # 1.3
    "lifecycle.stop-tree",  # 1.2
    "lifecycle.stop-twice",  # 0.0
    "lifecycle.stopped-job",  # 0.1
    "lifecycle.surroundings",  # 0.1
    "lifecycle.times",  # 1.1
    "lifecycle.tree-escalates",  # 1.2
    "lifecycle.tree-grace",  # 1.3
    "streams.after-end",  # 0.4
    "streams.cancel",  # 1.3
    "streams.capacity",  # 0.6
    "streams.end",  # 0.6
    "streams.late-joiner",  # 0.3
    "streams.order",  # 0.0
    "streams.resume",  # 0.4
    "streams.tails",  # 0.1
    "streams.two-jobs",  # 0.5
    "streams.writes",  # 1.5
)
