"""A load on a server with another API, by its dialect."""

import asyncio
import contextlib
import dataclasses
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec
import pytest

from harness.dialects.dialect import AsyncStream
from harness.dialects.launch_recipe import LaunchTable
from harness.dialects.load import load_dialect
from harness.dialects.stub import DialectError
from harness.drive.identities import make_identities
from harness.record.verdict import BrokenError
from harness.targets.local import LocalTarget
from loadtests.generator import Generator, Setting
from loadtests.metrics import read_load
from loadtests.pacer import steady
from loadtests.profiles import Profile, Storm
from loadtests.reader_process import StreamOrder, StreamReader
from loadtests.record import EARLY
from loadtests.session import ServerChoice

DIALECT = Path(__file__).parents[1] / "dialects" / "required.toml"
COMMAND = (
    "{python} -m tests.support.foreign_server required --listen {listen} --ca {ca} --cert {cert} "
    "--key {key}"
)


def test_a_load_reads_resumes_starts_and_stops_by_a_dialect(tmp_path: Path) -> None:
    dialect = load_dialect(str(DIALECT))
    store = make_identities(tmp_path / "identities", scheme=dialect.identities)
    # The readers disconnect and resume, of a server that knows no offsets.
    profile = Profile(
        "small", "small", 1000, steady(50, 1.0), streamers=3, storm=Storm(5, 1.0, 2),
        cut_every_bytes=20_000,
    )  # fmt: skip
    with LocalTarget(store, COMMAND, {}).launch() as server:
        setting = Setting(server, store.files("admin"), tmp_path / "load", dialect=dialect)
        Generator(profile, setting).run()
    load = read_load(tmp_path / "load").load
    assert load.exit_code == 0
    assert [(each.code, each.wrong, each.missed_bytes) for each in load.streams] == 3 * [
        ("OK", "", 0)
    ]
    assert all(each.checked_bytes >= 50_000 and each.connections > 1 for each in load.streams)
    assert [process.failures for process in load.processes if process.kind == "storm"] == [{}]


def test_a_server_is_launched_by_its_dialects_recipe_unless_a_command_is_given(
    tmp_path: Path,
) -> None:
    table = {"command": "server {listen}", "environment": {"COLOUR": "blue"}}
    recipe = msgspec.convert(table, LaunchTable).recipe(tmp_path)
    dialect = dataclasses.replace(load_dialect(str(DIALECT)), launch=recipe)
    store = make_identities(tmp_path / "identities", scheme=dialect.identities)

    def words(**chosen: Any) -> str:
        target = ServerChoice(**chosen, dialect=dialect).make_target(store, "--more")
        assert isinstance(target, LocalTarget)
        return re.sub(r"127.0.0.1:\d+", "ADDRESS", target.command_line("root"))

    assert words(flags="--some") == "env COLOUR=blue server ADDRESS --some --more"
    assert words(launch="other {listen}") == "env other ADDRESS --more"
    assert "server {listen}" in ServerChoice(dialect=dialect).describe()


def test_a_dialect_without_a_recipe_wants_a_server() -> None:
    with pytest.raises(BrokenError, match="which server\\? Give --launch COMMAND or --target, or"):
        ServerChoice(dialect=load_dialect(str(DIALECT))).require()


def test_a_stream_that_the_dialect_cannot_make_is_a_failed_stream_and_no_crash() -> None:
    def follow(*_: object) -> AsyncStream:
        raise DialectError(grpc.StatusCode.INVALID_ARGUMENT, "not sent: 'x' is no number")

    process: Any = SimpleNamespace(
        now_ns=time.monotonic_ns, channel=contextlib.nullcontext,
        transport=SimpleNamespace(follow=follow),
    )  # fmt: skip
    end = asyncio.run(StreamReader(StreamOrder(0, "x", "seed", 1000, EARLY, 1.0), process).run())

    assert (end.code, end.detail) == ("INVALID_ARGUMENT", "not sent: 'x' is no number")
