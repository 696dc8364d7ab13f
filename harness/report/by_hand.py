"""A check's first calls as a shell script: what an author repeats without the harness.

The server's address, the directory of certificates and the ids of jobs are variables, since all of
them are others in the next run. Comments say what each call answered. The first calls suffice to
repeat what a quick check found; a check that needs many at once is repeated by its own command.
"""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from harness.record.history import Call, CallByHand, History, Stream
from harness.report.text import one_line

# Longer than the programs that most jobs run, which are arguments.
_COMMAND_CHARACTERS_MAX: Final = 6000
_ANSWER_CHARACTERS_MAX: Final = 200
# From so many words on, what all commands begin with is a function.
_SHARED_WORDS_MIN: Final = 6
_FUNCTION: Final = "call"


def script_of(history: History) -> str:
    """Return a check's first calls as lines of a shell script; empty if it made none."""
    calls = history.all(CallByHand)
    if not calls:
        return ""
    variables = {calls[0].address: "SERVER", calls[0].certificates: "CERTS"}
    shared = _shared(calls)
    lines = [
        f"SERVER={shlex.quote(calls[0].address)}  # the server's address",
        "CERTS=certs  # the directory that `identities certs` made",
    ]
    if shared:
        words = " ".join(_quoted(word, variables) for word in shared)
        lines.append(f'{_FUNCTION}() {{ {words} "$@"; }}')
    answers = _answers(history)
    for record in history.records:
        if isinstance(record, CallByHand):
            lines += _lines(record, len(shared), variables, answers.get(record.label, ""))
        elif isinstance(record, Call) and record.rpc == "StartJob":
            job_id = record.response.get("job_id")
            if isinstance(job_id, str) and job_id and job_id not in variables:
                name = f"JOB{len(variables) - 1}"
                variables[job_id] = name
                lines.append(f"{name}=  # the id of job {name[3:]}, from its answer")
    left_out = len(history.calls()) + len(history.streams()) - len(calls)
    if left_out > 0:
        lines.append(f"# {left_out} more calls are left out.")
    return "\n".join(_without_unused(lines))


def _shared(calls: Sequence[CallByHand]) -> tuple[str, ...]:
    """Return the words that all commands begin with, if they are worth a function."""
    columns = zip(*(call.words for call in calls), strict=False)
    same = itertools.takewhile(lambda words: len(set(words)) == 1, columns)
    shared = tuple(words[0] for words in same)
    return shared if len(calls) > 1 and len(shared) >= _SHARED_WORDS_MIN else ()


def _answers(history: History) -> dict[str, str]:
    """Return what the calls and streams answered, by label; of an ambiguous label, nothing."""
    answers: dict[str, str] = {}
    for record in history.records:
        if isinstance(record, Call | Stream):
            size = f", {record.received_bytes} bytes" if isinstance(record, Stream) else ""
            detail = f": {record.detail}" if record.detail else ""
            text = one_line(f"{record.code}{detail}{size}", _ANSWER_CHARACTERS_MAX)
            answers[record.label] = "" if record.label in answers else text
    return answers


def _lines(call: CallByHand, shared: int, variables: Mapping[str, str], answer: str) -> list[str]:
    words = [_FUNCTION] * bool(shared)
    words += [_quoted(word, variables) for word in call.words[shared:]]
    line = " ".join(words)
    if len(line) > _COMMAND_CHARACTERS_MAX:
        line = f"# {call.rpc} is left out: it has an argument of {len(line)} characters."
    return [line, *([f"# answered {answer}"] if answer else [])]


def _without_unused(lines: Sequence[str]) -> list[str]:
    """Return the lines without the variables of jobs that no command uses."""
    text = "\n".join(lines)
    names = [(line, re.match(r"(JOB\d+)=  #", line)) for line in lines]
    return [line for line, name in names if name is None or f'"${name[1]}"' in text]


def _quoted(word: str, variables: Mapping[str, str]) -> str:
    """Return a word for a shell, with variables in place of their values."""
    values = sorted(filter(None, variables), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, values))})", word) if values else [word]
    quoted = [
        f'"${variables[piece]}"' if piece in variables else _literal(piece)
        for piece in pieces
        if piece
    ]
    return "".join(quoted) or "''"


def _literal(text: str) -> str:
    r"""Quote a text; what is not printable is written as an escape of `$'...'`."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return "$'" + "".join(_escape(each) for each in escaped) + "'"


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\{code:03o}" if character.isascii() else f"\\U{code:08x}"
