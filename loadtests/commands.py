"""The commands of `python -m loadtests`."""

import dataclasses
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from harness.record.verdict import BrokenError
from harness.run.run_directory import new_run_directory
from loadtests import compare as comparison
from loadtests import overview
from loadtests import sweep as sweeps
from loadtests.charts import write_png
from loadtests.judge import Strictness
from loadtests.metrics import FIGURES
from loadtests.profiles import LIMITS, Profile, load_profiles, named
from loadtests.report import tell_end, tell_result, write_all
from loadtests.results import FOLDER, LoadReport, about, load_report
from loadtests.session import Point, ServerChoice, Session, folded
from loadtests.statistics import PAIRS_MAX, PAIRS_MIN

Command = Callable[..., None]
OURS: Final = "ours"

_PATH: Final = click.Path(path_type=Path)
_SERVER: Final = (
    click.option(
        "--target", default="local", show_default=True,
        help="local (launched on this host) or HOST:PORT.",
    ),
    click.option(
        "--launch", default="",
        help="Command that starts another server than ours; {listen} {ca} {cert} {key} are "
        "filled in.",
    ),
    click.option("--flags", default="", help="Words added to the launch command."),
)  # fmt: skip
_COMMON: Final = (
    click.option(
        "--identities", type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Certificates made by `python -m harness identities`; default: new ones.",
    ),
    click.option("--profiles", type=_PATH, help="TOML file with profiles of your own."),
    click.option(
        "--limit", "limits", multiple=True,
        help="FIGURE=NUMBER that must be kept, for every load; repeatable. A load without that "
        "figure is BROKEN. "
        f"FIGURE is one of {', '.join(LIMITS)}.",
    ),
    click.option(
        "--noisy", is_flag=True,
        help="The machine is busy with something else: disturbed loads are SKIPPED, not BROKEN.",
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
            found[name] = float(value)
        except ValueError:
            name = ""
        if name not in LIMITS:
            raise BrokenError(
                f"--limit {text!r}; write FIGURE=NUMBER with one of {', '.join(LIMITS)}"
            )
    return Strictness(found, noisy=noisy)


def _options(words: tuple[str, ...]) -> tuple[tuple[str, int | str], ...]:
    pairs = [word.partition("=") for word in words]
    return tuple(
        (name, int(value) if value.lstrip("-").isdigit() else value) for name, _, value in pairs
    )


def _own(profiles: Path | None) -> tuple[Profile, ...]:
    return load_profiles(profiles) if profiles else ()


def _finish(report: LoadReport, directory: Path) -> None:
    write_all(report, directory)
    tell_end(report, directory)
    sys.exit(report.exit_code)


@click.command()
@click.argument("names", nargs=-1, metavar="[PROFILE]...")
@click.option("--list", "listing", is_flag=True, help="Print the profiles, and run nothing.")
@click.option("--client", multiple=True, help="gRPC option NAME=VALUE of the readers' connections.")
@_with(_SERVER)
@_with(_COMMON)
def run(names: tuple[str, ...], *, listing: bool, client: tuple[str, ...], **chosen: Any) -> None:  # noqa: ANN401 - click's own types
    """Run loads. Exit code 0: reached and kept, 1: something broke or is too slow, 2: broken."""
    profiles = named(names, _own(chosen["profiles"]))
    if listing:
        for profile in profiles:
            click.echo(f"{profile.name:16} {profile.about}")
        return
    server = ServerChoice(chosen["target"], chosen["launch"], chosen["flags"], chosen["identities"])
    strictness = _strictness(chosen["limits"], noisy=chosen["noisy"])
    directory = new_run_directory(chosen["out"], FOLDER)
    facts = about(server.describe())
    _tell_about(facts)
    with server.store() as store:
        session = Session(server, store, directory, strictness, tell_result)
        limits = session.measure_limits()
        session.run_all([Point(profile, options=_options(client)) for profile in profiles])
    report = LoadReport("run", facts, limits, tuple(session.results), strictness=strictness)
    _finish(report, directory)


@click.command()
@click.argument("name", required=False, metavar="[SWEEP]")
@click.option("--list", "listing", is_flag=True, help="Print the sweeps, and run nothing.")
@click.option("--profile", default="", help="Vary this profile, over the axes of --over.")
@click.option("--over", multiple=True, help="NAME=VALUE,VALUE,...; see `loadtests/sweep.py`.")
@click.option("--rounds", default=1, show_default=True, help="How often each point is run.")
@click.option("--seed", default="", help="Repeat an order of chance.")
@_with(_SERVER)
@_with(_COMMON)
def sweep(name: str | None, *, listing: bool, **chosen: Any) -> None:  # noqa: ANN401 - as above
    """Run one load again and again, one thing changed at a time, and draw what it changes."""
    if listing:
        for each in sweeps.SWEEPS:
            click.echo(f"{each.name:16} {each.about}")
        return
    chosen_sweep = _sweep(name, chosen)
    server = ServerChoice(chosen["target"], chosen["launch"], chosen["flags"], chosen["identities"])
    strictness = _strictness(chosen["limits"], noisy=chosen["noisy"])
    seed = chosen["seed"] or secrets.token_hex(4)
    points = sweeps.points(chosen_sweep, chosen["rounds"], seed)
    directory = new_run_directory(chosen["out"], FOLDER)
    facts = {"sweep": chosen_sweep.name, "seed": seed, **about(server.describe())}
    _tell_about(facts)
    with server.store() as store:
        session = Session(server, store, directory, strictness, tell_result)
        limits = session.measure_limits()
        session.run_all(points)
    report = LoadReport("sweep", facts, limits, tuple(session.results), strictness=strictness)
    _finish(report, directory)


def _sweep(name: str | None, chosen: Mapping[str, Any]) -> sweeps.Sweep:
    axes = tuple(sweeps.parse_axis(text) for text in chosen["over"])
    if name:
        found = sweeps.named(name)
        return dataclasses.replace(found, axes=axes) if axes else found
    if not (chosen["profile"] and axes):
        raise BrokenError("name a sweep (--list shows them), or give --profile and --over")
    [profile] = named((chosen["profile"],), _own(chosen["profiles"]))
    return sweeps.Sweep(profile.name, profile.about, profile, axes)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--profile", default="replay", show_default=True, help="The load.")
@click.option("--figure", default="rate_mb_per_s", show_default=True, help="What is compared.")
# With 12 a single run that was disturbed decides nothing; with 10 it can.
@click.option(
    "--pairs",
    type=click.IntRange(PAIRS_MIN, PAIRS_MAX),
    default=12,
    show_default=True,
    help="Of runs; as many for the control.",
)
@click.option(
    "--allow", "allowed", default=5.0, show_default=True, help="Percent that B may be worse."
)
@click.option("--seed", default="", help="Repeat an order of chance.")
@_with(_COMMON)
def compare(a: str, b: str, *, allowed: float, **chosen: Any) -> None:  # noqa: ANN401 - as above
    """Compare servers A and B, each `ours`, `ours FLAGS`, a launch command or HOST:PORT.

    First A against itself. Exit code 0: B is not worse, 1: it is, 2: this machine cannot tell.
    """
    if chosen["figure"] not in FIGURES:
        raise BrokenError(f"no figure {chosen['figure']!r}; there are {', '.join(FIGURES)}")
    [profile] = named((chosen["profile"],), _own(chosen["profiles"]))
    seed = chosen["seed"] or secrets.token_hex(4)
    question = comparison.Question(
        _choice(a, chosen["identities"]),
        _choice(b, chosen["identities"]),
        dataclasses.replace(profile, limits={}),
        chosen["figure"],
        chosen["pairs"],
        allowed / 100,
        seed,
    )
    strictness = _strictness(chosen["limits"], noisy=chosen["noisy"])
    directory = new_run_directory(chosen["out"], FOLDER)
    facts = {"A": question.a.describe(), "B": question.b.describe(), "seed": seed, **about("A, B")}
    _tell_about(facts)
    with question.a.store() as store:
        session = Session(question.a, store, directory, strictness, tell_result)
        found, conclusions = comparison.run_comparison(session, question)
    report = LoadReport(
        "compare", facts, {}, tuple(session.results), found, tuple(conclusions), strictness
    )
    _finish(report, directory)


def _choice(text: str, identities: Path | None) -> ServerChoice:
    word, _, rest = text.partition(" ")
    if word == OURS:
        return ServerChoice(flags=rest, identities=identities)
    if "{listen}" in text:
        return ServerChoice(launch=text, identities=identities)
    return ServerChoice(target=text, identities=identities)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--png", type=_PATH, help="Also write the run's overall pictures here, as PNG.")
@_with(_COMMON[2:4])
def report(directory: Path, *, png: Path | None, limits: tuple[str, ...], noisy: bool) -> None:
    """Fold, judge and report a recorded run again, without a server.

    It is judged as it was: by the limits that it was given and as noisy as it was said to be, and
    by what is said here besides.
    """
    saved = load_report(directory)
    strictness = _strictness(limits, noisy=noisy or saved.strictness.noisy)
    strictness = Strictness({**saved.strictness.limits, **strictness.limits}, strictness.noisy)
    results = []
    for result in saved.results:
        if not result.figures:
            results.append(result)  # nothing was recorded, and its findings say why
            continue
        figures, findings, histogram = folded(directory / result.directory, strictness)
        results.append(
            dataclasses.replace(
                result, figures=figures, findings=tuple(findings), histogram=histogram
            )
        )
        tell_result(results[-1])
    again = dataclasses.replace(saved, results=tuple(results), strictness=strictness)
    if saved.kind == "compare":
        again = _compared_again(again)
    if png is not None:
        _write_pngs(again, png)
    _finish(again, directory)


def _compared_again(of: LoadReport) -> LoadReport:
    """Return a comparison with its pairs made from its results, as these are judged now."""
    try:
        question = comparison.asked_again(of.comparison)
    except BrokenError as error:
        click.echo(f"what it came to is kept as it was: {error}")
        return of
    found, conclusions = comparison.concluded(question, of.results)
    return dataclasses.replace(of, comparison=found, conclusions=tuple(conclusions))


def _write_pngs(of: LoadReport, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    name = of.about.get("sweep", of.kind)
    for number, draw in enumerate(overview.drawings(of)):
        write_png(draw, directory / f"load-{name}-{number}.png")


def _tell_about(facts: Mapping[str, str]) -> None:
    for name, value in facts.items():
        click.echo(click.style(f"{name:12}", dim=True) + value)
    click.echo()


COMMANDS: Final = (run, sweep, compare, report)
