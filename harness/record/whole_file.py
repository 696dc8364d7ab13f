"""Writes files that are complete or absent: a reader never sees half of one."""

from pathlib import Path


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file beside its place, then rename it into it. Text is UTF-8.

    Raises:
        OSError: the directory cannot be written to.
    """
    half = path.with_name(f"{path.name}.half")
    half.write_bytes(data.encode() if isinstance(data, str) else data)
    half.rename(path)
