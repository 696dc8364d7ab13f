"""The planted slowdown of docs/load.md slows the server, and changes no byte."""

import re
import threading
import time
from pathlib import Path

import pytest

from harness.drive.identities import IdentityStore
from harness.targets.local import LocalTarget
from loadtests.generator import Generator, Setting
from loadtests.metrics import read_load
from loadtests.pacer import flood
from loadtests.profile_file import load_profiles
from loadtests.profiles import Profile
from tests.loadtests.planted_server import slower

ROOT = Path(__file__).parents[2]


def test_planted_server_of_the_docs_changes_no_byte(store: IdentityStore, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "load.md").read_text()
    [command] = re.findall(r"'(\{python\} -m tests\.loadtests\.planted_server [^']*)'", text)
    [path] = re.findall(r"--profiles (tests/loadtests/\S+)", text)
    assert [each.name for each in load_profiles(ROOT / path)] == ["replay-1g"]
    profile = Profile("planted", "", message_bytes=65_536, pace=flood(64), replay=True)
    with LocalTarget(store, command).launch() as server:
        Generator(profile, Setting(server, store.files("admin"), tmp_path)).run()
    [end] = read_load(tmp_path).load.streams
    assert (end.code, end.wrong, end.checked_bytes) == ("OK", "", profile.size_bytes)


@pytest.mark.parametrize(("by", "least_s"), [("0.0", 0.0), ("2.0", 0.04), ("30000us", 0.03)])
def test_planted_delay_is_a_share_or_a_time(by: str, least_s: float) -> None:
    encode = slower(bytes, by)
    assert encode(b"one") == b"one"
    threading.Event().wait(0.02)
    begun_s = time.perf_counter()
    assert encode(b"two") == b"two"
    assert time.perf_counter() - begun_s >= least_s
