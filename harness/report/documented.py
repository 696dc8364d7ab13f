"""Where a promise is documented: the rows of the pages of requirements and cases, by their ids."""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PAGES: Final = ("requirements.md", "cases.md")
# In a checkout, and in an installed wheel.
_FOLDERS: Final = (Path(__file__).parents[2] / "docs", Path(__file__).parent)
_RANGE: Final = re.compile(r"([0-9]{1,3})-([0-9]{1,3})")
_ROW: Final = re.compile(r"^\| ([A-Z0-9-]+) \| (.+?) \| [^|]* \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Documented:
    """A requirement or case: its id, its text, and the page that has it."""

    id: str
    text: str
    page: str

    @property
    def name(self) -> str:
        """How people name it: `case 23`, `R-JOB-1`."""
        return f"case {self.id}" if self.id.isdecimal() else self.id


def documented(ids: Iterable[str]) -> list[Documented]:
    """Return the rows of ids in their order; of an id that no page has, the id alone."""
    rows = _rows()
    single = [each for id_ in ids for each in _expanded(id_, rows)]
    return [rows.get(each) or Documented(each, "", "") for each in single]


def _expanded(id_: str, rows: Mapping[str, Documented]) -> list[str]:
    """Return the cases of a range such as `2-7`; of any other id, the id."""
    found = _RANGE.fullmatch(id_)
    if found is None or found[2] not in rows:
        return [id_]
    return [str(number) for number in range(int(found[1]), int(found[2]) + 1)]


@functools.cache
def _rows() -> dict[str, Documented]:
    rows = {}
    for page in _PAGES:
        path = next((folder / page for folder in _FOLDERS if (folder / page).is_file()), None)
        for found in _ROW.finditer(path.read_text(encoding="utf-8") if path else ""):
            rows[found[1]] = Documented(found[1], found[2].replace("`", ""), f"docs/{page}")
    return rows
