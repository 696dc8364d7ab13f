"""The jobs of the servers that stand in for other people's: a signal reaches no stranger."""

import os
from pathlib import Path

import pytest

from tests.support.foreign_server import Service, Units
from tests.support.original_server import Job


def test_server_that_ends_signals_only_the_jobs_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(Units(), "")
    ended, running = Job(["true"]), Job(["sleep", "60"])
    service.jobs = {"1": ended, "2": running, "3": None}
    assert ended.wait_ended(20)
    signalled = []
    kill = os.killpg

    def killpg(group: int, number: int) -> None:
        signalled.append(group)
        kill(group, number)

    monkeypatch.setattr(os, "killpg", killpg)
    service.close()
    assert running.wait_ended(20)
    assert set(signalled) == {running.process.pid}


def test_group_of_an_ending_job_is_signalled_while_its_number_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = []

    def killpg(group: int, number: int) -> None:
        del number
        stat = Path(f"/proc/{group}/stat").read_text()
        states.append(stat.rpartition(")")[2].split()[0])

    monkeypatch.setattr(os, "killpg", killpg)
    job = Job(["true"])
    assert job.wait_ended(20)
    assert states == ["Z"]
    assert job.process.returncode == 0
