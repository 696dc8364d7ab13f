"""Fixtures of the report's tests."""

import pytest

from harness.record.history import History, UsageCurve
from harness.report.charts import draw


@pytest.fixture(scope="session", autouse=True)
def _fonts() -> None:
    """Draw once before the leak guard counts: matplotlib keeps its font open for the process."""
    draw(History([UsageCurve("", "", None, ((0, 0),))]))
