"""All mutants. A check without one fails the build; so does a mutant that no check catches."""

from typing import Final

from harness.mutants import abuse, identity, lifecycle, limits, streams
from harness.mutants.mutant import Mutant

LOCAL: Final[tuple[Mutant, ...]] = (
    *identity.MUTANTS,
    *lifecycle.MUTANTS,
    *streams.MUTANTS,
    *abuse.MUTANTS,
)
# Their checks need a cgroup v2, so they are run in a guest.
GUEST: Final[tuple[Mutant, ...]] = limits.MUTANTS
ALL: Final[tuple[Mutant, ...]] = (*LOCAL, *GUEST)
