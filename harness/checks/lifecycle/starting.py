"""Starts: what cannot be started, literal arguments, and the ids of jobs."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.checks.common import new_path, server_counts
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import answered, at_most, equal, floor, holds, one_of, unseen
from harness.record.history import History, Observation
from harness.record.terms import NOT_SENT, Terms, terms_of
from harness.record.verdict import Finding
from harness.targets.target import RunningServer

REFUSED: Final = ("NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
CANNOT_RUN: Final = ("FAILED_PRECONDITION", "INVALID_ARGUMENT")
ARGUMENT: Final = ("INVALID_ARGUMENT",)
# A refusal may repeat a name, but must not grow beyond what a status can carry, in any script. gRPC
# drops some statuses of more than 8 KiB, and all of 16 KiB: hence several.
LONG_NAMES: Final = ("n" * 3000, "\N{EURO SIGN}" * 1000, "\n\t " * 500)
FACES: Final = tuple(chr(ord("\N{GRINNING FACE}") + number) * 1000 for number in range(6))
# What cannot be started: command, arguments, and the statuses that say so.
UNSTARTABLE: Final[dict[str, tuple[str, list[str], tuple[str, ...]]]] = {
    "a missing program": ("/nonexistent/program", [], REFUSED),
    "a missing name": ("no-such-program-anywhere", [], REFUSED),
    "a directory": ("/tmp", [], CANNOT_RUN),  # noqa: S108 - a directory everywhere
    "a file that is not executable": ("/etc/passwd", [], CANNOT_RUN),
    "no command": ("", [], ARGUMENT),
    "a NUL in the command": ("ec\0ho", [], ARGUMENT),
    "a NUL in an argument": ("echo", ["a\0b"], ARGUMENT),
    "an argument of 131,072 bytes": ("true", ["x" * 131_072], ARGUMENT),
    "3 MB of arguments": ("true", ["x" * 100_000] * 30, ARGUMENT),
    **{f"a name that begins {each[:3]!r}": (each, [], REFUSED) for each in (*LONG_NAMES, *FACES)},
}
SCRIPT: Final = "a script without #!"
# The reasons that a refusal may give, in lower case: the kernel's words, a shell's, or the errno.
REASONS: Final = {
    "a missing program": ("no such file", "not found", "errno 2"),
    "a missing name": ("no such file", "not found", "errno 2"),
    "a directory": ("directory", "permission denied", "errno 13", "errno 21"),
    "a file that is not executable": ("permission denied", "not executable", "errno 13"),
    SCRIPT: ("exec format", "errno 8"),
}
# Repeated, to count what is left behind: those that are small.
AGAIN: Final = [(name, words) for name, words, _ in UNSTARTABLE.values() if not words[1:]] * 3
DESCRIPTORS_SLACK: Final = 4


@dataclass(frozen=True, slots=True)
class DescriptorCounts:
    """The server's open descriptors before and after the repeated refused starts."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class RefusedStarts(Observation):
    """What refused starts left behind.

    Attributes:
        script: path of the script without #!.
        listed: the refused commands that ListJobs shows; None: the target has no ListJobs.
        descriptors: None: the server's process cannot be observed.
    """

    script: str
    listed: tuple[str, ...] | None
    descriptors: DescriptorCounts | None


def run_bad_commands(stage: Stage) -> None:
    """Request starts that must fail; repeat some if the server's descriptors can be counted."""
    counts = stage.target_has(Need.LAUNCH) and stage.target_has(Need.HOST)
    with ExitStack() as stack:
        # A server for this check alone: no other client opens and closes anything there.
        server = stack.enter_context(stage.fresh_server()) if counts else stage.server
        client = stack.enter_context(stage.client(server=server))
        for label, (command, arguments, _) in UNSTARTABLE.items():
            client.start(command, arguments, label=label)
        script = _start_script(client)
        listed = _listed(client) if stage.target_has(Need.LISTING) else None
        client.must_start("true", label="a good command after all these")
        descriptors = _count_descriptors(stage, server, client) if counts else None
        stage.record(RefusedStarts(script, listed, descriptors))


def _start_script(client: Client) -> str:
    """Start a script without #!, and return its path."""
    path = new_path("script")
    client.wait_ended(client.must_start("sh", ["-c", f"echo 'echo hi' > {path}; chmod +x {path}"]))
    client.start(path, label=SCRIPT)
    client.wait_ended(client.must_start("rm", ["-f", path]))
    return path


def _listed(client: Client) -> tuple[str, ...]:
    """Return the refused commands that are listed as jobs."""
    message = client.require(client.list_jobs(), "an admin can list jobs")
    names = {command for command, _, _ in UNSTARTABLE.values()} - {"true", "echo"}
    return tuple(sorted({job.command_name for job in message.jobs} & names))


def _count_descriptors(stage: Stage, server: RunningServer, client: Client) -> DescriptorCounts:
    """Repeat refused starts; return the server's descriptors before and after."""

    def descriptors() -> int:
        client.wait_ended(client.must_start("true"))
        return server_counts(stage, server).descriptors

    before = descriptors()
    for command, arguments in AGAIN:
        client.start(command, arguments, label="again")
    seconds_until(lambda: descriptors() <= before, stage.patience(2))
    return DescriptorCounts(before, descriptors())


# Our client's library reads no refusal whose text repeats a long name; others do.
UNREADABLE: Final = "received metadata size exceeds"


def judge_bad_commands(history: History) -> Iterator[Finding]:
    """Promise a status for the kind of fault, a text with the reason, and nothing left behind."""
    seen = history.the(RefusedStarts)
    terms = terms_of(history)
    refusals = {label: codes for label, (_, _, codes) in UNSTARTABLE.items()}
    refusals[SCRIPT] = CANNOT_RUN
    for label, codes in refusals.items():
        promise, call = f"a start of {label} is refused", history.call(label)
        if call.detail.startswith(NOT_SENT):
            yield unseen(promise, "the dialect cannot express it")
            continue
        if not terms.own and UNREADABLE in call.detail:
            yield holds(promise, kept=True, got=call.detail, want="a refusal, of any length")
            continue
        yield answered(promise, call, *(codes if terms.own else terms.bad_command))
    for label, reasons in REASONS.items() if terms.own else ():
        path = UNSTARTABLE[label][0] if label in UNSTARTABLE else seen.script
        text = history.call(label).detail
        promise = f"the refusal of {label} names it and the reason"
        kept = path in text and any(reason in text.lower() for reason in reasons)
        yield holds(promise, kept=kept, got=text, want=f"{path} and {' or '.join(reasons)}")
    if seen.listed is not None:
        yield equal("a refused start leaves no job", seen.listed, ())
    good = history.call("a good command after all these")
    yield answered("the server goes on", good)
    promise = "descriptors of the server after refused starts"
    if seen.descriptors is None:
        yield unseen(promise, PROCESS_UNSEEN)
        return
    again = len(history.calls("again"))
    yield floor("refused starts", again, len(AGAIN))
    why = f"a job or two may be ending; a pipe left by each start would be {again} and more"
    bound = seen.descriptors.before + DESCRIPTORS_SLACK
    yield at_most(promise, seen.descriptors.after, bound, why)


BAD_COMMANDS: Final = Check(
    "lifecycle.bad-commands",
    "What cannot be started is refused with a status and a reason, and leaves nothing behind.",
    run_bad_commands,
    judge_bad_commands,
    cites=("32", "48"),
)


@dataclass(frozen=True, slots=True)
class AssignedIds(Observation):
    """The ids of some started jobs, and whether the target has the added fields."""

    ids: tuple[str, ...]
    has_added_fields: bool


UUID4: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
MALFORMED_IDS: Final = {"malformed": "not-an-id", "empty": ""}
# Other spellings of a UUID. A server may refuse one; if a query accepts it, so does each other rpc.
SPELLINGS: Final[dict[str, Callable[[str], str]]] = {
    "upper case": str.upper,
    "no hyphens": lambda job_id: job_id.replace("-", ""),
    "braces": lambda job_id: f"{{{job_id}}}",
    "urn": lambda job_id: f"urn:uuid:{job_id}",
}


def run_ids(stage: Stage) -> None:
    """Start jobs, and use ids that no job has."""
    with stage.client() as client:
        ids = tuple(client.must_start("true") for _ in range(20))
        stage.record(AssignedIds(ids, stage.target_has(Need.OFFSETS)))
        if stage.target_has(Need.DELETION):
            _use_spellings(client)
        for label, job_id in {"unknown": stage.dialect.terms.unknown_id, **MALFORMED_IDS}.items():
            client.query(job_id, label=f"query {label}")
            client.stop(job_id, label=f"stop {label}")
            client.stream(job_id, StreamPlan(timeout_s=10), label=f"stream {label}")


def _use_spellings(client: Client) -> None:
    """Query, stream, stop and delete ended jobs by other spellings of their ids."""
    for label, spell in SPELLINGS.items():
        job_id = client.must_start("true")
        client.output(job_id)
        client.query(spell(job_id), label=f"query {label}")
        client.stream(spell(job_id), label=f"stream {label}")
        client.stop(spell(job_id), label=f"stop {label}")
        client.delete(spell(job_id), label=f"delete {label}")
        client.query(job_id, label=f"after {label}")


def judge_ids(history: History) -> Iterator[Finding]:
    """Promise a different UUID of version 4 for each job, and that other ids are refused."""
    assigned = history.the(AssignedIds)
    terms = terms_of(history)
    if terms.uuids:
        odd = [job_id for job_id in assigned.ids if not UUID4.fullmatch(job_id)]
        yield equal("a job's id is a UUID of version 4", odd, [])
    yield equal("no id is assigned twice", len(set(assigned.ids)), len(assigned.ids))
    if history.calls("delete "):
        yield from _judge_spellings(history, terms)
    # The original API has one status for both; the one with added fields distinguishes them.
    malformed: tuple[str, ...] = ARGUMENT if assigned.has_added_fields else (*ARGUMENT, "NOT_FOUND")
    if not terms.own:
        malformed = terms.bad_id
    for rpc in ("query", "stop"):
        call = history.call(f"{rpc} unknown")
        yield answered(f"{rpc} of an unknown id is refused", call, *terms.unknown_job)
        for label in MALFORMED_IDS:
            call = history.call(f"{rpc} {label}")
            if not call.detail.startswith(NOT_SENT):
                yield answered(f"{rpc} of an id that is {label} is refused", call, *malformed)
    stream = history.stream("stream unknown")
    yield one_of("a stream of an unknown id is refused", stream.code, terms.unknown_job)
    if assigned.has_added_fields and terms.own:
        details = [history.call(f"{rpc} unknown").detail for rpc in ("query", "stop")]
        unnamed = [text for text in (*details, stream.detail) if terms.unknown_id not in text]
        yield equal("a refusal of an unknown id names it", unnamed, [])
    for label in MALFORMED_IDS:
        stream = history.stream(f"stream {label}")
        if not stream.detail.startswith(NOT_SENT):
            yield one_of(f"a stream of an id that is {label} is refused", stream.code, malformed)


def _judge_spellings(history: History, terms: Terms) -> Iterator[Finding]:
    for label in SPELLINGS:
        codes = [history.call(f"{rpc} {label}").code for rpc in ("query", "stop", "delete")]
        codes.append(history.stream(f"stream {label}").code)
        promise = f"every rpc takes a job's id in {label}, or each refuses it"
        yield equal(promise, codes, codes[:1] * len(codes))
        after = history.call(f"after {label}")
        promise = f"a job is gone if its delete succeeded, and only then ({label})"
        yield answered(promise, after, *(terms.unknown_job if codes[2] == "OK" else ("OK",)))


IDS: Final = Check(
    "lifecycle.ids",
    "Job ids are UUIDs of version 4; unknown and malformed ids are refused, each by its status.",
    run_ids,
    judge_ids,
    cites=("40", "R-JOB-1"),
)


LITERAL_ARGUMENTS: Final = [
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
    """Print arguments that a shell would expand or split."""
    with stage.client() as client:
        job_id = client.must_start("printf", ["[%s]\n", *LITERAL_ARGUMENTS])
        client.output(job_id, label="printed")


def judge_literal(history: History) -> Iterator[Finding]:
    """Promise that they are printed unchanged."""
    wanted = "".join(f"[{each}]\n" for each in LITERAL_ARGUMENTS).encode().decode("latin-1")
    yield equal("arguments arrive literally", history.stream("printed").text, wanted)


LITERAL: Final = Check(
    "lifecycle.literal",
    "Arguments reach the program unchanged, without a shell.",
    run_literal,
    judge_literal,
    cites=("48", "R-JOB-1"),
)

CHECKS: Final = (BAD_COMMANDS, IDS, LITERAL)
