"""A program's surroundings, as a dialect gives them: files below a directory, and variables."""

import secrets
from collections.abc import Mapping
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


def require_variables(environment: Mapping[str, str]) -> None:
    """Return if a program's environment can have these variables.

    Raises:
        ValueError: names the one that it cannot have.
    """
    for name, text in environment.items():
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(
                f"environment: {name!r} = {text!r}; a name must not be empty or have '=', and "
                "neither may have a NUL"
            )
