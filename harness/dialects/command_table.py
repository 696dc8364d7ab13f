"""The tables `[command.*]` of a dialect: which program each call runs, and what it prints."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import grpc
import msgspec

from harness.dialects.command_answers import Answer, require_answer
from harness.dialects.command_values import PLACEHOLDERS
from harness.dialects.command_words import require_known
from harness.dialects.identity_scheme import RPC_WORDS, Rpc
from harness.dialects.job_state import MEANINGS
from harness.dialects.surroundings import below, require_variables
from harness.record.terms import ADDED
from jobworker.v1 import jobworker_pb2 as pb

_WordList = list[str | list[str]]
CALLS: Final = tuple(RPC_WORDS.values())
_REQUIRED: Final = ("start", "query", "stream")
_ANSWERS: Final = {
    "start": pb.StartJobResponse.DESCRIPTOR,
    "stop": pb.StopJobResponse.DESCRIPTOR,
    "query": pb.QueryJobResponse.DESCRIPTOR,
    "list": pb.JobSummary.DESCRIPTOR,
    "delete": pb.DeleteJobResponse.DESCRIPTOR,
}
# Each limit: its field, and other placeholders that have it.
_LIMITS: Final = (
    ("cpu_millicores", "cpu_cores", "cpu_percent"), ("memory_max_bytes",), ("io_weight",),
    ("pids_max",),
)  # fmt: skip
_CODES: Final = frozenset(code.name for code in grpc.StatusCode)


class ErrorRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a program's failure means; the first rule that matches decides.

    Attributes:
        code: name of the gRPC status, or `OK`; "": the group `code` of the pattern.
        exit: exit code, 128+N for signal N; None: any but 0.
        pattern: regular expression, searched in what the program printed; its group `details` is
            the status's text.
        calls: only of these calls; empty: of all.

    Raises:
        ValueError: says which value is not allowed.
    """

    code: str = ""
    exit: int | None = None
    pattern: str = ""
    calls: tuple[Rpc, ...] = ()

    def __post_init__(self) -> None:
        if self.code and self.code not in _CODES:
            names = ", ".join(sorted(_CODES))
            raise ValueError(f"code {self.code!r} is not a gRPC status; write one of {names}")
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is invalid: {error}") from None
        if not self.code and "code" not in groups:
            raise ValueError("give a code, or a pattern with the group (?P<code>...)")


class CommandTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a kind of job worker is called by programs.

    Attributes:
        start, stop, query, stream, list, delete: the words of each call's program; empty: it has
            no such call. See `command_words` for the placeholders.
        environment: variables for every program, with placeholders.
        files: name in `{work}` -> `{ca}`, `{cert}` or `{key}`: where the program wants them.
        answers: call -> regular expressions with named groups, or field -> path in JSON.
        states: text of the program -> running, exited, signaled or ended.
        errors: what failures mean.
        startup_s: seconds that a program may take to start, on a busy machine.
        stream_end: `exit`: a stream's program exits with the job; `query`: it never does, so it is
            ended once a query says that the job has ended and it was silent for a second.
        local: the programs act on this machine, and no server has to be started.

    Raises:
        ValueError: says which value is not allowed.
    """

    start: _WordList
    query: _WordList
    stream: _WordList
    stop: _WordList = []
    list: _WordList = []
    delete: _WordList = []
    environment: dict[str, str] = {}
    files: dict[str, str] = {}
    answers: dict[Rpc, tuple[str, ...] | dict[str, str]] = {}
    states: dict[str, str] = {}
    errors: tuple[ErrorRule, ...] = ()
    startup_s: float = 2.0
    stream_end: str = "exit"
    local: bool = False

    def __post_init__(self) -> None:
        for call in CALLS:
            require_known(self.words(call), PLACEHOLDERS[call], call)
            if call in _REQUIRED and not self.words(call):
                raise ValueError(f"{call} has no words; give the words of its program")
        if not 0 <= self.startup_s < math.inf:
            raise ValueError(
                f"startup_s = {self.startup_s}; it must be a number of seconds, 0 or more"
            )
        self._require_files()
        self._require_answers()
        if self.stream_end not in {"exit", "query"}:
            raise ValueError(f"stream_end: {self.stream_end!r}; write 'exit' or 'query'")

    def _require_files(self) -> None:
        require_variables(self.environment)
        for name, text in [*self.environment.items(), *self.files.items()]:
            require_known([text], PLACEHOLDERS["query"][1:], name)
        for name in self.files:
            if not below(name):
                raise ValueError(f"files: {name!r}; it must be a path below {{work}}")

    def _require_answers(self) -> None:
        for call, answer in self.answers.items():
            if call not in _ANSWERS:
                raise ValueError(f"answers.{call}: a stream is its program's standard output")
            require_answer(answer, _ANSWERS[call], f"answers.{call}")
        for text, state in self.states.items():
            if state not in MEANINGS:
                raise ValueError(f"states.{text}: {state!r}; write one of {', '.join(MEANINGS)}")
        if "job_id" not in self.names("start") and "{new_id}" not in str(self.start):
            raise ValueError("answers.start has no job_id, and start no {new_id}; give one of them")
        if "status" not in self.names("query"):
            raise ValueError("answers.query has no status; give a pattern (?P<status>...) or path")

    def words(self, call: Rpc) -> _WordList:
        """Return the words of a call's program."""
        found: _WordList = getattr(self, call)
        return found

    def answer(self, call: Rpc) -> Answer:
        """Return how a call's answer is read."""
        return self.answers.get(call, ())

    def names(self, call: Rpc) -> set[str]:
        """Return the fields that a call's answer may have."""
        answer = self.answer(call)
        if isinstance(answer, Mapping):
            return set(answer)
        return {name for pattern in answer for name in re.compile(pattern).groupindex}

    def lacks(self) -> tuple[str, ...]:
        """Return what the programs cannot express, of `harness.record.terms.ADDED`."""
        start, names = str(self.start), self.names("query")
        named = {
            "limits": all(
                any(f"{{{each}" in start for each in words)
                and not {"limits", f"limits.{words[0]}"}.isdisjoint(names)
                for words in _LIMITS
            ),
            "environment": "{environment...}" in start,
            "working_directory": "{working_directory" in start,
            "ListJobs": bool(self.list),
            "page_size": "{page_size" in str(self.list),
            "DeleteJob": bool(self.delete),
            "grace_period_ms": "{grace_" in str(self.stop),
            "io_max": "{io_max" in start and "limits" in names,
            "usage": {"usage", "oom_killed"} <= names,
            "log_size_bytes": "log_size_bytes" in names,
        }
        return tuple(name for name in ADDED if not named.get(name))

    def failure(
        self, call: Rpc, exit_code: int, output: str, errors: str
    ) -> tuple[grpc.StatusCode, str] | None:
        """Return the status of a failed call and its details; None if it did not fail."""
        text = f"{errors}\n{output}"
        lines = [line.strip() for line in (errors if errors.strip() else output).splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        for rule in self.errors:
            match = re.search(rule.pattern, text, re.MULTILINE)
            expected = exit_code != 0 if rule.exit is None else exit_code == rule.exit
            if match is None or not expected or (rule.calls and call not in rule.calls):
                continue
            groups = match.groupdict()
            code = rule.code or groups["code"]
            if code == "OK":
                return None
            details = groups.get("details") or last
            known = code if code in _CODES else "UNKNOWN"
            return grpc.StatusCode[known], details
        if exit_code == 0:
            return None
        program = str((self.words(call) or ["the program"])[0])
        detail = f"{Path(program).name} exited with {exit_code}: {last}"
        return grpc.StatusCode.UNKNOWN, detail
