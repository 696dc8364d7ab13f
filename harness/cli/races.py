"""`python -m harness races`: find races, replay one, and prove that planted ones are found."""

import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import click

from harness.cli.selftest import SHARE
from harness.program import arguments
from harness.races.exploration import TECHNIQUES, Exploration, find_technique, replay
from harness.races.failure_report import failure_text, load_failure, save_failure
from harness.races.planting import (
    SCHEDULES,
    SEEDS,
    PlantedProof,
    PlantedRace,
    load_planted,
    plant_in_copy,
    prove,
)
from harness.races.scenario import Scenario, find_scenario, load_scenarios
from harness.races.server import judge_under_detector
from harness.races.subprocess_explorer import explore_in_subprocess, plan_explorations
from harness.record.verdict import BrokenError

PARALLEL: Final = 2
SEED: Final = arguments.whole(0, 2**63 - 1)
_FILES = click.Path(path_type=Path, exists=True)
_SHARE: Final = click.option(
    "--share", type=SHARE, default="1/1", show_default=True, metavar="K/N",
    help="Split the scenarios, and the planted races, into N shares, and run share K.",
)  # fmt: skip
_SCENARIOS: Final = click.option(
    "--scenarios", type=_FILES, multiple=True, default=("tests/races/scenarios",),
    show_default=True, help="Scenario file, or directory of scenario files; repeatable.",
)  # fmt: skip
_PLANTED: Final = click.option(
    "--planted", "planted_file", type=_FILES, default="tests/races/planted.py", show_default=True,
    help="Python file that defines PLANTED, the planted races.",
)  # fmt: skip
_SOURCE: Final = click.option(
    "--source", type=_FILES, default="impl", show_default=True,
    help="Source tree to copy and to plant races in.",
)  # fmt: skip

_WATCH: Final = click.option(
    "--watch", type=_FILES, default="tests/races/server.py", show_default=True,
    help="Python file that defines WATCH, the classes that the detector watches.",
)  # fmt: skip
_LAUNCH: Final = click.option(
    "--launch",
    type=arguments.LAUNCH,
    default="worker_service serve --listen {listen} --ca {ca} --cert {cert} --key {key} "
    "--no-limits --log-level warning --stop-grace 2s",
    show_default=True,
    help="Server to start: a Python module and its arguments.",
)
# Two streams are enough for the detector to find this race in a real server.
CANARY_RACE: Final = "budget bytes are released without the lock"
CANARY_CHECKS: Final = "^streams.two-jobs$"
CANARY_VARIABLE: Final = "ByteBudget._held_bytes"
QUICK_SCHEDULES: Final = 50
QUICK_LEAVES_OUT: Final = (
    "the exhaustive search (`races explore --technique dfs`), all but "
    f"{QUICK_SCHEDULES} random schedules of a model and technique (`races explore`), and the proof "
    "that each technique finds the planted races (`races prove`)"
)


@click.group()
def races() -> None:
    """Find races: schedule search, a happens-before detector, linearizability.

    Exit code 0: nothing found. 1: a race was found, or a planted race was missed. 2: inconclusive:
    the harness or its environment failed.

    harness/races/scenario.py documents scenarios, harness/races/planting.py planted races.
    """


@races.result_callback()
def _end(code: int) -> None:
    sys.exit(code)


@races.command()
@_SCENARIOS
@click.option("-k", "--keyword", default="", help="Run only scenarios whose name contains this.")
@click.option(
    "--technique", "techniques", multiple=True,
    type=click.Choice([technique.name for technique in TECHNIQUES]),
    help="Run only this technique; repeatable.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=1, show_default=True, help="Random seed.")
@click.option(
    "--schedules",
    type=arguments.whole(1, 1_000_000),
    help="Schedules per randomised technique [default: the technique's own]; for dfs a maximum, "
    "never below its own.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default="results/races", show_default=True,
    help="Directory for failures to replay.",
)  # fmt: skip
@_SHARE
def explore(
    *,
    scenarios: tuple[Path, ...],
    keyword: str,
    share: tuple[int, int],
    techniques: tuple[str, ...],
    seed: int,
    schedules: int | None,
    out: Path,
) -> int:
    """Explore the schedules of small models."""
    chosen = [each for each in load_scenarios(scenarios) if keyword in each.name]
    chosen = chosen[share[0] :: share[1]]
    if not chosen:
        raise BrokenError(f"no scenario's name contains {keyword!r}")

    def explore_one(scenario: Scenario) -> list[Exploration]:
        plan = plan_explorations(scenario, [seed], schedules, techniques)
        return explore_in_subprocess(scenarios, plan)

    made: list[Exploration] = []
    for scenario, explorations in zip(chosen, _map_parallel(explore_one, chosen), strict=True):
        click.echo(f"{scenario.name:20} {scenario.promise}")
        for exploration in explorations:
            click.echo(f"    {_line(exploration)}")
            if exploration.failure is not None:
                _report_failure(scenario, exploration, scenarios, out)
        made += explorations
    failed = [each for each in made if each.failure is not None]
    click.echo(
        f"{len(chosen)} scenarios, {sum(each.schedules for each in made)} schedules: "
        + (f"{len(failed)} explorations failed" if failed else "nothing found")
    )
    return 1 if failed else 0


def _line(exploration: Exploration) -> str:
    extent = "exhaustive" if exploration.exhausted else f"seed {exploration.seed}"
    verdict = "FAIL" if exploration.failure is not None else "PASS"
    return (
        f"{verdict}  {exploration.technique:16} {exploration.schedules:6} schedules, {extent}, "
        f"{exploration.seconds:.1f} s"
    )


def _report_failure(
    scenario: Scenario, exploration: Exploration, files: Sequence[Path], out: Path
) -> None:
    path = out / f"{scenario.name}-{exploration.technique}-{exploration.seed}.json"
    save_failure(path, exploration, files)
    command = f"{sys.executable} -m harness races replay {path}"
    click.echo("\n" + failure_text(scenario, exploration, command) + "\n")


@races.command("replay")
@click.argument("file", type=_FILES)
def replay_command(*, file: Path) -> int:
    """Run a failing schedule again that `explore` saved."""
    exploration, files = load_failure(file)
    scenario = find_scenario(load_scenarios(files), exploration.scenario)
    if exploration.failure is None:
        raise BrokenError(f"{file} has no failure to replay")
    failure = replay(scenario, find_technique(exploration.technique), exploration.failure)
    if failure is None:
        click.echo(f"PASS  {scenario.name}: this schedule no longer breaks the promise")
        return 0
    command = f"{sys.executable} -m harness races replay {file}"
    click.echo(failure_text(scenario, dataclasses.replace(exploration, failure=failure), command))
    return 1


@races.command("prove")
@_SCENARIOS
@_PLANTED
@_SOURCE
@click.option("-k", "--keyword", default="", help="Prove only races whose name contains this.")
@click.option(
    "--seeds",
    type=arguments.whole(1, 1000),
    default=len(SEEDS),
    show_default=True,
    help="Number of seeds, counted from 1.",
)
@click.option(
    "--all", "everything", is_flag=True,
    help="Run every technique with every seed (slow); default: only the techniques that must find "
    "the race, and dfs with the first seed only.",
)  # fmt: skip
@_SHARE
def prove_command(
    *,
    share: tuple[int, int],
    scenarios: tuple[Path, ...],
    planted_file: Path,
    source: Path,
    keyword: str,
    seeds: int,
    everything: bool,
) -> int:
    """Plant races in copies of the code and check that they are found.

    Prints a Markdown table: schedules and seconds that each technique took for each race.
    """
    races = [race for race in load_planted(planted_file) if keyword in race.name]
    races = races[share[0] :: share[1]]
    if not races:
        raise BrokenError(f"no planted race's name contains {keyword!r}")
    numbers = range(1, seeds + 1)
    click.echo(
        f"median schedules and seconds until found, over {seeds} seeds"
        f"{'' if everything else ' (dfs: the first)'}; -: not within {SCHEDULES}; (3/5): found "
        "with three of five seeds\n"
    )
    names = [technique.name for technique in TECHNIQUES]
    click.echo(_row("planted race", names))
    click.echo("|".join(("", *["---"] * (len(names) + 1), "")))
    loaded = load_scenarios(scenarios)

    def prove_one(race: PlantedRace) -> PlantedProof:
        scenario = find_scenario(loaded, race.scenario)
        techniques = () if everything else race.found_by
        plan = plan_explorations(scenario, numbers, SCHEDULES, techniques, every_seed=everything)
        return prove(race, source, scenarios, plan)

    proofs: list[PlantedProof] = []
    for proof in _map_parallel(prove_one, races):
        proofs.append(proof)
        click.echo(_row(proof.race.name, [_cell(proof, name) for name in names]))
        if proof.missed:
            click.echo(f"    MISSED by {', '.join(proof.missed)}, which must find it")
    last = f"**found with every seed, of {len(races)}; median seconds**"
    click.echo(_row(last, [_sum(proofs, name) for name in names]) + "\n")
    missed = sum(bool(proof.missed) for proof in proofs)
    click.echo(
        f"{len(races)} races planted, {len(races) - missed} found by every technique that must"
    )
    return 1 if missed else 0


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {first:<60} | {' | '.join(f'{cell:<16}' for cell in cells)} |"


def _cell(proof: PlantedProof, technique: str) -> str:
    made = proof.of(technique)
    found = [each for each in made if each.failure is not None]
    if not made:
        return ""
    if not found:
        return "-"
    share = "" if len(found) == len(made) else f" ({len(found)}/{len(made)})"
    schedules = statistics.median_low(each.schedules for each in found)
    return f"{schedules}{share}, {_median_s(found)}"


def _median_s(explorations: Sequence[Exploration]) -> str:
    return f"{statistics.median(each.seconds for each in explorations):.2f} s"


def _sum(proofs: Sequence[PlantedProof], technique: str) -> str:
    """Return how many races a technique finds with every seed, and its median seconds."""
    tried = [made for proof in proofs if (made := proof.of(technique))]
    found = [each for made in tried for each in made if each.failure is not None]
    if not found:
        return "0" if tried else ""
    always = sum(all(each.failure is not None for each in made) for made in tried)
    share = "" if len(tried) == len(proofs) else f" of {len(tried)}"
    return f"{always}{share}, {_median_s(found)}"


@races.command("server")
@_PLANTED
@_SOURCE
@_WATCH
@_LAUNCH
@click.option(
    "--checks",
    type=arguments.PATTERN,
    default="^streams.bursty$",
    show_default=True,
    help="Checks to run (regular expression).",
)
@click.option("--plant", default="", help="Name of a planted race to break the server with.")
def server_command(
    *, planted_file: Path, source: Path, watch: Path, launch: str, checks: str, plant: str
) -> int:
    """Run checks against a real gRPC server under the detector.

    The default check, streams.bursty, loads it with hundreds of bursty streamers.
    """
    if plant:
        with plant_in_copy(_find_race(load_planted(planted_file), plant), source) as tree:
            watched = judge_under_detector(watch, launch, checks, tree)
    else:
        watched = judge_under_detector(watch, launch, checks)
    for text in watched.found:
        click.echo(text)
    click.echo(
        f"{len(watched.found)} races in {watched.accesses} accesses of {watched.threads} threads"
    )
    if not watched.checks_passed:
        click.echo(f"the server failed its checks:\n{watched.checks_output}")
    return 1 if watched.found or not watched.checks_passed else 0


@races.command("canary")
@_PLANTED
@_SOURCE
@_WATCH
@_LAUNCH
@click.option(
    "--checks",
    type=arguments.PATTERN,
    default=CANARY_CHECKS,
    show_default=True,
    help="Checks to run (regular expression).",
)
@click.option("--plant", default=CANARY_RACE, show_default=True, help="Name of the race to plant.")
@click.option(
    "--variable",
    default=CANARY_VARIABLE,
    show_default=True,
    help="Variable that must be reported as racing.",
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
    """Plant a race in a real server; it must be reported."""
    with plant_in_copy(_find_race(load_planted(planted_file), plant), source) as tree:
        watched = judge_under_detector(watch, launch, checks, tree)
    if any(f"DATA RACE on {variable}\n" in text for text in watched.found):
        click.echo(f"PASS  the race on {variable} that was planted in the server was reported")
        return 0
    click.echo(
        f"FAIL  {plant}: no race on {variable} was reported in {watched.accesses} accesses of "
        f"{watched.threads} threads; the detector is blind in a server\n{watched.checks_output}"
    )
    return 1


@races.command("all")
@click.option(
    "--quick",
    is_flag=True,
    help="Leave out the long searches: dfs, most random schedules, and all planted races but the "
    "canary.",
)
@_SHARE
@click.pass_context
def all_command(context: click.Context, *, quick: bool, share: tuple[int, int]) -> int:
    """Run explore, prove, server and canary (`make race`)."""
    if quick:
        click.echo(f"left out: {QUICK_LEAVES_OUT}")
    techniques = tuple(each.name for each in TECHNIQUES if not (quick and each.exhaustive))
    schedules = QUICK_SCHEDULES if quick else None
    codes: list[int] = [
        context.invoke(explore, techniques=techniques, schedules=schedules, share=share)
    ]
    if not quick:
        codes.append(context.invoke(prove_command, share=share))
    codes += [context.invoke(part) for part in (server_command, canary_command)]
    return max(codes)


def _find_race(planted: Iterable[PlantedRace], name: str) -> PlantedRace:
    for race in planted:
        if race.name == name:
            return race
    raise BrokenError(f"unknown planted race {name!r}")


def _map_parallel[Thing, Answer](
    function: Callable[[Thing], Answer], things: Sequence[Thing]
) -> Iterator[Answer]:
    """Yield the answers in order, computed two at a time; the first exception ends it."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        try:
            yield from pool.map(function, things)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
