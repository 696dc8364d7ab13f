"""Signals as servers report them: a number, `SIGKILL`, `killed`, `signal: killed (core dumped)`."""

import re
import signal
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
_NAMED: Final = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, _NAMES), key=len, reverse=True)) + r")\b"
)

# "user defined signal 1" is a name, of number 10.
_NUMBERED: Final = re.compile(r"(?<!defined )(?<!real-time )\bsignal:? (\d+)|^\s*(\d+)\s*$")


def signal_number(value: object) -> int:
    """Return the number of a reported signal; 0 if it names none."""
    if value is None or isinstance(value, bool):
        return 0
    if isinstance(value, int):
        return max(value, 0)
    text = str(value).lower()
    whole = text.strip().removeprefix("signal:").removesuffix("(core dumped)").strip()
    if whole in _NAMES:
        return _NAMES[whole]
    if number := _NUMBERED.search(text):
        return int(number[1] or number[2])
    named = _NAMED.search(text)
    return _NAMES[named[1]] if named else 0
