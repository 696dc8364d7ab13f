"""Where this harness runs from: a checkout, its root and its commit; or an installed wheel."""

from importlib import metadata
from pathlib import Path
from typing import Final

from harness.host.processes import run
from harness.record.verdict import BrokenError

DISTRIBUTION: Final = "jobworker-harness"
ROOT: Final = Path(__file__).resolve().parents[2]
# A wheel has the generated code beside the harness; only a checkout has the folder of the .proto.
IS_CHECKOUT: Final = (ROOT / "proto" / "jobworker").is_dir()
_PROGRAMS: Final = {"harness": "jobworker-judge", "loadtests": "jobworker-load"}


def require_checkout(what: str) -> None:
    """Reject what an installed harness cannot do.

    Args:
        what: subject of the sentence "... needs a checkout of the project".

    Raises:
        BrokenError: this is an installed wheel.
    """
    if not IS_CHECKOUT:
        raise BrokenError(
            f"{what} needs a checkout of the project; this is an installed {version()}"
        )


def program(package: str = "harness") -> tuple[str, ...]:
    """Return the words that run the command line of `harness` or `loadtests`."""
    return ("python", "-m", package) if IS_CHECKOUT else (_PROGRAMS[package],)


def version() -> str:
    """Return the installed distribution's name and version."""
    try:
        return f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    except metadata.PackageNotFoundError:
        return DISTRIBUTION


def commit() -> str:
    """Return the commit's short hash, followed by " with changes" if so; or "unknown".

    Of an installed harness, its version.
    """
    if not IS_CHECKOUT:
        return version()
    try:
        words = ["git", "-C", str(ROOT)]
        revision = run([*words, "rev-parse", "--short", "HEAD"], 30)
        changed = run([*words, "status", "--porcelain"], 30)
    except BrokenError:
        return "unknown"
    if revision.exit_code != 0:
        return "unknown"
    return revision.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
