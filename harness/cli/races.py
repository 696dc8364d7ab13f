"""`python -m harness races`: look for races, see one again, and prove that they would be found."""

import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import click

from harness.races.exploration import TECHNIQUES, Exploration, replay, technique_named
from harness.races.failure_report import restore, save, story
from harness.races.planting import (
    SCHEDULES,
    SEEDS,
    PlantedProof,
    PlantedRace,
    load_planted,
    planted_copy,
    prove,
)
from harness.races.scenario import Scenario, load_scenarios, named
from harness.races.server import judge_watched
from harness.races.subprocess_explorer import explore_apart, orders_for
from harness.record.verdict import BrokenError

PARALLEL: Final = 2
_FILES = click.Path(path_type=Path, exists=True)
_SCENARIOS: Final = click.option(
    "--scenarios", type=_FILES, multiple=True, default=("tests/races/scenarios",),
    show_default=True, help="Scenario files, or directories of them; repeatable.",
)  # fmt: skip
_PLANTED: Final = click.option(
    "--planted", "planted_file", type=_FILES, default="tests/races/planted.py", show_default=True,
    help="File with the planted bugs.",
)  # fmt: skip
_SOURCE: Final = click.option(
    "--source", type=_FILES, default="impl", show_default=True,
    help="The source tree that is copied and broken.",
)  # fmt: skip

_WATCH: Final = click.option(
    "--watch", type=_FILES, default="tests/races/server.py", show_default=True,
    help="File that says what the detector watches.",
)  # fmt: skip
_LAUNCH: Final = click.option(
    "--launch",
    default="worker_service serve --listen {listen} --ca {ca} --cert {cert} --key {key} "
    "--no-limits --log-level warning --stop-grace 2s",
    show_default=True,
    help="The server, a Python module with its arguments.",
)
# A bug that the detector finds in a real server, though a few streams only come to it.
CANARY_BUG: Final = "the budget is given back without the lock"
CANARY_CHECKS: Final = "^streams.two-jobs$"
CANARY_VARIABLE: Final = "ByteBudget._held_bytes"


@click.group()
def races() -> None:
    """Find races: searched schedules, a happens-before detector, histories.

    Exit code 0: nothing found, 1: a race (or a planted bug that was missed), 2: nothing can be
    said. Scenarios are described in harness/races/scenario.py, planted bugs in
    harness/races/planting.py.
    """


@races.result_callback()
def _end(code: int) -> None:
    sys.exit(code)


@races.command()
@_SCENARIOS
@click.option("-k", "--keyword", default="", help="Only scenarios with this in their name.")
@click.option(
    "--technique", "techniques", multiple=True,
    type=click.Choice([technique.name for technique in TECHNIQUES]), help="Only this; repeatable.",
)  # fmt: skip
@click.option("--seed", default=1, show_default=True, help="Of all that is left to chance.")
@click.option(
    "--schedules",
    type=int,
    help="How many, where chance decides; default: enough. dfs gets no fewer than its own.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default="results/races", show_default=True,
    help="Directory for what a replay needs.",
)  # fmt: skip
def explore(
    *,
    scenarios: tuple[Path, ...],
    keyword: str,
    techniques: tuple[str, ...],
    seed: int,
    schedules: int | None,
    out: Path,
) -> int:
    """Search the schedules of small models."""
    chosen = [each for each in load_scenarios(scenarios) if keyword in each.name]
    if not chosen:
        raise BrokenError(f"no scenario has {keyword!r} in its name")

    def explored(scenario: Scenario) -> list[Exploration]:
        return explore_apart(scenarios, orders_for(scenario, [seed], schedules, techniques))

    made: list[Exploration] = []
    for scenario, explorations in zip(chosen, _each(explored, chosen), strict=True):
        click.echo(f"{scenario.name:20} {scenario.promise}")
        for exploration in explorations:
            click.echo(f"    {_line(exploration)}")
            if exploration.failure is not None:
                _tell(scenario, exploration, scenarios, out)
        made += explorations
    failed = [each for each in made if each.failure is not None]
    click.echo(
        f"{len(chosen)} scenarios, {sum(each.schedules for each in made)} schedules: "
        + (f"{len(failed)} explorations found something" if failed else "nothing found")
    )
    return 1 if failed else 0


def _line(exploration: Exploration) -> str:
    reached = "all of them" if exploration.exhausted else f"seed {exploration.seed}"
    verdict = "FAIL" if exploration.failure is not None else "PASS"
    return (
        f"{verdict}  {exploration.technique:16} {exploration.schedules:6} schedules, {reached}, "
        f"{exploration.seconds:.1f} s"
    )


def _tell(scenario: Scenario, exploration: Exploration, files: Sequence[Path], out: Path) -> None:
    kept = out / f"{scenario.name}-{exploration.technique}-{exploration.seed}.json"
    save(kept, exploration, files)
    again = f"{sys.executable} -m harness races replay {kept}"
    click.echo("\n" + story(scenario, exploration, again) + "\n")


@races.command("replay")
@click.argument("file", type=_FILES)
def replay_command(*, file: Path) -> int:
    """See a schedule again that `explore` found."""
    exploration, files = restore(file)
    scenario = named(load_scenarios(files), exploration.scenario)
    if exploration.failure is None:
        raise BrokenError(f"{file}: nothing failed in it")
    failure = replay(scenario, technique_named(exploration.technique), exploration.failure)
    if failure is None:
        click.echo(f"PASS  {scenario.name}: this schedule breaks nothing now")
        return 0
    again = f"{sys.executable} -m harness races replay {file}"
    click.echo(story(scenario, dataclasses.replace(exploration, failure=failure), again))
    return 1


@races.command("prove")
@_SCENARIOS
@_PLANTED
@_SOURCE
@click.option("-k", "--keyword", default="", help="Only bugs with this in their name.")
@click.option("--seeds", default=len(SEEDS), show_default=True, help="How many, from 1 up.")
@click.option(
    "--all", "everything", is_flag=True,
    help="Try every technique with every seed, not only those that must find the bug, nor dfs with "
    "the first seed only (takes long).",
)  # fmt: skip
def prove_command(
    *,
    scenarios: tuple[Path, ...],
    planted_file: Path,
    source: Path,
    keyword: str,
    seeds: int,
    everything: bool,
) -> int:
    """Plant bugs in copies of the code, and see them found.

    Prints a table in Markdown: how many schedules and seconds each technique took for each bug.
    """
    bugs = [bug for bug in load_planted(planted_file) if keyword in bug.name]
    if not bugs:
        raise BrokenError(f"no bug has {keyword!r} in its name")
    numbers = range(1, seeds + 1)
    click.echo(
        f"median schedules and seconds until found, over {seeds} seeds"
        f"{'' if everything else ' (dfs: the first)'}; -: not within {SCHEDULES}; (3/5): found "
        "with three of five seeds\n"
    )
    names = [technique.name for technique in TECHNIQUES]
    click.echo(_row("planted bug", names))
    click.echo("|".join(("", *["---"] * (len(names) + 1), "")))
    loaded = load_scenarios(scenarios)

    def proved(race: PlantedRace) -> PlantedProof:
        techniques = () if everything else race.found_by
        orders = orders_for(
            named(loaded, race.scenario), numbers, SCHEDULES, techniques, every_seed=everything
        )
        return prove(race, source, scenarios, orders)

    proofs: list[PlantedProof] = []
    for proof in _each(proved, bugs):
        proofs.append(proof)
        click.echo(_row(proof.race.name, [_cell(proof, name) for name in names]))
        if proof.missed:
            click.echo(f"    MISSED by {', '.join(proof.missed)}, which must find it")
    last = f"**found with every seed, of {len(bugs)}; median seconds**"
    click.echo(_row(last, [_sum(proofs, name) for name in names]) + "\n")
    missed = sum(bool(proof.missed) for proof in proofs)
    click.echo(f"{len(bugs)} bugs planted, {len(bugs) - missed} found by all that must find them")
    return 1 if missed else 0


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {first:<60} | {' | '.join(f'{cell:<16}' for cell in cells)} |"


def _cell(proof: PlantedProof, technique: str) -> str:
    searches = proof.of(technique)
    found = [search for search in searches if search.failure is not None]
    if not searches:
        return ""
    if not found:
        return "-"
    share = "" if len(found) == len(searches) else f" ({len(found)}/{len(searches)})"
    schedules = statistics.median_low(search.schedules for search in found)
    return f"{schedules}{share}, {statistics.median(search.seconds for search in found):.2f} s"


def _sum(proofs: Sequence[PlantedProof], technique: str) -> str:
    """Return how many bugs a technique finds with every seed, and in how many seconds."""
    tried = [searches for proof in proofs if (searches := proof.of(technique))]
    found = [search for searches in tried for search in searches if search.failure is not None]
    if not found:
        return "0" if tried else ""
    always = sum(all(search.failure is not None for search in searches) for searches in tried)
    share = "" if len(tried) == len(proofs) else f" of {len(tried)}"
    return f"{always}{share}, {statistics.median(search.seconds for search in found):.2f} s"


@races.command("server")
@_PLANTED
@_SOURCE
@_WATCH
@_LAUNCH
@click.option("--checks", default="^streams.bursty$", show_default=True, help="What it is put to.")
@click.option("--plant", default="", help="Name of a bug to plant in it first.")
def server_command(
    *, planted_file: Path, source: Path, watch: Path, launch: str, checks: str, plant: str
) -> int:
    """Watch a busy gRPC server from inside.

    Many bursty streamers come to it, as the check says; the detector runs in it.
    """
    if plant:
        with planted_copy(_race_named(load_planted(planted_file), plant), source) as tree:
            watched = judge_watched(watch, launch, checks, tree)
    else:
        watched = judge_watched(watch, launch, checks)
    for text in watched.found:
        click.echo(text)
    click.echo(
        f"{len(watched.found)} races in {watched.accesses} accesses of {watched.threads} threads"
    )
    if not watched.checks_passed:
        click.echo(f"the server did not pass its checks:\n{watched.said}")
    return 1 if watched.found or not watched.checks_passed else 0


@races.command("canary")
@_PLANTED
@_SOURCE
@_WATCH
@_LAUNCH
@click.option("--checks", default=CANARY_CHECKS, show_default=True, help="What it is put to.")
@click.option("--plant", default=CANARY_BUG, show_default=True, help="Name of the bug.")
@click.option(
    "--variable", default=CANARY_VARIABLE, show_default=True, help="What must be found to race."
)
def canary_command(
    *,
    planted_file: Path,
    source: Path,
    watch: Path,
    launch: str,
    checks: str,
    plant: str,
    variable: str,
) -> int:
    """Plant a bug in a real server, and see that the detector in it is not blind."""
    with planted_copy(_race_named(load_planted(planted_file), plant), source) as tree:
        watched = judge_watched(watch, launch, checks, tree)
    if any(f"DATA RACE on {variable}\n" in text for text in watched.found):
        click.echo(f"PASS  a race on {variable} that was planted in the server is found in it")
        return 0
    click.echo(
        f"FAIL  {plant}: no race on {variable} was found in {watched.accesses} accesses of "
        f"{watched.threads} threads; the detector is blind in a server\n{watched.said}"
    )
    return 1


@races.command("all")
@click.pass_context
def all_command(context: click.Context) -> int:
    """Explore, prove, watch a server and try the watch itself: `make race`."""
    parts = (explore, prove_command, server_command, canary_command)
    codes: list[int] = [context.invoke(part) for part in parts]
    return max(codes)


def _race_named(planted: Iterable[PlantedRace], name: str) -> PlantedRace:
    for race in planted:
        if race.name == name:
            return race
    raise BrokenError(f"no planted bug is called {name!r}")


def _each[Thing, Answer](
    function: Callable[[Thing], Answer], things: Sequence[Thing]
) -> Iterator[Answer]:
    """Yield each answer in order, two at a time; the first failure ends it."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        try:
            yield from pool.map(function, things)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
