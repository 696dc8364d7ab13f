"""Arguments, paths and variables are UTF-8, whatever locale the server was started in.

A client cannot know the server's locale. The same words must reach a job byte for byte.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.service import COMMAND, Certificates, client_for, launched_server
from worker_service.client import CallError

WORDS: Final = ("ü€😀", "größer", "", "a b", "\\", "\x7f\n")
PLAIN_C: Final = ("LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0")
GERMAN: Final = "de_DE.ISO-8859-1"


@pytest.fixture(params=["C", GERMAN, "C.UTF-8"])
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """Variables of a server's locale; the German one is made for this test."""
    name: str = request.param
    if name == GERMAN:
        made = subprocess.run(
            ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / name)],
            capture_output=True, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            pytest.skip("localedef has no sources of locales here (Debian: locales)")
        return (f"LC_ALL={name}", f"LOCPATH={tmp_path}", *PLAIN_C[1:])
    return (f"LC_ALL={name}", *PLAIN_C[1:])


@pytest.mark.timeout(120)
def test_texts_reach_a_job_as_utf_8(
    certificates: Certificates, locale: tuple[str, ...], tmp_path: Path
) -> None:
    directory = tmp_path / "wörk€"
    directory.mkdir()
    program = directory / "prögräm€"
    program.write_text('#!/bin/sh\npwd; printf "%s|" "$@"; env | grep -a ^VAR\n')
    program.chmod(0o755)
    environment = {"VAR": "wërt€", "PATH": f"{directory}:{os.environ['PATH']}"}
    with (
        launched_server(certificates, program=("env", *locale, COMMAND)) as (_, address),
        client_for(address, certificates.admin) as client,
    ):
        expected = f"{directory}\n{''.join(f'{word}|' for word in WORDS)}VAR=wërt€\n".encode()
        for name in (program.name, f"./{program.name}", str(program)):
            job_id = client.start(
                name, WORDS, environment=environment, working_directory=str(directory)
            )
            assert b"".join(output.data for output in client.stream(job_id)) == expected
        with pytest.raises(CallError, match="'fehlt€': No such file"):
            client.start("fehlt€")
