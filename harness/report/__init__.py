"""Reports of a run: progress on the terminal, and files for people and programs.

`terminal` prints during the run; then `write_all` writes the files of the run's directory: for
people report.html and summary.md, for programs results.json, junit.xml, results.sarif and a badge.
Nothing here judges: verdicts come from the results. Text from servers is escaped and bounded.
"""

from pathlib import Path
from typing import Final

from harness.record.results import RunReport, save_report
from harness.record.verdict import BrokenError, Verdict
from harness.record.whole_file import write_whole
from harness.report.badge import badge_of
from harness.report.junit import to_xml
from harness.report.markdown import to_markdown
from harness.report.sarif import to_sarif

REPORT_FILE: Final = "report.html"
JUNIT_FILE: Final = "junit.xml"
SUMMARY_FILE: Final = "summary.md"
SARIF_FILE: Final = "results.sarif"
BADGE_FILE: Final = "badge.json"
BADGE_PICTURE: Final = "badge.svg"


def write_all(report: RunReport, directory: Path) -> None:
    """Write all files of a run's result into its directory.

    The charts are drawn from the histories below that directory. If a history cannot be read or
    drawn, the report says so in place of its charts. Each file is complete or does not exist.

    Raises:
        BrokenError: a file cannot be written.
    """
    try:
        _write_all(report, directory)
    except OSError as error:
        path = error.filename2 or error.filename
        raise BrokenError(f"the reports cannot be written: {path}: {error.strerror}") from error


def _write_all(report: RunReport, directory: Path) -> None:
    # Needed at the end of a run only: a command begins without the modules of templates.
    from harness.report.html import Charts, render  # noqa: PLC0415

    save_report(report, directory)
    write_whole(directory / JUNIT_FILE, to_xml(report))
    write_whole(directory / SUMMARY_FILE, to_markdown(report))
    write_whole(directory / SARIF_FILE, to_sarif(report))
    badge = badge_of(report)
    is_error = report.verdict is not Verdict.PASS
    write_whole(directory / BADGE_FILE, badge.to_json(is_error=is_error))
    write_whole(directory / BADGE_PICTURE, badge.to_svg())
    write_whole(directory / REPORT_FILE, render(report, Charts(directory)))
