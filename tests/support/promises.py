"""The promises of the API and of the documents, each with an id, and the page that lists them.

Found mechanically: every rpc, field and commented message of the proto with its comment; every
setting with its default and help; every sentence of a page's section that has the mark
`<!-- promises -->`. `python -m tests.support.promises` writes the page anew, keeps what its last
column has, and leaves it empty for a new promise.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from jobworker.v1 import jobworker_pb2 as pb
from worker_service import config
from worker_service.config import Settings

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "promises.md"
PROTO: Final = ROOT / "proto" / "jobworker" / "v1" / "jobworker.proto"
MARK: Final = "<!-- promises -->"
MARKED_PAGES: Final = ("README.md", "DESIGN.md", "docs/security.md")
_ROW: Final = re.compile(r"^\| `(.+?)` \| (.*) \| (.*) \|$")
_DECLARATION: Final = re.compile(
    r"^(?:rpc (?P<rpc>\w+)\(|message (?P<message>\w+) |service |oneof |"
    r"(?:optional |repeated )?[\w.<>, ]+? (?P<field>\w+) = \d+;)"
)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\**\s+(?=[A-Z`*\[])")
_HEADING: Final = re.compile(r"\*\*[^*]+(\*\*)?")  # of a list or of a paragraph
_LINK: Final = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_TITLE: Final = "| promise | words | held by |"


@dataclasses.dataclass(frozen=True, slots=True)
class Promise:
    """One promise.

    Attributes:
        name: its id.
        words: as the document has them, on one line.
    """

    name: str
    words: str


def proto_promises() -> list[Promise]:
    """Return the promises of the proto, in its order; a field without a comment has no words."""
    found = []
    comment: list[str] = []
    message = ""
    for line in map(str.strip, PROTO.read_text().splitlines()):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        declared = _DECLARATION.match(line)
        words = " ".join(comment)
        comment = []
        if declared is None:
            continue
        if name := declared["rpc"]:
            found.append(Promise(name, words))
        elif name := declared["message"]:
            message = name
            found += [Promise(name, words)] if words else []
        elif name := declared["field"]:
            found.append(Promise(f"{message}.{name}", words))
    return found


def declared_names() -> set[str]:
    """Return every rpc and field of the compiled protocol: what `proto_promises` must have."""
    names = {method.name for method in pb.DESCRIPTOR.services_by_name["JobWorker"].methods}
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        names |= {f"{message.name}.{field.name}" for field in message.fields}
    return names


def setting_promises() -> list[Promise]:
    """Return the promises of `serve --help`: each setting's default, bounds and help."""
    return [
        Promise(config.flag(each.name), f"Default {_values(each)}. {each.metadata['help']}")
        for each in dataclasses.fields(Settings)
    ]


def _values(setting: dataclasses.Field[Any]) -> str:
    """Return a setting's default, and its bounds or choices if it has any."""
    default, bounds = setting.default, setting.metadata["rule"].bounds()
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{shown}; {bounds}" if bounds else shown


def page_promises() -> list[Promise]:
    """Return the sentences of the marked sections, numbered in each section."""
    found = []
    for name in MARKED_PAGES:
        for section in re.split(r"^#+ ", (ROOT / name).read_text(), flags=re.MULTILINE):
            heading, _, text = section.partition("\n")
            if MARK not in text:
                continue
            anchor = re.sub(r"\W+", "-", heading.lower()).strip("-")
            found += [
                Promise(f"{Path(name).stem} {anchor} {number}", sentence)
                for number, sentence in enumerate(_sentences(text.partition(MARK)[2]), 1)
            ]
    return found


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a section's paragraphs and list items; no code, no tables."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\d+\. |- )", text):
        if block.strip() and not block.lstrip().startswith("|"):
            words = re.sub(r"^(\d+\.|-) ", "", " ".join(block.split()))
            words = _LINK.sub(r"\1", words)  # it would lead elsewhere from another page
            parts = (part.strip() for part in _SENTENCE_END.split(words))
            yield from (part for part in parts if not _HEADING.fullmatch(part))


def all_promises() -> dict[str, list[Promise]]:
    """Return all promises by the heading that they have on the page."""
    return {
        "The API": proto_promises(),
        "The settings": setting_promises(),
        "The documents": page_promises(),
    }


def rows() -> dict[str, tuple[str, str]]:
    """Return the page's rows: the words and the last column of each id."""
    found = map(_ROW.match, PAGE.read_text().splitlines())
    return {row[1]: (row[2], row[3]) for row in found if row is not None}


def row(promise: Promise, held_by: str) -> str:
    """Return the page's line for a promise."""
    return f"| `{promise.name}` | {promise.words.replace('|', r'\|')} | {held_by} |"


def written_page() -> str:
    """Return the page with all promises; the last columns are those of the page as it is."""
    old = rows()
    by_words = {words: held_by for words, held_by in old.values() if words}
    lines = PAGE.read_text().partition("\n## ")[0].rstrip().splitlines()
    for heading, promises in all_promises().items():
        lines += ["", f"## {heading}", "", _TITLE, "|---|---|---|"]
        for promise in promises:
            words = promise.words.replace("|", r"\|")
            held_by = by_words.get(words) or old.get(promise.name, ("", ""))[1]
            lines.append(row(promise, held_by))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(written_page())
