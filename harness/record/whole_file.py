"""Writes files atomically: a reader never sees a partial file."""

from pathlib import Path


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a temporary file in the same directory, then rename it. Text is UTF-8.

    Raises:
        OSError: the directory cannot be written to.
    """
    half = path.with_name(f"{path.name}.half")
    half.write_bytes(data.encode() if isinstance(data, str) else data)
    half.rename(path)
