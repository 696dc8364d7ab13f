"""The numbers that an input accepts, from a command line, a variable or a TOML file."""

import re
from dataclasses import dataclass
from typing import Final

# ASCII digits only: `float` and `int` accept those of every script. The lengths bound the work.
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?")
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,30}")


@dataclass(frozen=True, slots=True)
class Number:
    """The numbers that an input accepts.

    Attributes:
        lowest, highest: inclusive bounds, in the unit that the input's name has.
        whole: accept whole numbers only.
    """

    lowest: float
    highest: float
    whole: bool = False

    def accept(self, value: object) -> float:
        """Return the number for a text or a TOML value; an int if `whole`.

        Raises:
            ValueError: it is not accepted; the text is `requirement`.
        """
        number = self._parsed(value) if isinstance(value, str) else value
        kinds = (int,) if self.whole else (int, float)
        if (
            isinstance(number, bool)
            or not isinstance(number, kinds)
            or not self.lowest <= number <= self.highest  # rejects NaN, too
        ):
            raise ValueError(self.requirement())
        return number if self.whole else float(number)

    def accept_whole(self, value: object) -> int:
        """Return `accept` of an input that is `whole`, with its type.

        Raises:
            ValueError: see `accept`.
        """
        return int(self.accept(value))

    def _parsed(self, text: str) -> float | None:
        if self.whole:
            return int(text) if _WHOLE.fullmatch(text) else None
        return float(text) if _NUMBER.fullmatch(text) else None

    def requirement(self) -> str:
        """Return what a value must be, to follow the words "it must be"."""
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {_plain(self.lowest)} to {_plain(self.highest)}"


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"
