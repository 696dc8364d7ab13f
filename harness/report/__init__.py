"""Reports of a run: progress on the terminal, and files for people and programs.

`terminal` prints during the run; then `write_all` writes results.json, junit.xml and report.html.
Nothing here judges: verdicts come from the results. Text from servers is escaped and bounded.
"""

from pathlib import Path
from typing import Final

from harness.record.results import RunReport, save_report
from harness.record.whole_file import write_whole
from harness.report.html import Charts, render
from harness.report.junit import to_xml

REPORT_FILE: Final = "report.html"
JUNIT_FILE: Final = "junit.xml"


def write_all(report: RunReport, directory: Path) -> None:
    """Write results.json, junit.xml and report.html into the run's directory.

    The charts are drawn from the histories below that directory. If a history cannot be read or
    drawn, the report says so in place of its charts. Each file is complete or does not exist.

    Raises:
        OSError: the directory cannot be written to.
    """
    save_report(report, directory)
    write_whole(directory / JUNIT_FILE, to_xml(report))
    write_whole(directory / REPORT_FILE, render(report, Charts(directory)))
