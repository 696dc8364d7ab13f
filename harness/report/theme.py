"""The theme of every report's page, for checks and loads: stylesheet, templates, and their charts.

The template escapes all text in a page, and `text.visible` makes it printable: no page can forget
it. `drawing` has the theme of the charts themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from harness.report.text import visible


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart.

    Attributes:
        title, caption: plain text, not escaped.
        svg: an `<svg>` element without declaration, metadata, style sheet or fixed size.
    """

    title: str
    caption: str
    svg: str


def page_template(package: str, filters: Mapping[str, Callable[..., Any]]) -> jinja2.Template:
    """Return the template `report.html.j2` of a package, with the stylesheet as `stylesheet`.

    Besides the given filters it has `picture`, which inserts a chart's SVG.
    """
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_finalized,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": _picture, **filters}
    environment.globals["stylesheet"] = _stylesheet()
    source = (resources.files(package) / "report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _stylesheet() -> Markup:
    css = (resources.files("harness.report") / "theme.css").read_text(encoding="utf-8")
    return Markup(f"<style>\n{css}</style>")  # noqa: S704 - this project's own text


def _finalized(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def _picture(chart: Chart) -> Markup:
    return Markup(chart.svg)  # noqa: S704 - matplotlib has escaped the text in it
