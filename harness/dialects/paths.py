"""Files that a dialect puts into a directory of the judge: paths below it, and links there."""

import secrets
from pathlib import Path, PurePosixPath

from harness.record.verdict import BrokenError


def below(path: str) -> str:
    """Return a path below a directory in its normal form; "" if it leaves it, or has a NUL."""
    parts = PurePosixPath(path).parts
    leaves = path.startswith("/") or ".." in parts or "\0" in path
    return "" if leaves else "/".join(parts)


def put_link(path: Path, file: str, key: str) -> None:
    """Link a file at a path, in place of an older link.

    A program that reads the file again sees when it was replaced.

    Args:
        path: of the link.
        file: that exists.
        key: of the dialect's table, for errors.

    Raises:
        BrokenError: it cannot be linked, or the path has something else than a link.
    """
    source = Path(file).absolute()
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        if path.exists() and not path.is_symlink():
            raise BrokenError(f"{key}: {path} exists; move it away, or give another path")
        source.stat()
        path.parent.mkdir(parents=True, exist_ok=True)
        new.symlink_to(source)
        new.replace(path)
    except OSError as error:
        raise BrokenError(f"{key}: {source} at {path}: {error.strerror}") from error
