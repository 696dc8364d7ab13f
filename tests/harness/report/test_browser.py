"""The report in a real browser: its text and layout at two widths, and its filter."""

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.host.packages import ensure_programs
from harness.host.processes import run
from tests.harness.report.sample import DRAWN, GUARANTEES, TARGETS, write_sample

HEIGHT = 900
BROWSER_TIMEOUT_S = 60.0
CHARTS = 10  # of the sample: three with streams have three pictures each, one has its usage

PROBE = r"""
const seen = {};
const visible = (element) => element.getClientRects().length > 0;
const names = () => [...document.querySelectorAll(".case")].filter(visible).map((each) => each.id);
const box = (value) => document.querySelector(`#filter [value=${value}]`);
const search = document.querySelector("#filter [type=search]");
const all = ["FAIL", "BROKEN", "SKIPPED", "PASS"];
const set = (verdicts, text) => {
  for (const each of all) box(each).checked = verdicts.includes(each);
  search.value = text;
  search.dispatchEvent(new Event("input", { bubbles: true }));
  return names();
};
const overflow = () =>
  document.documentElement.scrollWidth - document.documentElement.clientWidth;

seen.width = innerWidth;
seen.overflow = overflow();
seen.heading = document.querySelector("h1").innerText;
seen.problems = [...document.querySelectorAll("#problems article")].filter(visible)
  .map((each) => each.innerText.split("\n")[0]);
seen.text = document.body.innerText;
seen.pictures = [...document.querySelectorAll("figure svg")].map((each) => {
  const { left, right, width, height } = each.getBoundingClientRect();
  return { left, right, width, height };
});
const line = document.querySelector("figure svg path[style*=series-1]");
seen.line_colour = getComputedStyle(line).stroke;
seen.every = names();
seen.failed = set(["FAIL"], "");
seen.areas = [...document.querySelectorAll(".area")].filter(visible).map((each) => each.id);
seen.counted = document.getElementById("shown").innerText;
seen.found = set(all, "NOT_FOUND guest");
seen.none = set([], "");
history.replaceState(null, "", "#guest:streams.many-readers");
dispatchEvent(new Event("hashchange"));
seen.followed = names();
seen.opened = document.getElementById("guest:streams.many-readers").querySelector("details").open;
for (const each of document.querySelectorAll("details")) each.open = true;
seen.overflow_when_open = overflow();
seen.copy = document.querySelectorAll(".command button").length;
seen.scripts = document.scripts.length;
parent.document.getElementById("seen").textContent = JSON.stringify(seen);
console.info("probe done");
"""


class Seen(NamedTuple):
    """What the browser saw of the sample."""

    values: dict[str, Any]
    console: list[str]


def look(page: Path, width: int, profile: Path) -> Seen:
    """Open a copy of the page with the probe in it, which the page's policy then must name.

    The page is in a frame, since a window has a minimum width.
    """
    text = page.read_text()
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    probed = page.with_name("probed.html")
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    frame = page.with_name("frame.html")
    frame.write_text(
        f'<!doctype html><pre id="seen"></pre><iframe src="{probed.name}" '
        f'style="border: 0; width: {width}px; height: {HEIGHT}px"></iframe>'
    )
    done = run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--enable-logging=stderr", f"--user-data-dir={profile}"),
            # Lets the probe in the frame write into the page around it.
            *("--allow-file-access-from-files", "--hide-scrollbars"),
            *("--window-size=1400,1000", "--dump-dom", frame.as_uri()),
        ],
        BROWSER_TIMEOUT_S,
    )
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.require("chromium"), re.DOTALL)
    console = re.findall(r"CONSOLE.*?\] (.*)", done.stderr)
    assert found, done.stderr
    return Seen(json.loads(html.unescape(found[1])), console)


@pytest.mark.timeout(900)  # the first time, a browser is installed
@pytest.mark.parametrize("width", [1280, 420])
def test_browser_shows_the_report_and_its_filter_works(width: int, tmp_path: Path) -> None:
    ensure_programs({"chromium": "chromium"})
    write_sample(tmp_path)
    seen, console = look(tmp_path / "report.html", width, tmp_path / "profile")

    # Only the probe's own message: no script was refused, none failed.
    assert [re.sub(r", source:.*", "", each) for each in console] == ['"probe done"']
    assert seen["scripts"] == 2

    assert seen["heading"] == "FAIL"
    assert [re.findall(r"\S+", each)[0] for each in seen["problems"]] == ["FAIL"] * 4 + [
        "BROKEN"
    ] * 2
    assert r"<script>alert('got')</script> \x1b[31mred\x00" in seen["text"]
    assert "1 check skipped without being allowed to" in seen["text"]

    assert seen["width"] == width
    assert (seen["overflow"], seen["overflow_when_open"]) == (0, 0)
    assert len(seen["pictures"]) == CHARTS
    for picture in seen["pictures"]:
        assert picture["left"] >= 0
        assert picture["right"] <= width
        assert picture["width"] > 300
    assert seen["line_colour"] == "rgb(0, 114, 178)"

    assert len(seen["every"]) == len(TARGETS) * len(GUARANTEES)
    assert seen["failed"] == [
        "local:streams.binary",
        "guest:streams.many-readers",
        "guest:limits.cpu",
        "local:roles.no-role",
    ]
    assert seen["areas"] == ["area-streams", "area-limits", "area-roles"]
    assert seen["counted"] == f"4 of {len(seen['every'])}"
    assert seen["found"] == ["guest:jobs.unknown-id"]
    assert seen["none"] == []
    assert seen["followed"] == seen["every"]
    assert seen["opened"]
    assert seen["copy"] > 0


def test_sample_has_the_expected_number_of_charts() -> None:
    drawn = sum(1 if name.startswith("limits") else 3 for _, name in DRAWN)
    assert drawn == CHARTS
