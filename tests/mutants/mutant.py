"""What a mutant is, and the tests that catch most of them."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Mutant:
    """One fault, and the test that must fail because of it."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str


LOG: Final = "tests/impl/test_log.py::"
FOLLOW: Final = "tests/impl/test_follow.py::"
JOB: Final = "tests/impl/test_job.py::"
SCARCITY: Final = "tests/impl/test_scarcity.py::"
CGROUP: Final = "tests/impl/test_cgroup.py::"
SPAWN: Final = "tests/impl/test_spawn.py::"
WORKER: Final = "tests/impl/test_worker.py::"
POOL: Final = "tests/impl/test_pool.py::"
DENY: Final = "tests/impl/test_deny.py::"
SMALL: Final = "tests/impl/test_small_parts.py::"
SERVICE: Final = "tests/integration/test_service.py::"
STREAMS: Final = "tests/integration/test_streams.py::"
IDENTITIES: Final = "tests/integration/test_identities.py::"
SHUTDOWN: Final = "tests/integration/test_shutdown.py::"
AUDIT: Final = "tests/integration/test_audit.py::"
STALLED: Final = AUDIT + "test_a_client_that_does_not_read_is_cut_off_when_it_may_no_longer_call"
INTEROP: Final = "tests/integration/test_interop.py::"
DESERVES: Final = IDENTITIES + "test_a_client_certificate_gets_the_status_that_it_deserves"
INHERITS: Final = SPAWN + "test_a_child_inherits_nothing_but_its_three_descriptors"
ADMISSION: Final = FOLLOW + "test_admission_refuses_the_next_one_at_once_and_frees_a_slot_once"
