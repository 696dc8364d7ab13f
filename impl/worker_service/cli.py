"""The command `worker-service`: the original's commands, words and output, plus conveniences.

Exit codes: 0 success; 1 the call failed; 2 usage error; 3 job or program not found; 4 not
authenticated or not permitted; 5 the server is unreachable or did not answer in time;
130 interrupted; 141 standard output was closed. `stream --exit-status` exits with the job's own.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from worker_service import arguments
from worker_service.cgroup import IoMax, Limits
from worker_service.client import CallError, Client, ClientOptions, Start
from worker_service.config import Settings
from worker_service.options import with_settings
from worker_service.resume import ONCE, Patience, ResumedStream
from worker_service.terminal import (
    EXIT_INTERRUPTED,
    JOB_ROW_HEADER,
    NoReaderError,
    OutputError,
    as_dict,
    copy_output,
    details,
    errors_as_one_line,
    fail,
    install_streams,
    job_row,
    print_json,
    print_line,
    warn,
    warn_of_break,
)
from worker_service.tls import CertificateFiles

_INTERRUPT_GRACE_S: Final = 2.0

# Options end at the first argument, as in the original (Go's flag package): what follows belongs to
# the program.
_OPTIONS_FIRST: Final = {"allow_interspersed_args": False}


@click.group(context_settings={"help_option_names": ["-h", "--help", "-help"]})
@click.version_option(package_name="jobworker", message="worker-service %(version)s")
def main() -> None:
    """Run Linux processes on a server: start, stop, query, and stream their output live.

    \b
    worker-service start -command "sort" "largefile.txt -o sortedfile.txt"
    worker-service stream JOB_ID
    worker-service query JOB_ID
    worker-service stop JOB_ID

    Your client certificate has your role: an admin can call everything, a user query and stream.

    Exit codes: 0 success, 1 failure, 2 usage error, 3 not found, 4 not permitted, 5 unreachable.
    """  # noqa: D301 - \b is click's mark for lines to keep


_CONNECTION_OPTIONS: Final = (
    click.option(
        "--server", type=arguments.TEXT, default="localhost:50051", show_default=True,
        metavar="HOST:PORT", envvar="JOBWORKER_SERVER", show_envvar=True,
        help="Address of the server.",
    ),
    click.option(
        "--as", "role", default="admin", show_default=True, metavar="NAME",
        envvar="JOBWORKER_AS", show_envvar=True,
        help="Client certificate: NAME.crt and NAME.key in --certs, for example admin or user.",
    ),
    click.option(
        "--certs", default="certs/out", show_default=True, metavar="DIR",
        type=click.Path(path_type=Path), envvar="JOBWORKER_CERTS", show_envvar=True,
        help="Directory with ca.crt and the client certificates.",
    ),
    click.option(
        "--server-name", type=arguments.TEXT, metavar="NAME",
        envvar="JOBWORKER_SERVER_NAME", show_envvar=True,
        help="Name to verify in the server's certificate, if it differs from the host.",
    ),
    click.option(
        "--timeout", type=arguments.TIMEOUT, default="10s", show_default=True,
        envvar="JOBWORKER_TIMEOUT", show_envvar=True,
        help="Deadline of a call; stop adds its grace period, stream has one for the connection "
        "only.",
    ),
)  # fmt: skip


def _connected(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_CONNECTION_OPTIONS):
        command = option(command)
    return command


@contextmanager
def _client(
    server: str, role: str, certs: Path, server_name: str | None, timeout: float
) -> Iterator[Client]:
    """Connect; exit on Ctrl-C."""
    files = CertificateFiles(
        ca=certs / "ca.crt", certificate=certs / f"{role}.crt", key=certs / f"{role}.key"
    )
    options = ClientOptions(server, files, timeout_s=timeout, server_name=server_name)
    exit_on_interrupt()
    try:
        with Client(options) as client:
            yield client
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def exit_on_interrupt() -> None:
    """Make Ctrl-C end a client even if the exception that it raises is lost.

    gRPC logs and drops an exception that is raised inside one of its callbacks. Ctrl-C that was
    ignored when the program started, as for a shell's background jobs, stays ignored.
    """

    def handle(_number: int, _frame: object) -> None:
        timer = threading.Timer(_INTERRUPT_GRACE_S, os._exit, (EXIT_INTERRUPTED,))
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handle)


def run() -> None:
    """Run the command line as a program: errors are one line on standard error."""
    install_streams()
    with errors_as_one_line():
        try:
            sys.exit(main.main(standalone_mode=False))
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(error.exit_code)
        except click.ClickException as error:
            context = error.ctx if isinstance(error, click.UsageError) else None
            hint = f" (try {context.command_path} --help)" if context else ""
            fail(error.format_message() + hint, error.exit_code)
        except click.Abort:
            sys.exit(EXIT_INTERRUPTED)


class _StartCommand(click.Command):
    """Explains the most common mistake: the program's options without `--` before them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(
                f"no such option: {error.option_name}. Options of worker-service come before the "
                "program's arguments; put -- before arguments that begin with a dash",
                ctx,
            ) from None


@main.command(cls=_StartCommand, context_settings=_OPTIONS_FIRST)
@click.option(
    "-command",
    "--command",
    "command",
    type=arguments.TEXT,
    metavar="PROGRAM",
    help="The program to run.",
)
@click.argument("words", nargs=-1, type=arguments.TEXT)
@click.option("--cpu", type=arguments.CPU, help="CPU limit in cores; 0.5 is half a core.")
@click.option(
    "--memory", type=arguments.MEMORY, help="Memory limit, like 100MiB; above it a job is killed."
)
@click.option(
    "--io-weight", type=arguments.IO_WEIGHT, help="Relative share of disk time, 1 to 10000."
)
@click.option(
    "--io-max", type=arguments.IO_MAX, multiple=True, help="Disk rate limits. Repeatable."
)
@click.option("--pids", type=arguments.PIDS, help="Maximum number of processes and threads.")
@click.option(
    "--env", "environment", type=arguments.TEXT, multiple=True, metavar="KEY=VALUE",
    help="Environment variable. Repeatable.",
)  # fmt: skip
@click.option(
    "--cwd",
    type=arguments.TEXT,
    metavar="DIR",
    help="Working directory: an absolute path on the server.",
)
@click.option(
    "--stream", "then_stream", is_flag=True,
    help="Stream the output after the start. The job's id then goes to standard error.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the job's id as a JSON object.")
@_connected
def start(
    command: str | None,
    words: tuple[str, ...],
    cpu: int | None,
    memory: int | None,
    io_weight: int | None,
    io_max: tuple[IoMax, ...],
    pids: int | None,
    environment: tuple[str, ...],
    cwd: str | None,
    then_stream: bool,
    as_json: bool,
    **connection: Any,
) -> None:
    """Start a job. Admins only.

    Options come first. The program's arguments are split as a shell splits them, but no shell
    runs: a pipe or a `*` is passed on literally.

    \b
    worker-service start -command "sort" "largefile.txt -o sortedfile.txt"
    worker-service start --cpu 0.5 --memory 100MiB make -j2 all
    worker-service start -command sh -- -c "'echo one; sleep 1; echo two'"
    """  # noqa: D301 - \b is click's mark for lines to keep
    program, program_arguments = _split_words(command, words)
    limits = Limits(
        cpu_millicores=cpu,
        memory_max_bytes=memory,
        io_weight=io_weight,
        io_max=io_max,
        pids_max=pids,
    )
    with _client(**connection) as client:
        job_id = client.start(
            program,
            program_arguments,
            limits=limits,
            environment=_split_environment(environment),
            working_directory=cwd,
        )
        try:
            if as_json:
                print_json({"job_id": job_id}, to_stderr=then_stream)
            else:
                print_line(f"job with id {job_id} started.", to_stderr=then_stream)
        except OutputError as error:
            raise OutputError(f"{error}; job with id {job_id} started") from None
        if limits != Limits():
            _warn_of_ignored_limits(client, job_id)
        if then_stream:
            copy_output(client.stream(job_id))


def _warn_of_ignored_limits(client: Client, job_id: str) -> None:
    """Warn if the server has no limits: one of the original's ignores the added field."""
    try:
        ignored = client.query(job_id).limits is None
    except CallError as error:
        warn(f"warning: whether the server applies the limits is unknown: {error}")
        return
    if ignored:
        warn(
            f"warning: the server does not know limits; job {job_id} runs without those that were "
            "given"
        )


def _split_words(command: str | None, words: tuple[str, ...]) -> tuple[str, list[str]]:
    try:
        split = [part for word in words for part in shlex.split(word)]
    except ValueError as error:
        raise click.UsageError(f"arguments {shlex.join(words)} cannot be split: {error}") from error
    if command is not None:
        return command, split
    if not split:
        raise click.UsageError('name a program: worker-service start -command "sort" "file.txt"')
    return split[0], split[1:]


def _split_environment(pairs: tuple[str, ...]) -> dict[str, str]:
    environment = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--env {pair!r} is invalid; write KEY=VALUE")
        environment[key] = value
    return environment


@main.command()
@click.argument("job_id", type=arguments.TEXT)
@click.option(
    "--grace", type=arguments.GRACE, help="Time from SIGTERM to SIGKILL; 0 kills at once."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_connected
def stop(job_id: str, grace: float | None, as_json: bool, **connection: Any) -> None:
    """Stop a job and all its processes; return when it has ended. Admins only."""
    with _client(**connection) as client:
        message = client.stop(job_id, grace)
        if as_json:
            print_json({"job_id": job_id, "stopped": True, "message": message})
        else:
            print_line(f"Success! job with id {job_id} stopped.")


@main.command()
@click.argument("job_id", type=arguments.TEXT)
@click.option("-v", "--verbose", is_flag=True, help="Print all details, not only the state.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_connected
def query(job_id: str, verbose: bool, as_json: bool, **connection: Any) -> None:
    """Report whether a job is running or has stopped."""
    with _client(**connection) as client:
        job = client.query(job_id)
    if as_json:
        print_json(as_dict(job))
        return
    print_line(f"job with id {job_id} {'is running' if job.running else 'has stopped'}.")
    if job.log_first_offset:
        print_line(f"Its output is kept from byte {job.log_first_offset} to {job.log_size_bytes}.")
    if job.output_error:
        print_line(f"Warning: {job.output_error}.")
    if verbose:
        for name, value in details(as_dict(job)):
            if name != "job_id":
                print_line(f"  {name}: {value}")


@main.command(name="list")
@click.option("--newest-first", is_flag=True, help="Begin with the job that started last.")
@click.option(
    "--status", type=arguments.TEXT, default="", help="List only running, exited or signaled jobs."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@_connected
def list_command(newest_first: bool, status: str, as_json: bool, **connection: Any) -> None:
    """List the jobs that the server knows, and which bytes of their output. Admins only."""
    with _client(**connection) as client:
        jobs = client.list_jobs(newest_first=newest_first, status=status)
        if not as_json:
            print_line(JOB_ROW_HEADER)
        for job in jobs:
            if as_json:
                print_json(as_dict(job))
            else:
                print_line(job_row(job))


@main.command()
@click.argument("job_id", type=arguments.TEXT)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_connected
def delete(job_id: str, as_json: bool, **connection: Any) -> None:
    """Make the server forget an ended job and its output. Admins only."""
    with _client(**connection) as client:
        client.delete(job_id)
    if as_json:
        print_json({"job_id": job_id, "deleted": True})
    else:
        print_line(f"job with id {job_id} deleted.")


@main.command()
@click.argument("job_id", type=arguments.TEXT)
@click.option("--from-offset", type=arguments.OFFSET, help="Start at this byte of the output.")
@click.option("--tail", type=arguments.LINES, help="Start with the last N lines.")
@click.option("--tail-bytes", type=arguments.OFFSET, help="Start with the last N bytes.")
@click.option("--no-follow", is_flag=True, help="Stop at the current end of the output.")
@click.option("--exit-status", is_flag=True, help="Exit with the job's code (128+N: signal N).")
@click.option(
    "--reconnect",
    is_flag=True,
    help="If the connection breaks, or is silent and dead, resume on another one, without a loss.",
)
@click.option(
    "--give-up-after",
    type=arguments.TIMEOUT,
    default="1min",
    show_default=True,
    help="With --reconnect: time without any progress after which the stream fails.",
)
@_connected
def stream(
    job_id: str,
    from_offset: int | None,
    tail: int | None,
    tail_bytes: int | None,
    no_follow: bool,
    exit_status: bool,
    reconnect: bool,
    give_up_after: float,
    **connection: Any,
) -> None:
    """Write a job's output to standard output, byte for byte, until the job has ended.

    If the connection breaks, the error names the offset to resume at with --from-offset, and
    --reconnect resumes there by itself. If the job is gone, since the server was started anew, it
    exits with 3 at once. Output that the server no longer keeps is reported on standard error.
    """
    given = [value for value in (from_offset, tail, tail_bytes) if value is not None]
    if len(given) > 1:
        raise click.UsageError("give only one of --from-offset, --tail and --tail-bytes")
    if exit_status and no_follow:
        raise click.UsageError("--exit-status waits for the job to end; leave out --no-follow")
    wanted = Start(from_offset=from_offset, tail_bytes=tail_bytes, tail_lines=tail)
    with _client(**connection) as client:
        resumed = ResumedStream(
            client.options,
            job_id,
            wanted,
            follow=not no_follow,
            patience=Patience(give_up_after_s=give_up_after) if reconnect else ONCE,
            on_break=warn_of_break,
        )
        copy_output(resumed)
        if exit_status:
            sys.exit(resumed.query().shell_exit_code)


@main.command()
@with_settings
def serve(settings: Settings) -> None:
    """Serve jobs until a signal. Needs cgroup v2 and root, or --no-limits.

    SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGQUIT end all jobs and the server; another one, except
    SIGHUP, kills the jobs at once. Those that are ignored at the start, as SIGHUP by nohup and
    SIGINT and SIGQUIT by sh with &, stay ignored, except SIGTERM.

    A flag overrides the variable, which overrides the file.
    Sizes: 64KiB, 100MB. Durations: 5ms, 20s, 10min.
    """
    from worker_service import server  # noqa: PLC0415 - clients do not need it

    server.serve(settings, announce=_announce)


def _announce(address: str) -> None:
    try:
        print_line(f"listening on {address}")
    except (OutputError, NoReaderError) as error:  # a server may run without a standard output
        warn(f"listening on {address} ({error})")
