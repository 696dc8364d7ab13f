"""The command `worker-service`: the original's commands, words and output, plus conveniences.

Exit codes: 0 success; 1 the call failed; 2 usage error; 3 job or program not found; 4 not
authenticated or not permitted; 5 the server is unreachable or did not answer in time;
130 interrupted; 141 standard output was closed. `stream --exit-status` exits with the job's own.
"""

import dataclasses
import datetime as dt
import json
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
import grpc

from worker_service import config
from worker_service.cgroup import IoMax, Limits
from worker_service.client import CallError, Client, ClientOptions, Job, Output, Start
from worker_service.errors import JobWorkerError
from worker_service.options import CORES, DURATION, IO_MAX, SIZE, with_settings
from worker_service.tls import CertificateFiles

EXIT_FAILED: Final = 1
EXIT_NOT_FOUND: Final = 3
EXIT_NOT_ALLOWED: Final = 4
EXIT_UNREACHABLE: Final = 5
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_NO_READER: Final = 128 + signal.SIGPIPE
_INTERRUPT_GRACE_S: Final = 2.0

_EXIT_CODES: Final = {
    grpc.StatusCode.NOT_FOUND: EXIT_NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED: EXIT_NOT_ALLOWED,
    grpc.StatusCode.PERMISSION_DENIED: EXIT_NOT_ALLOWED,
    grpc.StatusCode.UNAVAILABLE: EXIT_UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: EXIT_UNREACHABLE,
}

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
        "--server", default="localhost:50051", show_default=True, metavar="HOST:PORT",
        envvar="JOBWORKER_SERVER", show_envvar=True, help="Address of the server.",
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
        "--server-name", metavar="NAME", envvar="JOBWORKER_SERVER_NAME", show_envvar=True,
        help="Name to verify in the server's certificate, if it differs from the host.",
    ),
    click.option(
        "--timeout", type=DURATION, default="10s", show_default=True,
        envvar="JOBWORKER_TIMEOUT", show_envvar=True,
        help="Deadline of a call; stop adds its grace period, stream has no deadline.",
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
    """Connect; report an error as one line and an exit code."""
    files = CertificateFiles(
        ca=certs / "ca.crt", certificate=certs / f"{role}.crt", key=certs / f"{role}.key"
    )
    options = ClientOptions(server, files, timeout_s=timeout, server_name=server_name)
    exit_on_interrupt()
    with _errors_as_one_line(), Client(options) as client:
        yield client


def exit_on_interrupt() -> None:
    """Make Ctrl-C end a client even if the exception that it raises is lost.

    gRPC logs and drops an exception that is raised inside one of its callbacks.
    """

    def handle(_number: int, _frame: object) -> None:
        timer = threading.Timer(_INTERRUPT_GRACE_S, os._exit, (EXIT_INTERRUPTED,))
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)


@contextmanager
def _errors_as_one_line() -> Iterator[None]:
    try:
        yield
    except CallError as error:
        _fail(f"{error} [{error.code.name}]", _EXIT_CODES.get(error.code, EXIT_FAILED))
    except JobWorkerError as error:
        _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Otherwise Python reports the error again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_NO_READER)


def run() -> None:
    """Run the command line as a program: errors are one line on standard error."""
    try:
        sys.exit(main.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(error.exit_code)
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        hint = f" (try {path} --help)" if path else ""
        _fail(error.format_message() + hint, error.exit_code)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)


def _fail(text: str, exit_code: int) -> None:
    click.echo("worker-service: " + " ".join(text.split()), err=True)
    sys.exit(exit_code)


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
@click.option("-command", "--command", "command", metavar="PROGRAM", help="The program to run.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--cpu", type=CORES, help="CPU limit in cores; 0.5 is half a core.")
@click.option("--memory", type=SIZE, help="Memory limit, like 100MiB; above it a job is killed.")
@click.option("--io-weight", type=int, help="Relative share of disk time, 1 to 10000.")
@click.option("--io-max", type=IO_MAX, multiple=True, help="Disk rate limits. Repeatable.")
@click.option("--pids", type=int, help="Maximum number of processes and threads.")
@click.option(
    "--env", "environment", multiple=True, metavar="KEY=VALUE",
    help="Environment variable. Repeatable.",
)  # fmt: skip
@click.option("--cwd", metavar="DIR", help="Working directory: an absolute path on the server.")
@click.option("--stream", "then_stream", is_flag=True, help="Stream the output after the start.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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
    program, arguments = _split_words(command, words)
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
            arguments,
            limits=limits,
            environment=_split_environment(environment),
            working_directory=cwd,
        )
        if as_json:
            _print_json({"job_id": job_id})
        else:
            click.echo(f"job with id {job_id} started.", err=then_stream)
        if then_stream:
            _copy_to_stdout(client.stream(job_id))


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
@click.argument("job_id")
@click.option("--grace", type=DURATION, help="Time from SIGTERM to SIGKILL; 0 kills at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_connected
def stop(job_id: str, grace: float | None, as_json: bool, **connection: Any) -> None:
    """Stop a job and all its processes; return when it has ended. Admins only."""
    with _client(**connection) as client:
        message = client.stop(job_id, grace)
        if as_json:
            _print_json({"job_id": job_id, "stopped": True, "message": message})
        else:
            click.echo(f"Success! job with id {job_id} stopped.")


@main.command()
@click.argument("job_id")
@click.option("-v", "--verbose", is_flag=True, help="Print all details, not only the state.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_connected
def query(job_id: str, verbose: bool, as_json: bool, **connection: Any) -> None:
    """Report whether a job is running or has stopped."""
    with _client(**connection) as client:
        job = client.query(job_id)
    if as_json:
        _print_json(_as_dict(job))
        return
    click.echo(f"job with id {job_id} {'is running' if job.running else 'has stopped'}.")
    if verbose:
        for key, value in _as_dict(job).items():
            if value not in {None, ""} and key != "job_id":
                click.echo(f"  {key}: {value}")


@main.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@_connected
def list_command(as_json: bool, **connection: Any) -> None:
    """List all jobs since the server started. Admins only."""
    with _client(**connection) as client:
        jobs = client.list_jobs()
    if as_json:
        for job in jobs:
            _print_json(_as_dict(job))
        return
    click.echo(f"{'JOB ID':36}  {'STATE':12}  {'STARTED (UTC)':19}  {'OUTPUT':>12}  COMMAND")
    for job in jobs:
        state = job.status if job.running else f"{job.status} {job.signal or job.exit_code}"
        started = f"{job.started_at:%Y-%m-%d %H:%M:%S}" if job.started_at else "-"
        click.echo(
            f"{job.job_id:36}  {state:12}  {started:19}  {job.log_size_bytes or 0:>12}  "
            f"{shlex.join(job.command)}"
        )


@main.command()
@click.argument("job_id")
@click.option("--from-offset", type=SIZE, help="Start at this byte of the output.")
@click.option("--tail", type=click.IntRange(min=0), help="Start with the last N lines.")
@click.option("--tail-bytes", type=SIZE, help="Start with the last N bytes.")
@click.option("--no-follow", is_flag=True, help="Stop at the current end of the output.")
@click.option("--exit-status", is_flag=True, help="Exit with the job's code (128+N: signal N).")
@_connected
def stream(
    job_id: str,
    from_offset: int | None,
    tail: int | None,
    tail_bytes: int | None,
    no_follow: bool,
    exit_status: bool,
    **connection: Any,
) -> None:
    """Write a job's output to standard output, byte for byte, until the job has ended.

    If the connection breaks, the error names the offset to resume at with --from-offset.
    """
    given = [value for value in (from_offset, tail, tail_bytes) if value is not None]
    if len(given) > 1:
        raise click.UsageError("give only one of --from-offset, --tail and --tail-bytes")
    if exit_status and no_follow:
        raise click.UsageError("--exit-status waits for the job to end; leave out --no-follow")
    wanted = Start(from_offset=from_offset, tail_bytes=tail_bytes, tail_lines=tail)
    with _client(**connection) as client:
        _copy_to_stdout(client.stream(job_id, wanted, follow=not no_follow))
        if exit_status:
            sys.exit(client.query(job_id).shell_exit_code)


def _copy_to_stdout(outputs: Iterator[Output]) -> None:
    """Write output as it arrives; if the connection breaks, report where to resume."""
    next_offset = None
    descriptor = sys.stdout.fileno()
    try:
        for output in outputs:
            if output.missed_bytes:
                click.echo(
                    f"worker-service: {output.missed_bytes} bytes before offset {output.offset} "
                    "are no longer kept by the server",
                    err=True,
                )
            view = memoryview(output.data)
            while view:
                view = view[os.write(descriptor, view) :]
            next_offset = output.offset + len(output.data)
    except CallError as error:
        if next_offset is None:
            raise
        raise CallError(error.code, f"{error}; resume with --from-offset {next_offset}") from None


def _as_dict(job: Job) -> dict[str, object]:
    """Return a job for printing: times as text, absent values as None."""

    def plain(value: object) -> object:
        if isinstance(value, dt.datetime):
            return value.isoformat()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return value

    return {each.name: plain(getattr(job, each.name)) for each in dataclasses.fields(job)}


def _print_json(value: dict[str, object]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def _load_config(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    """Use the TOML file's values as the defaults of the other options."""
    if value is not None:
        with _errors_as_one_line():
            ctx.default_map = {**(ctx.default_map or {}), **config.load_toml(value)}


@main.command()
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), is_eager=True, expose_value=False,
    callback=_load_config, envvar="JOBWORKER_CONFIG", show_envvar=True,
    help="TOML file of settings, named like the options without the leading dashes.",
)  # fmt: skip
@with_settings
def serve(**settings: Any) -> None:
    """Serve jobs until SIGTERM or Ctrl-C. Needs cgroup v2 and root, or --no-limits.

    A flag overrides the variable, which overrides the file.
    Sizes: 64KiB, 100MB. Durations: 5ms, 20s, 10min.
    """
    from worker_service import server  # noqa: PLC0415 - clients do not need it

    with _errors_as_one_line():
        server.serve(
            config.Settings(**settings),
            announce=lambda address: click.echo(f"listening on {address}"),
        )
