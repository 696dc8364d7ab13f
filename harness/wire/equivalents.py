"""The mutants that no check can catch, since the API promises nothing else: each with its reason.

A row names one mutant, or several by a glob. A test fails for a row without a mutant, and a run
reports a row whose mutant is caught.
"""

from fnmatch import fnmatchcase
from typing import Final

EQUIVALENTS: Final[dict[str, str]] = {}


def reason_for(name: str) -> str:
    """Return why no check can catch a mutant; empty: one must."""
    return next((why for glob, why in EQUIVALENTS.items() if fnmatchcase(name, glob)), "")
