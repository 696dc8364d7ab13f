"""Signals as servers report them: a number, `SIGKILL`, `killed`, `signal: killed (core dumped)`."""

import re
import signal
from collections.abc import Iterable
from typing import Final


def _names() -> dict[str, int]:
    """Return what signals are called, in lower case: by the kernel, and by the C library and Go."""
    names = {}
    for each in signal.valid_signals():
        number = int(each)
        if isinstance(each, signal.Signals):
            names[each.name.lower()] = number
            names[each.name.lower().removeprefix("sig")] = number
        described = signal.strsignal(number)
        if described:
            names[described.lower()] = number
    return names


_NAMES: Final = _names()


def _any_of(names: Iterable[str]) -> str:
    """Return a regular expression of names, the longest first."""
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


# "stopped" or "io" in a sentence names no signal: such a name must follow the word, as in
# "signal: killed", and end there. "sigkill" and "user defined signal 1" are names anywhere.
_FOLLOWS: Final = re.compile(
    rf"\bsig(?:nal)?[: ]\s*({_any_of(_NAMES)})(?=\s*(?:\(core dumped\)|[).,;]|$))"
)
_NAMED: Final = re.compile(
    rf"\b({_any_of(name for name in _NAMES if name.startswith('sig') or 'signal' in name)})(?!\w)"
)
# "user defined signal 1" is a name, of number 10.
_NUMBERED: Final = re.compile(
    r"(?<!defined )(?<!real-time )\bsignal:? (\d{1,9})\b|^\s*(\d{1,9})\s*$"
)
_INT32_MAX: Final = 2**31 - 1


def signal_number(value: object) -> int:
    """Return the number of a reported signal; 0 if it names none."""
    if value is None or isinstance(value, bool):
        return 0
    if isinstance(value, int):
        return value if 0 < value <= _INT32_MAX else 0
    text = str(value).lower()
    whole = text.strip().removeprefix("signal:").removesuffix("(core dumped)").strip()
    if whole in _NAMES:
        return _NAMES[whole]
    text = text.replace("_", " ")
    if number := _NUMBERED.search(text):
        return int(number[1] or number[2])
    named = _NAMED.search(text) or _FOLLOWS.search(text)
    return _NAMES[named[1]] if named else 0
