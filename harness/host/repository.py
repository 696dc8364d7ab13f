"""The checkout that this harness runs from: its root and its commit."""

from pathlib import Path
from typing import Final

from harness.host.processes import run
from harness.record.verdict import BrokenError

ROOT: Final = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Return the commit's short hash, followed by " with changes" if so; or "unknown"."""
    try:
        words = ["git", "-C", str(ROOT)]
        revision = run([*words, "rev-parse", "--short", "HEAD"], 30)
        changed = run([*words, "status", "--porcelain"], 30)
    except BrokenError:
        return "unknown"
    if revision.exit_code != 0:
        return "unknown"
    return revision.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
