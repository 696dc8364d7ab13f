"""Text that came from untrusted servers, made fit to be shown: one door for all kinds of report.

Promises: what leaves here has no character that steers a terminal, that XML 1.0 cannot hold, that
UTF-8 cannot encode or that the eye cannot see, and is no longer than asked for. Markup (`<`, `&`)
is left to who writes it: the escape differs.
"""

from typing import Final

FIELD_CHARACTERS_MAX: Final = 2000
# Of what must be shortened, the begin says what it is and the end how it came out (a traceback).
_HEAD_SHARE: Final = 2 / 3
_KEPT: Final = frozenset("\n\t")


def visible(text: str) -> str:
    r"""Return a text with everything that is not printable as a backslash escape.

    Line feeds and tabs stay. Controls, lone surrogates, format and bidirectional marks, unassigned
    code points and odd spaces become `\x1b`, `\udc80`, `\u202e`.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in _KEPT else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def bounded(text: str, characters_max: int = FIELD_CHARACTERS_MAX) -> str:
    """Return a text, its middle left out when it is longer; says how much was left out."""
    if len(text) <= characters_max:
        return text
    head = int(characters_max * _HEAD_SHARE)
    tail = characters_max - head
    left_out = len(text) - head - tail
    return f"{text[:head]} [... {left_out} characters left out ...] {text[-tail:]}"


def shown(text: str, characters_max: int = FIELD_CHARACTERS_MAX) -> str:
    """Return a text bounded and made visible."""
    return visible(bounded(text, characters_max))


def one_line(text: str, characters_max: int) -> str:
    """Return a text on one line, bounded and made visible."""
    return visible(bounded(" ".join(text.split()), characters_max))
