"""Every check, one folder an area. A new check is one entry in its area's `CHECKS`."""

from fnmatch import filter as matching
from typing import Final

from harness.checks import abuse, identity, lifecycle, limits, streams
from harness.checks.check import Check
from harness.record.terms import Terms
from harness.record.verdict import BrokenError

ALL: Final[tuple[Check, ...]] = (
    *identity.CHECKS,
    *lifecycle.CHECKS,
    *streams.CHECKS,
    *abuse.CHECKS,
    *limits.CHECKS,
)


def require_promises(terms: Terms) -> None:
    """Require that each promise of a dialect is a check's.

    Raises:
        BrokenError: one is none.
    """
    names = [check.name for check in ALL]
    for pattern in terms.promises:
        if not matching(names, pattern):
            own = ", ".join(check.name for check in ALL if check.ours)
            raise BrokenError(
                f"dialect {terms.dialect}: promises: {pattern!r} matches no check; those of this "
                f"project's own promises are: {own}"
            )
