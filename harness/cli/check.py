"""`python -m harness check` and `recheck`."""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import click

from harness.checks import ALL
from harness.checks.check import Extent
from harness.cli.selection import KNOWN_FAILING, WRITE_KNOWN_FAILING, complete, selection
from harness.dialects.dialect import CANONICAL
from harness.program import arguments
from harness.record.known_failing import KnownFailure, read_known_failing, require_run
from harness.record.results import load_report, save_known_failing
from harness.report import write_all
from harness.report.summary import counted
from harness.report.terminal import Terminal, render_list
from harness.run.choice import LOCAL, VM, Choice
from harness.run.judging import judge_again
from harness.run.session import run_session
from harness.targets.target import OUR_FLAGS

ROUNDS_MAX: Final = 100_000
_NOT_IN_RUN: Final = "the run does not include this check; remove the entry"


def _parse_flags(words: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for word in words:
        name, separator, flag = word.partition("=")
        if not separator or name not in OUR_FLAGS or "{}" not in flag:
            raise click.BadParameter(
                f"{word!r}; write SETTING='--flag {{}}', where SETTING is one of "
                f"{', '.join(OUR_FLAGS)}",
                param_hint="--launch-flag",
            )
        pairs.append((name, flag))
    return tuple(pairs)


@click.command()
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=arguments.target((LOCAL, VM)),
    metavar="TARGET",
    default=("local",),
    show_default=True,
    help="Server to test: local (launched on this host), vm (launched in a VM with cgroup v2) "
    "or HOST:PORT; repeatable.",
)
@click.option(
    "--dialect",
    metavar="DIALECT",
    default=CANONICAL.name,
    show_default=True,
    help="How the servers are spoken to: a TOML file, or the name of a built-in dialect.",
)
@click.option(
    "--launch",
    type=arguments.LAUNCH,
    metavar="COMMAND",
    default="",
    help="Command that starts another server; {listen}, {ca}, {cert} and {key} are replaced.",
)
@click.option(
    "--launch-flag",
    "launch_flags",
    multiple=True,
    metavar="SETTING=FLAG",
    help="That server's flag for a setting, for example max_streams='--max {}'; repeatable.",
)
@click.option(
    "--identities",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of certificates that `identities` generated; default: generate new ones.",
)
@click.option(
    "--list",
    "listing",
    is_flag=True,
    help="List the checks and their guarantees without running them.",
)
@click.option(
    "--rounds",
    type=arguments.whole(1, ROUNDS_MAX),
    default=0,
    show_default="their own",
    metavar="N",
    help="Number of rounds of the checks that work in rounds (limits.crashes, streams.soak).",
)
@KNOWN_FAILING
@WRITE_KNOWN_FAILING
@selection
def check(
    *,
    listing: bool,
    rounds: int,
    launch_flags: tuple[str, ...],
    known_failing_file: Path | None,
    **chosen: object,
) -> None:
    """Test a job worker through its API and the network.

    Exit code 0: no check failed and at least one passed. 1: the server broke a promise, or a check
    passed that is known to fail. 2: inconclusive: the harness or its environment failed, or a skip
    was not allowed.
    """
    choice = Choice(**chosen, launch_flags=_parse_flags(launch_flags))  # type: ignore[arg-type]
    choice = dataclasses.replace(choice, extent=Extent(rounds=rounds))
    if listing:
        render_list(choice.checks())
        return
    choice = complete(choice)
    if known_failing_file is not None:
        known = read_known_failing(known_failing_file)
        checks = {each.name for each in choice.checks()}
        _require_run(known, known_failing_file, checks, choice.targets)
        choice = dataclasses.replace(choice, known_failing=known)
    sys.exit(run_session(choice))


def _require_run(
    known: Sequence[KnownFailure],
    file: Path,
    checks: Collection[str],
    targets: Collection[str],
    **texts: str,
) -> None:
    every_check = [check.name for check in ALL]
    require_run(known, file, every_check=every_check, checks=checks, targets=targets, **texts)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@KNOWN_FAILING
@WRITE_KNOWN_FAILING
def recheck(
    directory: Path, known_failing_file: Path | None, write_known_failing: Path | None
) -> None:
    """Judge a saved run again, without a server.

    DIRECTORY is the run's; its reports are rewritten. The exit code is that of `check`. Without
    --known-failing, the list that the run had applies.
    """
    report = judge_again(load_report(directory), directory, ALL)
    if known_failing_file is not None:
        known = read_known_failing(known_failing_file)
        names = {each.name for each in report.results}
        targets = {each.target for each in report.results}
        _require_run(known, known_failing_file, names, targets, unchosen=_NOT_IN_RUN)
        report = dataclasses.replace(report, known_failing=known)
    with Terminal(total=len(report.results), known=report.known_failing) as terminal:
        terminal.begin(report.about)
        for result in report.results:
            terminal.finished(result)
        write_all(report, directory)
        terminal.end(report, directory)
        if write_known_failing is not None:
            count = save_known_failing(report, write_known_failing)
            terminal.note(f"{counted(count, 'known failure')} in {write_known_failing}")
    sys.exit(report.exit_code)
