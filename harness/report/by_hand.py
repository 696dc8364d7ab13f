"""A check's first calls as a shell script: what an author repeats without the harness.

The server's address, the directory of certificates and the ids of jobs are variables, since all of
them are others in the next run. `: answered TEXT`, which does nothing, says what each call
answered: in an interactive shell without comments, a server's text in one would be run. The first
calls suffice to repeat what a quick check found; a check that needs many at once is repeated by its
own command.
"""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from harness.record.history import NEW_ID, Call, CallByHand, History, Record, Stream
from harness.record.terms import Terms
from harness.report.text import one_line

# Longer than the programs that most jobs run, which are arguments.
_COMMAND_CHARACTERS_MAX: Final = 6000
_ANSWER_CHARACTERS_MAX: Final = 200
# From so many words on, what all commands begin with is a function.
_SHARED_WORDS_MIN: Final = 6
_FUNCTION: Final = "call"
_START: Final = "StartJob"


def script_of(history: History) -> str:
    """Return a check's first calls as lines of a shell script; empty if it made none."""
    calls = history.all(CallByHand)
    if not calls:
        return ""
    places = _places(calls[0])
    names = {job_id: f"JOB{n}" for n, job_id in enumerate(_used_ids(history, calls), 1)}
    with_ids = {**places, **{name: _place_of_id(job_id) for job_id, name in names.items()}}
    made_by = "identities certs"
    made_by += " --scheme DIALECT" if any(not each.own for each in history.all(Terms)) else ""
    shared = _shared(calls)
    lines = [
        "# for bash",
        f"SERVER={shlex.quote(calls[0].address)}  # address of the server",
        f"CERTS=certs  # the directory that `{made_by}` made",
    ]
    setup = dict.fromkeys(command for call in calls for command in call.setup)
    lines += [" ".join(_quoted(word, places) for word in command) for command in setup]
    if shared:
        words = " ".join(_quoted(word, places) for word in shared)
        lines.append(f'{_FUNCTION}() {{ {words} "$@"; }}')
    answers = _answers(history)
    for number, record in enumerate(history.records):
        if isinstance(record, CallByHand):
            known = places if record.rpc == _START else with_ids
            if any(NEW_ID in word for word in record.words):
                name = names.pop(_answered_id(history.records[number:], record.label), "JOB")
                lines.append(f"{name}=$(uuidgen)  # an id for the next job")
                known = {**known, name: re.escape(NEW_ID)}
            lines += _lines(record, len(shared), known, answers.get(record.label, ""))
        elif (name := names.pop(_started_id(record), "")) != "":
            lines.append(f"{name}=  # the id of job {name[3:]}, from its answer")
    left_out = len(history.calls()) + len(history.streams()) - len(calls)
    if left_out > 0:
        lines.append(f"# {left_out} more calls are left out.")
    return "\n".join(lines)


def _places(call: CallByHand) -> dict[str, str]:
    """Return where the server's address and the certificates are in a word: patterns by name."""
    places = {}
    if call.address:  # a client of this machine needs none
        places["SERVER"] = rf"(?:^|(?<=[=/])){re.escape(call.address)}(?=$|/)"
    if call.certificates not in {"", "."}:  # the current directory's files are named without it
        places["CERTS"] = rf"(?:^|(?<=[=,:])){re.escape(call.certificates)}(?=$|/)"
    return places


def _place_of_id(job_id: str) -> str:
    """Return where an id is in a word: a number is it only as a whole word or JSON value."""
    if job_id.isdecimal():
        return rf'(?:^|(?<==)|(?<=: )|(?<=: ")){job_id}(?=$|"?[,}}])'
    return rf"(?<!\w){re.escape(job_id)}(?!\w)"


def _started_id(record: Record) -> str:
    """Return the id that a start answered; empty: the record is of something else."""
    if not isinstance(record, Call) or record.rpc != _START:
        return ""
    job_id = record.response.get("job_id")
    return job_id if isinstance(job_id, str) else ""


def _answered_id(records: Sequence[Record], label: str) -> str:
    """Return the id that the first call with a label answered; empty: none."""
    calls = (each for each in records if isinstance(each, Call) and each.label == label)
    return next(map(_started_id, calls), "")


def _used_ids(history: History, calls: Sequence[CallByHand]) -> list[str]:
    """Return the ids that calls after the start have, in the order of the starts."""
    words = {word for call in calls if call.rpc != _START for word in call.words}
    ids = dict.fromkeys(filter(None, map(_started_id, history.records)))
    return [
        job_id
        for job_id in ids
        if any(job_id in word and re.search(_place_of_id(job_id), word) for word in words)
    ]


def _shared(calls: Sequence[CallByHand]) -> tuple[str, ...]:
    """Return the words that all commands begin with, if they are worth a function."""
    columns = zip(*(call.words for call in calls), strict=False)
    same = itertools.takewhile(
        lambda words: len(set(words)) == 1 and NEW_ID not in words[0], columns
    )
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


def _lines(call: CallByHand, shared: int, places: Mapping[str, str], answer: str) -> list[str]:
    words = [_FUNCTION] * bool(shared)
    words += [_quoted(word, places) for word in call.words[shared:]]
    line = " ".join(words)
    if len(line) > _COMMAND_CHARACTERS_MAX:
        line = f"# {call.rpc} is left out: it has an argument of {len(line)} characters."
    return [line, *([f": answered {shlex.quote(answer)}"] if answer else [])]


def _quoted(word: str, places: Mapping[str, str]) -> str:
    """Return a word for a shell, with variables at their places."""
    pattern = "|".join(f"(?P<{name}>{place})" for name, place in places.items())
    pieces = []
    end = 0
    for match in re.finditer(pattern, word) if pattern else ():
        pieces += [_literal(word[end : match.start()]), f'"${match.lastgroup}"']
        end = match.end()
    pieces.append(_literal(word[end:]))
    return "".join(pieces) or "''"


def _literal(text: str) -> str:
    r"""Quote a text; what is not printable is written as an escape of `$'...'`."""
    if text.isprintable():
        return shlex.quote(text) if text else ""
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return "$'" + "".join(_escape(each) for each in escaped) + "'"


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\{code:03o}" if character.isascii() else f"\\U{code:08x}"
