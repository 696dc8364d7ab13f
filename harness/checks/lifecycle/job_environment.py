"""A job's environment: nothing inherited from the server, and exactly what the start requested."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.checks.common import new_path
from harness.judge.promises import answered, assumed, equal, holds, unseen
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from harness.targets.target import RunningServer

SECRET: Final = "secret-"  # noqa: S105 - how the harness's planted secret begins
# Programs that change nothing that they inherit; each prints one aspect of it.
LOOKS: Final = {
    "descriptors": ("ls", ["-l", "/proc/self/fd"]),
    "signals": ("cat", ["/proc/self/status"]),
    "session": ("cat", ["/proc/self/stat"]),
    "environment": ("cat", ["/proc/self/environ"]),
    # 124 is timeout's own exit code; see timeout(1).
    "input": ("sh", ["-c", "timeout 5 head -c 1; echo end $?"]),
}


# What a server is launched with here, and a job must not inherit: see env(1) and sh(1).
PLANTED_DESCRIPTOR: Final = 9
PLANT: Final = (
    "env", "--block-signal=USR1",
    "sh", "-c", f'exec {PLANTED_DESCRIPTOR}</dev/null "$@"', "planted",
)  # fmt: skip
SIGUSR1_MASK: Final = 1 << 10 - 1
WRITABLE_BY_OTHERS: Final = 0o002


@dataclass(frozen=True, slots=True)
class PlantedState:
    """Whether the server's process has what was planted in it."""

    descriptor: bool
    signal_mask: bool


@dataclass(frozen=True, slots=True)
class InheritableState(Observation):
    """What the server's process has that a job could inherit.

    Attributes:
        planted: None: the harness could not plant anything in this target's servers.
        secrets: variables with a planted secret; None: its process cannot be observed.
    """

    planted: PlantedState | None
    secrets: int | None


def _planted_state(stage: Stage, server: RunningServer) -> PlantedState:
    here = f"/proc/{server.pid}"
    words = stage.host.run(f"ls {here}/fd; grep SigBlk {here}/status").stdout.split()
    return PlantedState(
        descriptor=str(PLANTED_DESCRIPTOR) in words[:-2],
        signal_mask=bool(int(words[-1], 16) & SIGUSR1_MASK),
    )


def run_inheritance(stage: Stage) -> None:
    """Run jobs that look at themselves, on a server with planted state where that is possible."""
    with ExitStack() as stack:
        server, planted, secrets = stage.server, None, None
        # Elsewhere only the secret is planted, at every launch.
        if stage.target_has(Need.LAUNCH) and stage.target_has(Need.HOST):
            server = stack.enter_context(stage.fresh_server(wrapper=PLANT))
            planted = _planted_state(stage, server)
        client = stack.enter_context(stage.client(server=server))
        for label, (command, arguments) in LOOKS.items():
            client.output(client.must_start(command, arguments), label=label)
        if server.pid is not None and stage.target_has(Need.HOST):
            script = f"grep -c {SECRET} /proc/{server.pid}/environ || true"
            secrets = int(stage.host.run(script).stdout.strip() or 0)
        stage.record(InheritableState(planted, secrets))


def judge_inheritance(history: History) -> Iterator[Finding]:
    """Promise three descriptors, no blocked or ignored signal, an own session, and no secret."""
    server = history.the(InheritableState)
    if server.planted is not None:
        for what, has in (
            ("descriptor", server.planted.descriptor),
            ("mask", server.planted.signal_mask),
        ):
            promise = f"the server has a {what} that a job could inherit"
            yield assumed(promise, true=has, got=server.planted)
    # `ls` itself opens one more, on the directory of descriptors.
    links = re.findall(r"(\d+) -> (\S+)", history.stream("descriptors").text)
    others = [link for link in links if int(link[0]) > 2 and not link[1].startswith("/proc/")]  # noqa: PLR2004
    yield equal("a job has descriptors 0, 1 and 2 and no other of the server's", others, [])
    kept = {"1", "2"} <= {number for number, _ in links}
    yield assumed("the job listed its descriptors", true=kept, got=links)
    for name, what in (("SigBlk", "blocked"), ("SigIgn", "ignored")):
        found = re.search(rf"{name}:\s*([0-9a-f]+)", history.stream("signals").text)
        yield equal(f"a job has no signal {what}", found and found[1], "0" * 16)
    text = history.stream("input").text
    yield equal("a job that reads its standard input is at the end of it at once", text, "end 0\n")
    umask = re.search(r"Umask:\s*([0-7]+)", history.stream("signals").text)
    kept = umask is not None and int(umask[1], 8) & WRITABLE_BY_OTHERS == WRITABLE_BY_OTHERS
    promise = "a job's umask keeps the files that it makes from being writable for all users"
    yield holds(promise, kept=kept, got=umask and umask[1], want="...2 in octal, or stricter")
    # pid (comm) state parent group session ...
    words = history.stream("session").text.split()
    yield holds(
        "a job does not share the server's session or process group",
        kept=words[:1] != [] and words[0] in words[4:6], got=words[4:6], want=words[:1],
    )  # fmt: skip
    yield from _judge_secrets(server, history.stream("environment").text)


def _judge_secrets(server: InheritableState, environment: str) -> Iterator[Finding]:
    promise = "a job does not see the server's secrets"
    shown = SECRET in environment
    if server.secrets is not None:
        what = "a secret is in the server's environment"
        yield assumed(what, true=server.secrets > 0, got=server.secrets)
    elif not shown:
        yield unseen(promise, PROCESS_UNSEEN)
        return
    yield equal(promise, shown, want=False)


INHERITANCE: Final = Check(
    "lifecycle.inheritance",
    "A job inherits no descriptor, signal setting, session, secret or umask of 0, and no input.",
    run_inheritance,
    judge_inheritance,
    cites=("43", "113", "114", "R-JOB-6"),
    ours=True,
)


GIVEN: Final = {
    "PLAIN": "word", "SPACES": " a  b ", "ODD": "$HOME='\"\\ü", "EMPTY": "",
    # These replace what a job has without them.
    "PATH": "/given:/usr/local/bin:/usr/bin:/bin", "HOME": "/given",
}  # fmt: skip
# A refusal must not repeat what is in the place of a value: the log has the refusal's text.
PASSWORD: Final = "hunter2"  # noqa: S105 - the word that must not occur
# What no program can be given, and where no program can be started.
BAD_ENVIRONMENTS: Final[dict[str, dict[str, str]]] = {
    "an empty key": {"": "x"},
    "a key with =": {"A=B": "x"},
    "a NUL in a value": {"A": "x\0y"},
    "a NUL in a key": {"A\0B": "x"},
    "a key with a value in it": {f"PASSWORD={PASSWORD}": ""},
    "a NUL beside a secret": {"PASSWORD": f"{PASSWORD}\0"},
    "a value of 131,075 bytes": {"PASSWORD": PASSWORD * 18_725},
}
ARGUMENT: Final = ("INVALID_ARGUMENT",)
MISSING: Final = ("NOT_FOUND", "FAILED_PRECONDITION", *ARGUMENT)
# Directory, the statuses that refuse it, and the reason that the refusal gives.
BAD_DIRECTORIES: Final = {
    "a missing directory": (
        "/nonexistent/directory",
        ("FAILED_PRECONDITION", *ARGUMENT),
        "no such file or directory",
    ),
    "a file instead of a directory": (
        "/etc/passwd",
        ("FAILED_PRECONDITION", *ARGUMENT),
        "not a directory",
    ),
    "a relative directory": ("tmp", ARGUMENT, "absolute"),
}
# A program that only a requested PATH finds, in a new directory; its own words need no PATH.
HIDDEN: Final = "jobworker-hidden"
HIDE: Final = f"mkdir $0 && printf '#!/bin/sh\necho hidden\n' > $0/{HIDDEN} && chmod +x $0/{HIDDEN}"


def run_surroundings(stage: Stage) -> None:
    """Start jobs with environments and working directories, good and bad."""
    with stage.client() as client:
        client.output(client.must_start("env", ["-0"], environment=GIVEN), label="environment")
        client.output(client.must_start("pwd", working_directory="/usr"), label="directory")
        client.output(
            client.must_start("./printenv", ["PATH"], working_directory="/usr/bin"),
            label="relative",
        )
        directory = new_path("hidden")
        client.wait_ended(client.must_start("sh", ["-c", HIDE, directory]))
        path = {"PATH": directory}
        client.start(HIDDEN, environment=path, label="found in its PATH")
        client.start("printenv", environment=path, label="not in its PATH")
        client.start(HIDDEN, label="not in the server's PATH")
        client.wait_ended(client.must_start("rm", ["-r", directory]))
        for label, environment in BAD_ENVIRONMENTS.items():
            client.start("true", environment=environment, label=f"environment with {label}")
        for label, (bad, _, _) in BAD_DIRECTORIES.items():
            client.start("true", working_directory=bad, label=f"start in {label}")


def judge_surroundings(history: History) -> Iterator[Finding]:
    """Promise exactly the requested ones, and for each impossible one a status of its own."""
    found = history.stream("environment").text.encode("latin-1").decode().split("\0")
    missing = [f"{key}={value}" for key, value in GIVEN.items() if f"{key}={value}" not in found]
    yield equal("a job has the requested environment", missing, [])
    names = Counter(text.partition("=")[0] for text in found)
    yield equal("and each variable once", [name for name, count in names.items() if count > 1], [])
    yield equal("a job starts in its directory", history.stream("directory").text, "/usr\n")
    yield holds(
        "a program is found from its directory",
        kept=history.stream("relative").text.startswith("/"),
        got=history.stream("relative").text,
        want="the PATH that ./printenv prints",
    )
    promise = "a program is looked up in the PATH that its job gets"
    yield answered(promise, history.call("found in its PATH"))
    for which in ("its", "the server's"):
        yield answered(f"{promise}: not in {which}", history.call(f"not in {which} PATH"), *MISSING)
    for label in BAD_ENVIRONMENTS:
        call = history.call(f"environment with {label}")
        yield answered(f"an environment with {label} is refused", call, *ARGUMENT)
        shown = PASSWORD in call.detail
        yield equal(f"its refusal repeats no value: {label}", shown, want=False)
    for label, (directory, codes, reason) in BAD_DIRECTORIES.items():
        call = history.call(f"start in {label}")
        yield answered(f"a start in {label} is refused", call, *codes)
        kept = directory in call.detail and reason in call.detail.lower()
        want = f"{directory} and {reason!r}"
        yield holds("the refusal names it and the reason", kept=kept, got=call.detail, want=want)


SURROUNDINGS: Final = Check(
    "lifecycle.surroundings",
    "A job has exactly the requested environment and directory, or is refused.",
    run_surroundings,
    judge_surroundings,
    needs=frozenset({Need.JOB_ENVIRONMENT}),
    cites=("32", "48"),
)

CHECKS: Final = (INHERITANCE, SURROUNDINGS)
