"""Launch recipes: servers that are built, that want files in fixed places, or one fixed port."""

import dataclasses
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.dialects.launch_recipe import PLACEHOLDERS, SETTINGS, LaunchTable
from harness.drive.identities import IdentityStore, make_identities
from harness.host.ports import fixed_port, free_port
from harness.record.verdict import BrokenError, UnsupportedError
from harness.targets.local import LocalTarget
from harness.targets.target import Variant

# Says what it was given, accepts connections and ends them, until SIGTERM.
SERVER = """\
import os, pathlib, socket, sys
for name in sys.argv[2:]:
    print(name, pathlib.Path(name).read_text().splitlines()[0], flush=True)
print("in", os.getcwd(), "with", os.environ.get("COLOUR"), flush=True)
host, _, port = sys.argv[1].rpartition(":")
with socket.create_server((host, int(port))) as listener:
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        try:
            connection.settimeout(5)
            connection.recv(65536)
            connection.sendall(b"no TLS here")
        except OSError:
            pass
        connection.close()
"""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "server.py").write_text(SERVER)
    return tmp_path


def target(folder: Path, identities: IdentityStore, **table: Any) -> LocalTarget:
    command = [sys.executable, "{folder}/server.py", "{listen}", *table.get("files", {})]
    recipe = msgspec.convert({"command": command, **table}, LaunchTable).recipe(folder)
    return LocalTarget(identities, recipe, {})


def test_a_server_finds_its_files_in_a_new_directory_with_its_environment(
    folder: Path, identities: IdentityStore
) -> None:
    launched = target(
        folder, identities, files={"certs/server.crt": "{cert}", "ca.pem": "{ca}"},
        environment={"COLOUR": "blue"}, ready="^listening$",
    )  # fmt: skip

    with launched.launch() as first, launched.launch() as second:
        logs = [first.log_tail(), second.log_tail()]

    directories = [log.partition("in ")[2].partition(" with ")[0] for log in logs]
    assert directories[0] != directories[1]
    assert not any(Path(each).exists() for each in directories)
    for log in logs:
        assert "certs/server.crt -----BEGIN CERTIFICATE-----" in log
        assert "ca.pem -----BEGIN CERTIFICATE-----" in log
        assert "with blue" in log


def test_a_given_directory_is_used_and_its_own_files_are_kept(
    folder: Path, identities: IdentityStore
) -> None:
    (folder / "run" / "certs").mkdir(parents=True)
    given = {"directory": "run", "files": {"certs/ca.crt": "{ca}"}}

    with target(folder, identities, **given).launch() as server:
        assert f"in {folder}/run" in server.log_tail()
    with target(folder, identities, **given).launch():
        pass  # an older link is replaced

    (folder / "run" / "certs" / "ca.crt").unlink()
    (folder / "run" / "certs" / "ca.crt").write_text("mine")
    with (
        pytest.raises(BrokenError, match=r"certs/ca.crt exists; move it away"),
        target(folder, identities, **given).launch(),
    ):
        pass
    assert (folder / "run" / "certs" / "ca.crt").read_text() == "mine"


def test_a_build_command_runs_once_where_the_dialect_is(
    folder: Path, identities: IdentityStore
) -> None:
    launched = target(folder, identities, build="sh -c 'echo built >> built.log'")

    for _ in range(2):
        with launched.launch():
            pass

    assert (folder / "built.log").read_text() == "built\n"


def test_a_build_that_fails_shows_its_output(folder: Path, identities: IdentityStore) -> None:
    launched = target(folder, identities, build="sh -c 'echo no compiler >&2; exit 2'")

    message = r"launch.build: sh failed with exit code 2:\nno compiler"
    with pytest.raises(BrokenError, match=message), launched.launch():
        pass


def test_servers_with_one_address_take_turns_with_the_shared_one(
    folder: Path, identities: IdentityStore
) -> None:
    address = f"127.0.0.1:{free_port()}"
    launched = target(folder, identities, listen=address, ready="^listening$")

    with launched.shared() as shared:
        first = shared.pid
        with launched.launch() as own:
            assert (own.address, shared.address) == (address, address)
            paused = shared.pid
            assert paused is None
            assert not shared.has_died()
            with (
                pytest.raises(UnsupportedError, match="a second server at the same time"),
                launched.launch(),
            ):
                pass
        assert shared.pid not in {None, first}
        assert not shared.has_died()
        assert launched.serial


def test_a_port_that_another_program_uses_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(BrokenError, match=f"port {port}, on which another program listens"),
            fixed_port(port, 0.2),
        ):
            pass
    with fixed_port(port, 5.0):
        pass


def test_every_placeholder_has_a_value_and_braces_can_be_written(
    folder: Path, identities: IdentityStore
) -> None:
    words = [f"{name}={{{name}}}" for name in PLACEHOLDERS]
    recipe = msgspec.convert({"command": ["x", *words, "{{ca}}"]}, LaunchTable).recipe(folder)

    given = shlex.split(LocalTarget(identities, recipe, {}).command_line("/root"))

    assert given[-1] == "{ca}"
    assert f"folder={folder}" in given
    assert not [word for word in given[:-1] if "{" in word]


def test_the_settings_that_have_flags_are_those_that_checks_change() -> None:
    assert set(SETTINGS) == {each.name for each in dataclasses.fields(Variant)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"command": ["no-such-server"]}, "no-such-server"),
        ({"command": ["sh", "-c", "echo wrong flag; exit 2"]}, "during its start:\nwrong flag"),
        ({"directory": "absent"}, "launch.directory: .*absent is not a directory"),
        ({"files": {"a": "/absent"}}, "launch.files: /absent at .*No such file"),
    ],
)
def test_a_server_that_does_not_start_is_broken_and_shows_why(
    folder: Path, identities: IdentityStore, table: dict[str, object], message: str
) -> None:
    with pytest.raises(BrokenError, match=message), target(folder, identities, **table).launch():
        pass


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"command": ""}, "command is empty"),
        ({"command": "a 'b"}, 'command = "a \'b" cannot be split'),
        ({"command": "a", "listen": ":50051"}, "listen = ':50051'; it must be HOST:PORT"),
        ({"command": "a", "listen": "host:99999"}, "it must be HOST:PORT"),
        ({"command": "a", "files": {"/etc/x": "{ca}"}}, "files: '/etc/x'; it must be a path below"),
        ({"command": "a", "files": {"../x": "{ca}"}}, "it must be a path below"),
        ({"command": "a", "flags": {"max_streams": "--max"}}, "write '--flag {}'"),
        ({"command": "a", "flags": {"max_stream": "{}"}}, "unknown 'max_stream'; it may have: max"),
        ({"command": "a", "environment": {"A": "{no}"}}, "environment.A = '{no}': unknown '{no}'"),
        (
            {"command": "a", "files": {"a": "{cret}"}},
            "files.a = '{cret}': unknown '{cret}'; it may",
        ),
        ({"command": ["{ca.foo}"]}, "command = .*: unknown '{ca.foo}'; it may have {listen}, "),
        ({"command": "{}"}, "command = '{}': unknown '{}'"),
        ({"command": "a}"}, "command = 'a}': unknown '}'"),
        ({"command": "a\0"}, "has a NUL"),
        ({"command": "a", "build": ["a\0"]}, "has a NUL"),
        ({"command": "a", "environment": {"A=B": "1"}}, "environment: 'A=B' = '1'; a name must"),
        ({"command": "a", "environment": {"A": "\0"}}, "neither may have a NUL"),
        ({"command": "a", "ready": "("}, r"ready = '\(' is invalid"),
        ({"command": "a", "port": 1}, "unknown field `port`"),
        ({"listen": "a:1"}, "missing required field `command`"),
    ],
)
def test_a_wrong_recipe_is_an_error_that_names_the_key(
    table: dict[str, object], message: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(table, LaunchTable)
