"""Sanitises text from untrusted servers, for every kind of report.

Guarantees: the result has no terminal control character, no character that XML 1.0 or UTF-8 cannot
encode, no invisible character, and at most the given length. The caller escapes markup (`<`, `&`),
since the escapes differ between formats.
"""

from typing import Final

FIELD_CHARACTERS_MAX: Final = 2000
# Of a truncated text, the beginning says what it is and the end how it came out (a traceback).
_HEAD_SHARE: Final = 2 / 3
_KEPT: Final = frozenset("\n\t")


def visible(text: str) -> str:
    r"""Return a text with each unprintable character as a backslash escape.

    Line feeds and tabs stay. Controls, lone surrogates, format and bidirectional marks, unassigned
    code points and unusual spaces become `\x1b`, `\udc80`, `\u202e`.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in _KEPT else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def bounded(text: str, characters_max: int = FIELD_CHARACTERS_MAX) -> str:
    """Return a text; if it is longer, its middle is replaced by the number of characters cut."""
    if len(text) <= characters_max:
        return text
    head = int(characters_max * _HEAD_SHARE)
    tail = characters_max - head
    left_out = len(text) - head - tail
    return f"{text[:head]} [... {left_out} characters left out ...] {text[-tail:]}"


def shown(text: str, characters_max: int = FIELD_CHARACTERS_MAX) -> str:
    """Return a text truncated and made printable."""
    return visible(bounded(text, characters_max))


def one_line(text: str, characters_max: int) -> str:
    """Return a text on one line, truncated and made printable."""
    return visible(bounded(" ".join(text.split()), characters_max))
