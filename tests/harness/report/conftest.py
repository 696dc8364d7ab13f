"""What the report's tests share."""

import pytest

from harness.record.history import Fact, History
from harness.report.charts import draw


@pytest.fixture(scope="session", autouse=True)
def _fonts() -> None:
    """Draw once before the leak guard counts: matplotlib keeps its font open for the process."""
    usage = {"title": "", "unit": "", "limit": None, "samples": [[0, 0]]}
    draw(History([Fact("usage", usage)]))
