"""Real loads: on our server, another one, a missing one, and one that pauses for two seconds."""

import csv
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.drive.identities import IdentityStore
from harness.host.clock import poll_until
from harness.host.ports import free_port
from harness.targets.local import OUR_COMMAND, LocalServer, LocalTarget
from loadtests.__main__ import main as command
from loadtests.figures import FIGURES
from loadtests.generator import Generator, Setting
from loadtests.metrics import fold, read_load
from loadtests.pacer import flood, steady
from loadtests.profiles import Profile, Storm
from loadtests.results import load_report

ROOT = Path(__file__).parents[2]
QUICK = """
[quick]
about = "a few <b>lines</b> in a second & a half"
streamers = 4
late = 1
rate_per_s = 100
duration_s = 1.5

[quick-replay]
message_bytes = 65536
flood_messages = 64
streamers = 3
replay = true
"""
# It is not this machine that is judged here.
ANY_MACHINE = "floor = { others_cores = 64, steal_cores = 64, generator_lag_p99_ms = 9e9 }\n"


# Runs the command without measuring this machine, which takes longer than these loads.
UNMEASURED = """
from loadtests import limits
from loadtests.__main__ import run
limits.measure = lambda *_: limits.MachineLimits({limits.PLAIN: 1000.0}, 1.0, 1)
run()
"""


def loadtests(*words: str, measured: bool = False) -> subprocess.CompletedProcess[str]:
    program = ["-m", "loadtests"] if measured else ["-c", UNMEASURED]
    return subprocess.run(
        [sys.executable, *program, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def reported(directory: Path) -> int:
    """Report a recorded run again, in this process; return the exit code."""
    with pytest.raises(SystemExit) as ended:
        command.main(["report", str(directory)], standalone_mode=False)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def recorded(profile: Profile, server: LocalServer, store: IdentityStore, path: Path) -> Path:
    Generator(profile, Setting(server, store.files("admin"), path)).run()
    return path


def test_run_leaves_every_report_and_folds_to_the_same_results(
    own_profile: Callable[[str], str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = loadtests(
        "run", "--profiles", own_profile(QUICK), "--noisy", "--out", str(out), measured=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    report = load_report(out)
    assert [result.name for result in report.results] == ["quick", "quick-replay"]
    assert set(report.limits) == {"raw TCP", "Python ssl, one stream", "plain grpcio"}
    page = (out / "report.html").read_text()
    assert "a few &lt;b&gt;lines" in page
    assert page.count("<svg") >= 6
    assert not re.search(r"(src|href)=\"(?!#)", page), "it must need no network"
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    with (out / "results.csv").open() as file:
        assert {"profile", "verdict", *FIGURES} <= set(next(csv.DictReader(file)))
    assert 'jobworker_load_passed{profile="quick"}' in (out / "results.prom").read_text()
    assert (out / report.results[0].directory / "latency.hgrm").read_text().count("\n") > 10
    assert reported(out) == 0
    assert load_report(out).results == report.results


def test_exceeded_limit_fails_the_run(own_profile: Callable[[str], str], tmp_path: Path) -> None:
    path = own_profile(QUICK + ANY_MACHINE)
    words = ("quick-replay", "--profiles", path, "--limit", "rate_mb_per_s=1e9")
    done = loadtests("run", *words, "--out", str(tmp_path / "out"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL" in done.stdout
    assert "want at least 1e+09 MB/s" in done.stdout
    assert reported(tmp_path / "out") == 1


def test_limit_without_its_figure_breaks_the_run(
    own_profile: Callable[[str], str], tmp_path: Path
) -> None:
    path = own_profile(QUICK + ANY_MACHINE)
    words = ("quick-replay", "--profiles", path, "--limit", "latency_p99_ms=1")
    done = loadtests("run", *words, "--out", str(tmp_path / "out"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "it could not be judged; a p99 needs 100 planned messages" in done.stdout


def test_report_of_a_noisy_run_judges_with_noisy(
    own_profile: Callable[[str], str], tmp_path: Path
) -> None:
    # No process wakes without any delay: to this load everything is a disturbance.
    floor = "floor = { generator_lag_p99_ms = 0, rate_share = 0.1 }"
    path = own_profile(f"[touchy]\nrate_per_s = 100\nduration_s = 1\n{floor}\n")
    out = tmp_path / "out"
    done = loadtests("run", "--profiles", path, "--noisy", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIPPED" in done.stdout
    report = load_report(out)
    assert (reported(out), load_report(out)) == (0, report)


def test_unreachable_server_is_broken(store: IdentityStore, tmp_path: Path) -> None:
    words = ("run", "steady-lines", "--target", f"127.0.0.1:{free_port()}")
    done = loadtests(*words, "--identities", str(store.directory), "--out", str(tmp_path / "out"))
    assert done.returncode == 2, done.stdout
    assert "the server cannot be reached" in done.stdout


def test_server_paused_for_2_s_shows_2_s_in_the_tail(
    server: LocalServer, store: IdentityStore, tmp_path: Path
) -> None:
    profile = Profile("paused", "", pace=steady(100, 5), streamers=4)
    waiting = threading.Event()
    pauses_s: list[float] = []

    def pause() -> None:
        waiting.wait(1.0)
        server.signal(signal.SIGSTOP)
        # Signals to a process with many threads take effect in a moment: it counts from then.
        process = psutil.Process(server.pid)
        poll_until(lambda: process.status() == psutil.STATUS_STOPPED or None, 10, "it to stop")
        stopped_s = time.monotonic()
        waiting.wait(2.0)
        pauses_s.append(time.monotonic() - stopped_s)
        server.signal(signal.SIGCONT)

    Generator(profile, Setting(server, store.files("admin"), tmp_path), during=pause).run()
    found = read_load(tmp_path)
    figures = fold(found)
    latency = figures.latency
    # 4 streamers x 100 lines/s were due while it stood, for 2 s 40 % of all. Their latency falls
    # from the whole pause to 0 in steps of 10 ms, the time between two lines: the first one was due
    # so much after the stop at the latest. A share x of all is so above the pause less 5 s times x.
    # Who omits them sees 4 slow messages of 2000.
    step_ms, load_ms = 10, 5000
    pause_ms = pauses_s[0] * 1000
    assert pause_ms >= 2000
    assert latency.max_ms is not None
    assert latency.p99_ms is not None
    assert latency.p90_ms is not None
    assert latency.max_ms >= pause_ms - step_ms
    assert latency.p99_ms >= pause_ms - 0.01 * load_ms - 2 * step_ms
    assert latency.p90_ms >= pause_ms - 0.1 * load_ms - 2 * step_ms
    assert (found.latencies_ns() > 1e9).sum() > 0.15 * len(found.latencies_ns())
    assert figures.rates.asked_per_s == 100
    assert all(end.code == "OK" and not end.wrong for end in found.load.streams)


def test_readers_of_every_kind_receive_every_byte(
    server: LocalServer, store: IdentityStore, tmp_path: Path
) -> None:
    profile = Profile(
        "all", "", message_bytes=4096, pace=steady(200, 2), streamers=8, late=2, slow=2,
        slow_bytes_per_s=50_000, cut_every_bytes=300_000, storm=Storm(10, 2, 4),
    )  # fmt: skip
    found = read_load(recorded(profile, server, store, tmp_path))
    kinds = {end.number: end.kind for end in found.load.streams}
    assert sorted(kinds.values()) == ["early"] * 4 + ["late"] * 2 + ["slow"] * 2
    for end in found.load.streams:
        assert end.wrong == ""
        if end.kind == "slow":
            assert (end.code, end.checked_bytes < profile.size_bytes) == ("LEFT", True)
        else:
            assert (end.code, end.checked_bytes) == ("OK", profile.size_bytes)
            assert 1 < end.connections <= 1 + profile.size_bytes // 300_000
    assert len(found.calls) == 20
    assert (found.calls[:, 3] > 0).all()
    assert found.load.processes[-1].failures == {}


def test_bytes_missing_with_retention_are_those_reported(
    store: IdentityStore, tmp_path: Path
) -> None:
    command = f"{OUR_COMMAND} --no-limits --log-retention 1MiB"
    profile = Profile("kept", "", message_bytes=65_536, pace=flood(128), streamers=2, replay=True)
    with LocalTarget(store, command).launch() as server:
        found = read_load(recorded(profile, server, store, tmp_path))
    for end in found.load.streams:
        assert (end.code, end.wrong) == ("OK", "")
        # All were to come at once, when the load began, however long it takes to begin 2 streams.
        assert end.due_ns == found.load.go_ns <= end.began_ns < end.first_ns
        assert end.missed_bytes > 0
        assert end.checked_bytes + end.missed_bytes == profile.size_bytes


def test_server_with_the_original_fields_only_is_measured(
    store: IdentityStore, tmp_path: Path
) -> None:
    command = (
        "{python} -m tests.support.original_server --listen {listen} --ca {ca} --cert {cert} "
        "--key {key}"
    )
    path = tmp_path / "profiles.toml"
    path.write_text("[cut]\nstreamers=3\nrate_per_s=200\nduration_s=1.5\ncut_every_bytes=9000\n")
    with LocalTarget(store, command).launch() as server:
        done = loadtests(
            "run", "--profiles", str(path), "--target", server.address, "--noisy",
            "--identities", str(store.directory), "--out", str(tmp_path / "out"),
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [result] = load_report(tmp_path / "out").results
    found = read_load(tmp_path / "out" / result.directory).load
    assert all(end.connections > 3 and end.wrong == "" for end in found.streams)
    assert result.figures.server.cpu_s is None


def test_sweep_ends_with_a_report(own_profile: Callable[[str], str], tmp_path: Path) -> None:
    done = loadtests(
        "sweep", "--profile", "quick-replay", "--over", "streamers=1,4", "--over",
        "server:message-size=64KiB", "--over", "client:grpc.http2.bdp_probe=0", "--profiles",
        own_profile(QUICK), "--noisy", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = load_report(tmp_path / "out")
    assert len(report.results) == 4
    assert len({each.labels["axis"] for each in report.results}) == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Effect of each axis" in page
    assert "By streamers, all else equal" in page
