"""The badge of a run: badge.svg, a picture of our own, and badge.json for shields.io's endpoint.

It is green only if the run is PASS; how many checks were skipped, or are known to fail, is in it.
"""

import json
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from harness.record.results import RunReport
from harness.record.verdict import Verdict
from harness.report.summary import counted

LABEL: Final = "job worker"
_GREEN: Final = "#0a7a55"
_YELLOW: Final = "#80630a"
_RED: Final = "#b93413"
_GREY: Final = "#59626d"
# About the mean width of a character of the font; `textLength` makes the text as wide.
_CHARACTER_PX: Final = 6.6
_PADDING_PX: Final = 6
_SVG: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{title}">
<title>{title}</title>
<clipPath id="round"><rect width="{width}" height="20" rx="3"/></clipPath>
<g clip-path="url(#round)"><rect width="{left}" height="20" fill="#1f2329"/>\
<rect x="{left}" width="{right}" height="20" fill="{colour}"/></g>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{padding}" y="14" textLength="{left_text}">{label}</text>
<text x="{message_x}" y="14" textLength="{right_text}">{message}</text>
</g>
</svg>
"""


@dataclass(frozen=True, slots=True)
class Badge:
    """A badge's text and its colour, as #rrggbb."""

    message: str
    colour: str

    def to_json(self, *, is_error: bool) -> str:
        """Return it in shields.io's endpoint schema, version 1."""
        values = {
            "schemaVersion": 1,
            "label": LABEL,
            "message": self.message,
            "color": self.colour,
            "isError": is_error,
        }
        return json.dumps(values, indent=1) + "\n"

    def to_svg(self) -> str:
        """Return it as a picture."""
        left_text, right_text = _width_px(LABEL), _width_px(self.message)
        left, right = (text + 2 * _PADDING_PX for text in (left_text, right_text))
        return _SVG.format(
            width=left + right,
            left=left,
            right=right,
            left_text=left_text,
            right_text=right_text,
            padding=_PADDING_PX,
            message_x=left + _PADDING_PX,
            colour=self.colour,
            label=escape(LABEL),
            message=escape(self.message),
            title=escape(f"{LABEL}: {self.message}"),
        )


def badge_of(report: RunReport) -> Badge:
    """Return a run's badge."""
    counts = report.counts()
    known = len(report.known_failures())
    if report.verdict is Verdict.BROKEN:
        return Badge("inconclusive", _GREY)
    if report.verdict is Verdict.FAIL:
        new = counts[Verdict.FAIL] - known
        passed = len(report.unexpected_passes())
        parts = [f"{counted(new, 'check')} failed"] if new else []
        parts += [f"{passed} passed unexpectedly"] if passed else []
        return Badge(", ".join(parts), _RED)
    parts = [f"{counts[Verdict.PASS]} passed"]
    parts += [f"{counts[Verdict.SKIPPED]} skipped"] if counts[Verdict.SKIPPED] else []
    parts += [f"{known} known to fail"] if known else []
    return Badge(", ".join(parts), _YELLOW if known else _GREEN)


def _width_px(text: str) -> int:
    return round(len(text) * _CHARACTER_PX)
