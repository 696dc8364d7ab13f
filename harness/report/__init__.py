"""What a run is told with: lines while it goes on, and files for people and for programs.

`terminal` talks during the run; after it, `write_all` writes results.json, junit.xml, report.html.
Nothing here judges: verdicts come from the results. What servers said is shown, never obeyed.
"""

from pathlib import Path
from typing import Final

from harness.record.results import RunReport, save_report
from harness.record.whole_file import write_whole
from harness.report.html import Pictures, render
from harness.report.junit import to_xml

REPORT_FILE: Final = "report.html"
JUNIT_FILE: Final = "junit.xml"


def write_all(report: RunReport, directory: Path) -> None:
    """Write results.json, junit.xml and report.html into the run's directory.

    The pictures are drawn from the histories below it; one that cannot be read, or of which nothing
    can be drawn, is said to be so in the report and keeps nothing else from being written. Each
    file is complete or not there.

    Raises:
        OSError: the directory cannot be written to.
    """
    save_report(report, directory)
    write_whole(directory / JUNIT_FILE, to_xml(report))
    write_whole(directory / REPORT_FILE, render(report, Pictures(directory)))
