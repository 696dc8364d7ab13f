"""What a job finds itself with: nothing of the server's, and exactly what it was given."""

import re
from collections.abc import Iterator
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.history import History
from harness.judge.promises import answered, assumed, equal, holds, unseen
from harness.verdict import Finding

ARGUMENT: Final = ("INVALID_ARGUMENT",)

SECRET: Final = "secret-"  # noqa: S105 - how the harness's planted secret begins
# Programs that change nothing of what they find, each telling one thing.
LOOKS: Final = {
    "descriptors": ("ls", ["-l", "/proc/self/fd"]),
    "signals": ("cat", ["/proc/self/status"]),
    "session": ("cat", ["/proc/self/stat"]),
    "oom_score_adj": ("cat", ["/proc/self/oom_score_adj"]),
    "environment": ("cat", ["/proc/self/environ"]),
}


def run_inheritance(stage: Stage) -> None:
    """Jobs that look at themselves."""
    with stage.client() as client:
        for label, (command, arguments) in LOOKS.items():
            client.output(client.must_start(command, arguments), label=label)
        if stage.server.pid is not None and stage.target_has(Need.HOST):
            script = f"grep -c {SECRET} /proc/{stage.server.pid}/environ || true"
            stage.fact("secrets of the server", int(stage.host.run(script).stdout.strip() or 0))


def judge_inheritance(history: History) -> Iterator[Finding]:
    """Three descriptors, no signal blocked or ignored, its own session, no secret."""
    # One more is the look itself, at the folder of descriptors.
    links = re.findall(r"(\d+) -> (\S+)", history.stream("descriptors").text)
    others = [link for link in links if int(link[0]) > 2 and not link[1].startswith("/proc/")]  # noqa: PLR2004
    yield equal("a job has descriptors 0, 1 and 2 and no other of the server's", others, [])
    kept = {"1", "2"} <= {number for number, _ in links}
    yield assumed("the job told its descriptors", true=kept, got=links)
    for name, what in (("SigBlk", "blocked"), ("SigIgn", "ignored")):
        found = re.search(rf"{name}:\s*([0-9a-f]+)", history.stream("signals").text)
        yield equal(f"a job has no signal {what}", found and found[1], "0" * 16)
    # pid (comm) state parent group session ...
    words = history.stream("session").text.split()
    yield holds(
        "a job does not share the server's session or process group",
        kept=words[:1] != [] and words[0] in words[4:6], got=words[4:6], want=words[:1],
    )  # fmt: skip
    adjusted = history.stream("oom_score_adj").text.strip()
    yield equal("a job has no oom_score_adj of the server's", adjusted, "0")
    shown = SECRET in history.stream("environment").text
    promise = "a job does not see the server's secrets"
    secrets = history.facts("secrets of the server")
    for fact in secrets:
        told = fact.value != 0
        yield assumed("a secret is in the server's environment", true=told, got=fact.value)
    yield equal(promise, shown, False) if secrets or shown else unseen(promise, PROCESS_UNSEEN)


GIVEN: Final = {"PLAIN": "word", "SPACES": " a  b ", "ODD": "$HOME='\"\\ü", "EMPTY": ""}
# What no program can be given, and where it cannot be started.
BAD_ENVIRONMENTS: Final = {
    "an empty key": {"": "x"},
    "a key with =": {"A=B": "x"},
    "a NUL in a value": {"A": "x\0y"},
    "a NUL in a key": {"A\0B": "x"},
}
BAD_DIRECTORIES: Final = {
    "a directory that is not there": ("/nonexistent/directory", ("FAILED_PRECONDITION", *ARGUMENT)),
    "a file for a directory": ("/etc/passwd", ("FAILED_PRECONDITION", *ARGUMENT)),
    "a relative directory": ("tmp", ARGUMENT),
}


def run_surroundings(stage: Stage) -> None:
    """Environment and working directory, good and bad."""
    with stage.client() as client:
        client.output(client.must_start("env", ["-0"], environment=GIVEN), label="environment")
        client.output(client.must_start("pwd", working_directory="/usr"), label="directory")
        client.output(
            client.must_start("./printenv", ["PATH"], working_directory="/usr/bin"),
            label="relative",
        )
        for label, environment in BAD_ENVIRONMENTS.items():
            client.start("true", environment=environment, label=f"environment with {label}")
        for label, (directory, _) in BAD_DIRECTORIES.items():
            client.start("true", working_directory=directory, label=f"start in {label}")


def judge_surroundings(history: History) -> Iterator[Finding]:
    """What was given is there exactly; what cannot be is refused by its own status."""
    found = history.stream("environment").text.encode("latin-1").decode().split("\0")
    missing = [f"{key}={value}" for key, value in GIVEN.items() if f"{key}={value}" not in found]
    yield equal("a job has the environment that it was given", missing, [])
    yield equal("a job starts in its directory", history.stream("directory").text, "/usr\n")
    yield holds(
        "a program is found from its directory",
        kept=history.stream("relative").text.startswith("/"),
        got=history.stream("relative").text,
        want="the PATH that ./printenv prints",
    )
    for label in BAD_ENVIRONMENTS:
        call = history.call(f"environment with {label}")
        yield answered(f"an environment with {label} is refused", call, *ARGUMENT)
    for label, (directory, codes) in BAD_DIRECTORIES.items():
        call = history.call(f"start in {label}")
        yield answered(f"a start in {label} is refused", call, *codes)
        told = directory in call.detail
        yield holds("the refusal names it", kept=told, got=call.detail, want=directory)


CHECKS: Final = (
    Check(
        "lifecycle.inheritance",
        "A job inherits no descriptor, no signal setting, no session and no secret of the server.",
        run_inheritance, judge_inheritance, frozenset(), ("43", "R-JOB-6"),
    ),
    Check(
        "lifecycle.surroundings",
        "A job has exactly the environment and the directory that it was given, or is refused.",
        run_surroundings, judge_surroundings, frozenset({Need.SURROUNDINGS}), ("32", "48"),
    ),
)  # fmt: skip
