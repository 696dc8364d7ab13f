"""The commands of `python -m loadtests`."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from harness.dialects.dialect import CANONICAL
from harness.dialects.load import load_dialect
from harness.program import arguments
from harness.record.verdict import BrokenError
from harness.run.run_directory import fill_seed, new_run_directory
from loadtests import compare as comparison
from loadtests import overview
from loadtests import sweep as sweeps
from loadtests.charts import write_png
from loadtests.figures import LIMITS, figure_named
from loadtests.judge import Strictness
from loadtests.limits import MachineLimits
from loadtests.profile_file import load_profiles
from loadtests.profiles import MORE, PROFILES, Profile, accept_limit, named
from loadtests.report import print_report, print_result, write_all
from loadtests.results import (
    FOLDER,
    Comparison,
    LoadReport,
    about,
    beside_plain,
    load_report,
)
from loadtests.session import LOCAL, Point, ServerChoice, Session, fold_and_judge
from loadtests.statistics import PAIRS_MAX, PAIRS_MIN

Command = Callable[..., None]

_PATH: Final = click.Path(path_type=Path)
_SERVER: Final = (
    click.option(
        "--target", type=arguments.target((LOCAL,)), default=LOCAL, show_default=True,
        help="local (launched on this host) or HOST:PORT.",
    ),
    click.option(
        "--launch", type=arguments.LAUNCH, default="",
        help="Command that starts another server than ours; {listen} {ca} {cert} {key} are "
        "replaced.",
    ),
    click.option(
        "--flags", type=arguments.LAUNCH, default="", help="Words added to the launch command."
    ),
    click.option(
        "--dialect", metavar="DIALECT", default=CANONICAL.name, show_default=True,
        help="How the server is spoken to: a TOML file, or the name of a built-in dialect.",
    ),
)  # fmt: skip
_COMMON: Final = (
    click.option(
        "--identities", type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Certificates created by `python -m harness identities`; default: new ones.",
    ),
    click.option("--profiles", type=_PATH, help="TOML file with your own profiles."),
    click.option(
        "--limit", "limits", multiple=True,
        help="FIGURE=NUMBER: a bound for every load; repeatable. A load that lacks the figure is "
        "BROKEN. "
        f"FIGURE is one of {', '.join(LIMITS)}.",
    ),
    click.option(
        "--noisy", is_flag=True,
        help="Other programs keep the machine busy: disturbed loads are SKIPPED, not BROKEN.",
    ),
    click.option("--out", type=_PATH, help="Directory for records and report; default: a new one "
                 "in results/load/."),
)  # fmt: skip


def _with(options: tuple[Callable[[Command], Command], ...]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _strictness(limits: tuple[str, ...], *, noisy: bool) -> Strictness:
    found = {}
    for text in limits:
        name, _, value = text.partition("=")
        try:
            found[name] = accept_limit(name, value)
        except BrokenError as error:
            raise BrokenError(f"--limit {text!r}: {error}; write FIGURE=NUMBER") from error
    return Strictness(found, noisy=noisy)


def _options(words: tuple[str, ...]) -> tuple[tuple[str, int | str], ...]:
    pairs = [word.partition("=") for word in words]
    for name, _, value in pairs:
        if not (name and value):
            raise BrokenError(f"--client {name!r} has no value; write NAME=VALUE")
    return tuple(sweeps.channel_option(name, value) for name, _, value in pairs)


def _own(profiles: Path | None) -> tuple[Profile, ...]:
    return load_profiles(profiles) if profiles else ()


def _report(
    kind: str,
    facts: Mapping[str, str],
    limits: MachineLimits,
    session: Session,
    strictness: Strictness,
) -> LoadReport:
    about = {**facts, **limits.facts()}
    results = tuple(session.results)
    return LoadReport(kind, about, limits.mb_per_s, results, strictness=strictness)


def _finish(report: LoadReport, directory: Path) -> None:
    write_all(report, directory)
    print_report(report, directory)
    sys.exit(report.exit_code)


def _server(chosen: dict[str, Any]) -> ServerChoice:
    names = ("target", "launch", "flags", "identities")
    dialect = load_dialect(chosen["dialect"])
    return ServerChoice(**{name: chosen[name] for name in names}, dialect=dialect)


@click.command()
@click.argument("names", nargs=-1, metavar="[PROFILE]...")
@click.option("--list", "listing", is_flag=True, help="List the profiles and exit.")
@click.option("--client", multiple=True, help="gRPC option NAME=VALUE of the readers' connections.")
@_with(_SERVER)
@_with(_COMMON)
def run(names: tuple[str, ...], *, listing: bool, client: tuple[str, ...], **chosen: Any) -> None:  # noqa: ANN401 - click's own types
    """Run loads. Exit code 0: reached and kept, 1: a promise or limit was broken, 2: BROKEN."""
    own = _own(chosen["profiles"])
    if listing:
        for profile in named(names, own) if names or own else (*PROFILES, *MORE):
            by_name = " (by name only)" if profile in MORE else ""
            click.echo(f"{profile.name:16} {profile.about}{by_name}")
        return
    profiles = named(names, own)
    server = _server(chosen)
    server.require()
    strictness = _strictness(chosen["limits"], noisy=chosen["noisy"])
    options = _options(client)
    directory = new_run_directory(chosen["out"], FOLDER)
    facts = about(server.describe())
    _print_about(facts)
    with server.store() as store:
        session = Session(server, store, directory, strictness, print_result)
        limits = session.measure_limits()
        session.run_all([Point(profile, options=options) for profile in profiles])
    report = _report("run", facts, limits, session, strictness)
    _finish(report, directory)


@click.command()
@click.argument("name", required=False, metavar="[SWEEP]")
@click.option("--list", "listing", is_flag=True, help="List the sweeps and exit.")
@click.option("--profile", default="", help="Vary this profile over the axes of --over.")
@click.option(
    "--over",
    multiple=True,
    help="NAME=VALUE,VALUE,...: an axis; repeatable. See loadtests/sweep.py.",
)
@click.option(
    "--rounds",
    type=arguments.whole(1, 1000),
    default=1,
    show_default=True,
    help="Runs of each point.",
)
@click.option("--seed", default="", help="Seed of the random order; default: a new one.")
@_with(_SERVER)
@_with(_COMMON)
def sweep(name: str | None, *, listing: bool, **chosen: Any) -> None:  # noqa: ANN401 - as above
    """Run one load repeatedly, changing one thing at a time, and draw the effects."""
    if listing:
        for each in sweeps.SWEEPS:
            click.echo(f"{each.name:16} {each.about}")
        return
    chosen_sweep = _sweep(name, chosen)
    server = _server(chosen)
    server.require()
    strictness = _strictness(chosen["limits"], noisy=chosen["noisy"])
    seed = fill_seed(chosen["seed"])
    points = sweeps.points(chosen_sweep, chosen["rounds"], seed)
    directory = new_run_directory(chosen["out"], FOLDER)
    facts = {"sweep": chosen_sweep.name, "seed": seed, **about(server.describe())}
    _print_about(facts)
    with server.store() as store:
        session = Session(server, store, directory, strictness, print_result)
        limits = session.measure_limits()
        session.run_all(points)
    report = _report("sweep", facts, limits, session, strictness)
    _finish(report, directory)


def _sweep(name: str | None, chosen: Mapping[str, Any]) -> sweeps.Sweep:
    axes = tuple(sweeps.parse_axis(text) for text in chosen["over"])
    if name:
        found = sweeps.named(name)
        return dataclasses.replace(found, axes=axes) if axes else found
    if not (chosen["profile"] and axes):
        raise BrokenError("give a sweep (--list shows them), or --profile and --over")
    [profile] = named((chosen["profile"],), _own(chosen["profiles"]))
    return sweeps.Sweep(profile.name, profile.about, profile, axes)


@click.command()
@click.argument("a", type=arguments.SERVER)
@click.argument("b", type=arguments.SERVER)
@click.option("--profile", default="replay", show_default=True, help="The load.")
@click.option("--figure", default="rate_mb_per_s", show_default=True, help="The figure to compare.")
# With 12 a single disturbed run cannot decide the result; with 10 it can.
@click.option(
    "--pairs",
    type=arguments.whole(PAIRS_MIN, PAIRS_MAX),
    default=12,
    show_default=True,
    help="Number of A/B pairs; the A/A control runs the same number.",
)
@click.option(
    "--allow",
    "allowed",
    type=arguments.number(0, 1000),
    default=5.0,
    show_default=True,
    help="Percentage by which B may be worse.",
)
@click.option("--seed", default="", help="Seed of the random order; default: a new one.")
@_with(_COMMON)
def compare(a: str, b: str, *, allowed: float, **chosen: Any) -> None:  # noqa: ANN401 - as above
    """Compare servers A and B, each `ours`, `ours FLAGS`, a launch command or HOST:PORT.

    First A against itself (control). Exit code 0: B is not worse, 1: B is worse, 2: inconclusive.
    """
    [profile] = named((chosen["profile"],), _own(chosen["profiles"]))
    seed = fill_seed(chosen["seed"])
    question = comparison.Question(
        _choice(a, chosen["identities"]),
        _choice(b, chosen["identities"]),
        dataclasses.replace(profile, limits={}),
        figure_named(chosen["figure"]),
        chosen["pairs"],
        allowed / 100,
        seed,
    )
    for server in (question.a, question.b):
        server.require()
    strictness = _strictness(chosen["limits"], noisy=chosen["noisy"])
    directory = new_run_directory(chosen["out"], FOLDER)
    facts = {"A": question.a.describe(), "B": question.b.describe(), "seed": seed, **about("A, B")}
    _print_about(facts)
    with question.a.store() as store:
        session = Session(question.a, store, directory, strictness, print_result)
        found, conclusions = comparison.run_comparison(session, question)
    report = LoadReport(
        "compare", facts, {}, tuple(session.results), found, tuple(conclusions), strictness
    )
    _finish(report, directory)


def _choice(text: str, identities: Path | None) -> ServerChoice:
    word, _, rest = text.partition(" ")
    if word == arguments.OURS:
        return ServerChoice(flags=rest, identities=identities)
    if "{listen}" in text:
        return ServerChoice(launch=text, identities=identities)
    return ServerChoice(target=text, identities=identities)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--png", type=_PATH, help="Also write the run's overall pictures to this directory, as PNG."
)
@_with(_COMMON[2:4])
def report(directory: Path, *, png: Path | None, limits: tuple[str, ...], noisy: bool) -> None:
    """Fold, judge and report a recorded run again, without a server.

    It is judged with its original --limit and --noisy options, and those given here.
    """
    saved = load_report(directory)
    strictness = _strictness(limits, noisy=noisy or saved.strictness.noisy)
    strictness = Strictness({**saved.strictness.limits, **strictness.limits}, strictness.noisy)
    results = []
    for result in saved.results:
        if result.figures.is_empty:
            results.append(result)  # it was not recorded, and its findings give the reason
            continue
        figures, findings, histogram = fold_and_judge(directory / result.directory, strictness)
        results.append(
            dataclasses.replace(
                result, figures=figures, findings=tuple(findings), histogram=histogram
            )
        )
        print_result(results[-1])
    again = dataclasses.replace(saved, results=beside_plain(results), strictness=strictness)
    if again.comparison is not None:
        again = _compare_again(again, again.comparison)
    if png is not None:
        _write_pngs(again, png)
    _finish(again, directory)


def _compare_again(of: LoadReport, saved: Comparison) -> LoadReport:
    """Return a comparison with its pairs made from its results, as these are judged now."""
    try:
        question = comparison.question_of(saved)
    except BrokenError as error:
        click.echo(f"the saved conclusion is kept: {error}")
        return of
    found, conclusions = comparison.conclude(question, of.results)
    return dataclasses.replace(of, comparison=found, conclusions=tuple(conclusions))


def _write_pngs(of: LoadReport, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    name = of.about.get("sweep", of.kind)
    for number, draw in enumerate(overview.drawings(of)):
        write_png(draw, directory / f"load-{name}-{number}.png")


def _print_about(facts: Mapping[str, str]) -> None:
    for name, value in facts.items():
        click.echo(click.style(f"{name:12}", dim=True) + value)
    click.echo()
