"""Small programs that jobs run on the server's machine: python3's standard library, nothing else.

They travel as an argument of the job's command, so nothing has to be installed or copied there.
"""

from importlib import resources


def payload(name: str, *arguments: str) -> tuple[str, list[str]]:
    """Return command and arguments of a job that runs a program of this folder."""
    source = (resources.files(__name__) / f"{name}.py").read_text(encoding="utf-8")
    # -I -S: nothing of the machine's own Python set-up, and a faster start.
    return "python3", ["-I", "-S", "-c", source, *arguments]
