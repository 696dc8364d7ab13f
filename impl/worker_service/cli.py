"""The command `worker-service`: the original's commands, words and output, and the usual comforts.

Exit codes: 0 done; 1 the call failed; 2 the command line is wrong; 3 no such job (or program);
4 not allowed; 5 the server cannot be reached or did not answer in time; 130 interrupted;
141 nobody reads the output any more. `stream --exit-status` ends with the job's own.
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

# Options end at the first other word, as in the original (Go's flag package): what follows the
# command belongs to the command.
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

    Who you are is your client certificate: an admin may do everything, a user may query and stream.
    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not allowed, 5 server not reached.
    """  # noqa: D301 - \b is click's mark for lines to keep


_CONNECTION_OPTIONS: Final = (
    click.option(
        "--server", default="localhost:50051", show_default=True, metavar="HOST:PORT",
        envvar="JOBWORKER_SERVER", show_envvar=True, help="The server to call.",
    ),
    click.option(
        "--as", "role", default="admin", show_default=True, metavar="NAME",
        envvar="JOBWORKER_AS", show_envvar=True,
        help="Whose certificate to use: NAME.crt and NAME.key in --certs, as admin or user.",
    ),
    click.option(
        "--certs", default="certs/out", show_default=True, metavar="DIR",
        type=click.Path(path_type=Path), envvar="JOBWORKER_CERTS", show_envvar=True,
        help="Directory with ca.crt and the client certificates.",
    ),
    click.option(
        "--server-name", metavar="NAME", envvar="JOBWORKER_SERVER_NAME", show_envvar=True,
        help="Name to expect in the server's certificate, if not the host's.",
    ),
    click.option(
        "--timeout", type=DURATION, default="10s", show_default=True,
        envvar="JOBWORKER_TIMEOUT", show_envvar=True,
        help="Give up after so long; a stop gets its grace period on top, a stream has no limit.",
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
    """Connect; turn what goes wrong into one line and an exit code."""
    files = CertificateFiles(
        ca=certs / "ca.crt", certificate=certs / f"{role}.crt", key=certs / f"{role}.key"
    )
    options = ClientOptions(server, files, timeout_s=timeout, server_name=server_name)
    end_surely_when_interrupted()
    with _errors_as_one_line(), Client(options) as client:
        yield client


def end_surely_when_interrupted() -> None:
    """Let Ctrl-C end a client even where the exception that it raises is lost.

    An exception that is raised inside a callback of gRPC's is reported and dropped there.
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
        # Python would complain once more when it flushes standard output at exit.
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
    """Knows the one mistake that everybody makes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(
                f"no such option: {error.option_name}. Options of worker-service come before the "
                "program's words; put -- before words of the program that begin with a dash",
                ctx,
            ) from None


@main.command(cls=_StartCommand, context_settings=_OPTIONS_FIRST)
@click.option("-command", "--command", "command", metavar="PROGRAM", help="The program to run.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--cpu", type=CORES, help="CPU limit in cores: 0.5 is half a core.")
@click.option("--memory", type=SIZE, help="Memory limit: 100MiB. Beyond it the job is killed.")
@click.option("--io-weight", type=int, help="Share of disk time, 1 to 10000.")
@click.option("--io-max", type=IO_MAX, multiple=True, help="Disk ceilings. Repeatable.")
@click.option("--pids", type=int, help="Processes and threads at a time.")
@click.option(
    "--env", "environment", multiple=True, metavar="KEY=VALUE", help="A variable. Repeatable."
)
@click.option("--cwd", metavar="DIR", help="Absolute directory on the server to start in.")
@click.option("--stream", "then_stream", is_flag=True, help="Stream the output at once.")
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

    Options come first. Words after the program are split as a shell would split them, but no shell
    runs: a pipe or a `*` is passed on as it is written.

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
        raise click.UsageError(f"the words {shlex.join(words)} cannot be split: {error}") from error
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
            raise click.UsageError(f"--env {pair!r} is not understood; write KEY=VALUE")
        environment[key] = value
    return environment


@main.command()
@click.argument("job_id")
@click.option("--grace", type=DURATION, help="Between SIGTERM and SIGKILL; 0 kills at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_connected
def stop(job_id: str, grace: float | None, as_json: bool, **connection: Any) -> None:
    """End a job and everything it started; returns when it has ended. Admins only."""
    with _client(**connection) as client:
        message = client.stop(job_id, grace)
        if as_json:
            _print_json({"job_id": job_id, "stopped": True, "message": message})
        else:
            click.echo(f"Success! job with id {job_id} stopped.")


@main.command()
@click.argument("job_id")
@click.option("-v", "--verbose", is_flag=True, help="Tell all that is known, not only the state.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_connected
def query(job_id: str, verbose: bool, as_json: bool, **connection: Any) -> None:
    """Tell whether a job is running or has stopped."""
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@_connected
def list_command(as_json: bool, **connection: Any) -> None:
    """List the jobs since the server's start. Admins only."""
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
@click.option("--tail", type=click.IntRange(min=0), help="Start with the last so many lines.")
@click.option("--tail-bytes", type=SIZE, help="Start with the last so many bytes.")
@click.option("--no-follow", is_flag=True, help="End after what is there now.")
@click.option("--exit-status", is_flag=True, help="End with the job's exit code (128+N: signal N).")
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

    When the connection breaks, the error names the offset to go on from with --from-offset.
    """
    given = [value for value in (from_offset, tail, tail_bytes) if value is not None]
    if len(given) > 1:
        raise click.UsageError("give one of --from-offset, --tail and --tail-bytes, not several")
    if exit_status and no_follow:
        raise click.UsageError("--exit-status waits for the job's end; leave --no-follow out")
    wanted = Start(from_offset=from_offset, tail_bytes=tail_bytes, tail_lines=tail)
    with _client(**connection) as client:
        _copy_to_stdout(client.stream(job_id, wanted, follow=not no_follow))
        if exit_status:
            sys.exit(client.query(job_id).shell_exit_code)


def _copy_to_stdout(outputs: Iterator[Output]) -> None:
    """Write as it comes; on a broken connection say where to go on."""
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
        raise CallError(error.code, f"{error}; go on with --from-offset {next_offset}") from None


def _as_dict(job: Job) -> dict[str, object]:
    """Return a job for people and programs: times as text, absent values as None."""

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
    """Let the TOML file's values be the defaults of the other options."""
    if value is not None:
        with _errors_as_one_line():
            ctx.default_map = {**(ctx.default_map or {}), **config.load_toml(value)}


@main.command()
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), is_eager=True, expose_value=False,
    callback=_load_config, envvar="JOBWORKER_CONFIG", show_envvar=True,
    help="TOML file with any of these settings, named without the dashes in front.",
)  # fmt: skip
@with_settings
def serve(**settings: Any) -> None:
    """Serve jobs until SIGTERM or Ctrl-C. Needs cgroup v2 and root, or --no-limits.

    A flag beats the variable, the variable the file.
    Sizes: 64KiB, 100MB. Durations: 5ms, 20s, 10min.
    """
    from worker_service import server  # noqa: PLC0415 - the clients need not load it

    with _errors_as_one_line():
        server.serve(
            config.Settings(**settings),
            announce=lambda address: click.echo(f"listening on {address}"),
        )
