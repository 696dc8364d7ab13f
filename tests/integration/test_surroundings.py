"""Odd surroundings of a server and its client: addresses, directories and variables.

The locale has tests of its own, and so has a proxy.
"""

import os
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.command import command_environment, runner
from tests.support.service import COMMAND, Certificates, launched_server

HOSTILE = "GRPC_SSL_CIPHER_SUITES"
SUITES = "ECDHE-RSA-AES128-SHA:AES128-SHA"


def echo_is_streamed(address: str, certificates: Certificates, **variables: str) -> bool:
    run = runner({**command_environment(address, certificates), **variables})
    done = run("start", "--stream", "echo", "it works")
    return (done.stdout, done.returncode) == ("it works\n", 0)


def speaks_tls_12(address: str) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only the version matters
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ALL:@SECLEVEL=0")
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        try:
            context.wrap_socket(raw).close()
        except (ssl.SSLError, ConnectionError):
            return False
    return True


def test_cipher_variable_of_the_surroundings_changes_nothing(certificates: Certificates) -> None:
    with launched_server(certificates, program=("env", f"{HOSTILE}={SUITES}", COMMAND)) as (
        _,
        address,
    ):
        assert not speaks_tls_12(address)
        assert echo_is_streamed(address, certificates, **{HOSTILE: SUITES})


def test_server_and_client_use_ipv6(certificates: Certificates) -> None:
    with launched_server(certificates, "--listen", "[::1]:0") as (_, address):
        assert address.startswith("[::1]:")
        # The certificate of these tests has no other name.
        assert echo_is_streamed(address, certificates, JOBWORKER_SERVER_NAME="localhost")


def test_certificates_are_read_from_any_directory(tmp_path: Path) -> None:
    directory = tmp_path / 'it\'s a größer "$HOME" 100% dir'
    directory.mkdir()
    certificates = Certificates(directory)
    with launched_server(certificates) as (_, address):
        assert echo_is_streamed(address, certificates)


@pytest.mark.parametrize("stdout", ["a pipe without a reader", "a full device"])
def test_server_serves_without_a_standard_output(certificates: Certificates, stdout: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    if stdout == "a full device":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    files = certificates.server
    with subprocess.Popen(
        [
            COMMAND, "serve", "--no-limits", "--listen", "127.0.0.1:0",
            "--ca", files.ca, "--cert", files.cert, "--key", files.key,
        ],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(writer)
        assert process.stderr is not None
        try:
            said = next((line for line in process.stderr if "listening on" in line), "")
            assert said, "the server has ended"
            address = said.partition("listening on ")[2].split()[0]
            assert echo_is_streamed(address, certificates)
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_server_and_client_run_where_nothing_can_be_written(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/proc")  # not even by root
    with launched_server(certificates) as (_, address):
        assert echo_is_streamed(address, certificates, HOME="/proc", TMPDIR="/proc")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_jobs_run_as_the_user_of_the_setting(certificates: Certificates) -> None:
    with launched_server(certificates, "--job-user", "nobody") as (_, address):
        run = runner(command_environment(address, certificates))
        assert run("start", "--stream", "id", "-un").stdout == "nobody\n"


def test_no_job_gets_a_descriptor_that_the_server_was_given(certificates: Certificates) -> None:
    given = ("sh", "-c", 'exec "$0" "$@" 3</dev/null 4</dev/null', COMMAND)
    finds = "for n in 3 4 5; do test -e /proc/$$/fd/$n && echo $n; done; echo none else"
    with launched_server(certificates, program=given) as (process, address):
        assert os.path.realpath(f"/proc/{process.pid}/fd/3") == "/dev/null"
        run = runner(command_environment(address, certificates))
        assert run("start", "--stream", "sh", "-c", f"'{finds}'").stdout == "none else\n"
