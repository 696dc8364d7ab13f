"""Small programs that jobs run on the server's machine, with python3's standard library alone.

Each is sent as an argument of the job's command, so nothing needs to be installed or copied there.
"""

from importlib import resources


def payload(name: str, *arguments: str) -> tuple[str, list[str]]:
    """Return the command and arguments of a job that runs a program of this package."""
    source = (resources.files(__name__) / f"{name}.py").read_text(encoding="utf-8")
    # -I -S: independent of the machine's Python configuration, and a faster start.
    return "python3", ["-I", "-S", "-c", source, *arguments]
