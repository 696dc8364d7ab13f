"""The theme of every chart, for checks and loads. Only this and its users import matplotlib.

The colours are CSS variables with fallbacks that colour-blind people distinguish (Okabe and Ito's
palette).
"""

import io
import re
from contextlib import AbstractContextManager
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from harness.record.verdict import BrokenError

# Inches at 72 points: as wide as a column of the page or a phone, so that text stays readable.
SIZE_INCHES: Final = (6.2, 3.1)
FAINT: Final = "#d8dce1"
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK: Final = "#1f2329"
_VARIABLES: Final = {
    _INK: "var(--chart-ink, #1f2329)",
    FAINT: "var(--chart-grid, #d8dce1)",
    **{colour: f"var(--series-{n}, {colour})" for n, colour in enumerate(SERIES, 1)},
}
_RC: Final[dict[RcKeyType, object]] = {
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0.01,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "jobworker",
    "text.color": _INK,
    "text.parse_math": False,  # a `$` in a label is a `$`
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def drawing_style(background: str = "none") -> AbstractContextManager[None]:
    """Return the context to draw in. Matplotlib reads it when a figure is made and when written."""
    return mpl.rc_context({**_RC, "figure.facecolor": background})


def blank(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return an empty chart."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_axisbelow(True)
    return figure, axes


def svg(figure: Figure, id_prefix: str) -> str:
    """Return a figure as an `<svg>` element without effect on the page around it.

    Args:
        figure: drawn in `drawing_style`; the same data gives the same bytes.
        id_prefix: begins every id in it; must differ between the charts of a page.

    Raises:
        BrokenError: matplotlib wrote something else.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    start = text.find("<svg")
    if start < 0:
        raise BrokenError("matplotlib wrote no <svg>")
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text[start:], flags=re.DOTALL)
    text = re.sub(r'^<svg (.*?)width="\S+" height="\S+" ', r'<svg role="img" \1', text)
    text = text.replace(f"font-family: '{_RC['font.family']}'; ", "")
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{id_prefix}", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": {variable}")
    return re.sub(r'(?<= d=")[^"]+', _shorter, text).strip()


def _shorter(path: re.Match[str]) -> str:
    """Round a path's coordinates to a hundredth of a point: a third of the size, the same look."""
    numbers = re.sub(r"-?\d+\.\d{3,}", lambda each: f"{float(each[0]):.2f}", path[0])
    return " ".join(numbers.split())
