"""Locust for real: one master and two workers on loopback, beside our own generator."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.identities import IdentityStore
from harness.targets.local import LocalServer, free_port
from loadtests.generator import Generator, Setting
from loadtests.metrics import fold, read_load
from loadtests.pacer import steady
from loadtests.profiles import Profile

ROOT = Path(__file__).parents[2]
# More streams for each worker than the threads that gevent has by itself.
STREAMERS, RATE_PER_S, SECONDS = 24, 25, 3
LOCUST = (sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py")
END_TIMEOUT_S = 90


@contextmanager
def locust(
    server: LocalServer, store: IdentityStore, log: Path, *words: str
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ, "JOBWORKER_TARGET": server.address, "JOBWORKER_RATE": str(RATE_PER_S),
        "JOBWORKER_IDENTITIES": str(store.directory), "JOBWORKER_SECONDS": str(SECONDS),
    }  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*LOCUST, *words], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_master_and_two_workers_see_what_our_own_generator_sees(
    server: LocalServer, store: IdentityStore, tmp_path: Path
) -> None:
    port = str(free_port())
    logs = [tmp_path / f"{name}.log" for name in ("one", "two", "master")]
    master_words = (
        "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port,
        "--expect-workers", "2", "--expect-workers-max-wait", "60", "--headless",
        # One after the other: who is early waits for who is late.
        "-u", str(STREAMERS), "-r", str(STREAMERS // SECONDS), "--csv", str(tmp_path / "out"),
    )  # fmt: skip
    with ExitStack() as stack:
        for log in logs[:2]:
            words = ("--worker", "--master-host", "127.0.0.1", "--master-port", port)
            stack.enter_context(locust(server, store, log, *words))
        master = stack.enter_context(locust(server, store, logs[2], *master_words))
        code = master.wait(END_TIMEOUT_S)
    said = "\n".join(log.read_text() for log in logs)
    assert code == 0, said
    with (tmp_path / "out_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file) if row["Type"] == "stream"}
    # Two jobs, each followed by half of the streamers; nothing is due before all of them follow.
    messages = STREAMERS * RATE_PER_S * SECONDS
    counts = {name: (row["Request Count"], row["Failure Count"]) for name, row in rows.items()}
    assert counts == {
        "first byte": (str(STREAMERS), "0"), "whole stream": (str(STREAMERS), "0"),
        "latency": (str(messages), "0"), "observed": (str(messages), "0"),
    }, said  # fmt: skip
    whole_bytes = (RATE_PER_S * SECONDS + 1) * 128
    assert float(rows["whole stream"]["Average Content Size"]) == whole_bytes

    profile = Profile("ours", "", pace=steady(RATE_PER_S, SECONDS), streamers=STREAMERS)
    Generator(profile, Setting(server, store.files("admin"), tmp_path / "ours")).run()
    ours_ms = fold(read_load(tmp_path / "ours"))["latency_p50_ms"]
    theirs_ms = float(rows["latency"]["Median Response Time"])
    # Locust rounds to whole ms, and the machine may be busier for one than for the other.
    assert ours_ms / 10 - 1 <= theirs_ms <= 10 * ours_ms + 50, said
