"""What a job finds itself with: nothing of the server's, and exactly what it was given."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.judge.promises import answered, assumed, equal, holds, unseen
from harness.record.history import History, Json
from harness.record.verdict import Finding
from harness.targets.local import LocalTarget
from harness.targets.target import RunningServer

ARGUMENT: Final = ("INVALID_ARGUMENT",)

SECRET: Final = "secret-"  # noqa: S105 - how the harness's planted secret begins
# Programs that change nothing of what they find, each telling one thing.
LOOKS: Final = {
    "descriptors": ("ls", ["-l", "/proc/self/fd"]),
    "signals": ("cat", ["/proc/self/status"]),
    "session": ("cat", ["/proc/self/stat"]),
    # A server can set it only once the job runs, so the job waits for that: 5 s, then it tells
    # what it has. It is the job's first process: what that forks before then keeps the server's.
    "oom_score_adj": (
        "sh",
        [
            "-c",
            (
                "for turn in $(seq 50); do read score </proc/$$/oom_score_adj;"
                ' [ "$score" = 0 ] && break; sleep 0.1; done; echo "$score"'
            ),
        ],
    ),
    "environment": ("cat", ["/proc/self/environ"]),
}


# What a server is launched with here, for a job to have none of it: see env(1) and sh(1).
PLANTED_DESCRIPTOR: Final = 9
PLANTED_OOM_SCORE: Final = "300"
PLANT: Final = (
    f"choom -n {PLANTED_OOM_SCORE} -- env --block-signal=USR1 "
    f"sh -c 'exec {PLANTED_DESCRIPTOR}</dev/null \"$@\"' planted"
)
SIGUSR1_MASK: Final = 1 << 10 - 1


def _leaking(target: LocalTarget) -> LocalTarget:
    """Return a target whose servers have a descriptor open for a program of theirs, and a mask."""
    line = target.command_line("{cgroup_root}")  # its braces, and its address, are filled in anew
    line = re.sub(r"127\.0\.0\.1:\d+", "{listen}", line)
    return LocalTarget(target.identities, f"{PLANT} {line}", target.flags, name=target.name)


def _what_leaks(stage: Stage, server: RunningServer) -> dict[str, Json]:
    here = f"/proc/{server.pid}"
    look = f"cat {here}/oom_score_adj; ls {here}/fd; grep SigBlk {here}/status"
    words = stage.host.run(look).stdout.split()
    return {
        "OOM score": words[0] == PLANTED_OOM_SCORE,
        "descriptor": str(PLANTED_DESCRIPTOR) in words[1:-2],
        "mask": bool(int(words[-1], 16) & SIGUSR1_MASK),
    }


def run_inheritance(stage: Stage) -> None:
    """Jobs that look at themselves, of a server with something to leak where one can be had."""
    with ExitStack() as stack:
        server = stage.server
        # Elsewhere the server is as it came; its secret is planted at every launch.
        if isinstance(stage.target, LocalTarget):
            server = stack.enter_context(_leaking(stage.target).launched())
            stage.fact("leaks of the server", _what_leaks(stage, server))
        client = stack.enter_context(stage.client(server=server))
        for label, (command, arguments) in LOOKS.items():
            client.output(client.must_start(command, arguments), label=label)
        if server.pid is not None and stage.target_has(Need.HOST):
            script = f"grep -c {SECRET} /proc/{server.pid}/environ || true"
            stage.fact("secrets of the server", int(stage.host.run(script).stdout.strip() or 0))


def judge_inheritance(history: History) -> Iterator[Finding]:
    """Three descriptors, no signal blocked or ignored, its own session, no secret."""
    for fact in history.facts("leaks of the server"):
        leaks = fact.value if isinstance(fact.value, dict) else {}
        for what in ("descriptor", "mask", "OOM score"):
            promise = f"the server has a {what} that a job could inherit"
            yield assumed(promise, true=leaks.get(what) is True, got=leaks)
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


LITERAL: Final = [
    "$HOME",
    "a b",
    "*",
    ";",
    "&& false",
    "`id`",
    "'",
    '"',
    "\\",
    "",
    "ü€",
    "-n",
    "\n",
]


def run_literal(stage: Stage) -> None:
    """Arguments that a shell would take apart."""
    with stage.client() as client:
        job_id = client.must_start("printf", ["[%s]\n", *LITERAL])
        client.output(job_id, label="printed")


def judge_literal(history: History) -> Iterator[Finding]:
    """As they were given."""
    wanted = "".join(f"[{each}]\n" for each in LITERAL).encode().decode("latin-1")
    yield equal("arguments arrive literally", history.stream("printed").text, wanted)


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
DIRECTORY_REASONS: Final = {
    "a directory that is not there": "no such file or directory",
    "a file for a directory": "not a directory",
    "a relative directory": "absolute",
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
        told = directory in call.detail and DIRECTORY_REASONS[label] in call.detail.lower()
        want = f"{directory} and {DIRECTORY_REASONS[label]!r}"
        yield holds("the refusal names it and the reason", kept=told, got=call.detail, want=want)


CHECKS: Final = (
    Check(
        "lifecycle.inheritance",
        "A job inherits no descriptor, no signal setting, no session and no secret of the server.",
        run_inheritance, judge_inheritance, frozenset(), ("43", "R-JOB-6"),
    ),
    Check(
        "lifecycle.literal",
        "Arguments reach the program as they were given; no shell is in between.",
        run_literal, judge_literal, frozenset(), ("48", "R-JOB-1"),
    ),
    Check(
        "lifecycle.surroundings",
        "A job has exactly the environment and the directory that it was given, or is refused.",
        run_surroundings, judge_surroundings, frozenset({Need.SURROUNDINGS}), ("32", "48"),
    ),
)  # fmt: skip
