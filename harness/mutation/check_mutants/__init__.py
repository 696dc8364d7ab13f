"""All mutants. A check without one fails the build; so does a mutant that no check catches."""

from typing import Final

from harness.mutation.check_mutants import (
    abuse,
    bounds,
    cgroups,
    corners,
    faults,
    identity,
    lifecycle,
    limits,
    reports,
    streams,
)
from harness.mutation.mutation import Mutation

LOCAL: Final[tuple[Mutation, ...]] = (
    *identity.MUTANTS,
    *lifecycle.MUTANTS,
    *reports.MUTANTS,
    *streams.MUTANTS,
    *abuse.MUTANTS,
    *bounds.MUTANTS,
    *corners.MUTANTS,
)
# Their checks need a cgroup v2, so they are run in a guest.
GUEST: Final[tuple[Mutation, ...]] = (
    *limits.MUTANTS,
    *cgroups.MUTANTS,
    *bounds.GUEST_MUTANTS,
    *faults.GUEST_MUTANTS,
    *corners.GUEST_MUTANTS,
)
ALL: Final[tuple[Mutation, ...]] = (*LOCAL, *GUEST)
