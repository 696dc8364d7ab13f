"""`python -m harness mutation-score`, which `make mutation-score` runs."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

import click

from harness.drive.identities import make_identities
from harness.host.repository import ROOT
from harness.mutation.code_mutants import CodeMutant
from harness.program import arguments
from harness.record.typed_json import to_values
from harness.record.whole_file import write_whole
from harness.run.mutation_score import (
    Fate,
    Score,
    Scorer,
    all_mutants,
    module_names,
    sampled,
    score,
    wilson_interval,
)
from harness.run.run_directory import environment, fill_seed, new_run_directory

RESULT: Final = "mutation-score.json"
_SAMPLE_MAX: Final = 100_000


@click.command("mutation-score")
@click.option(
    "--sample", type=arguments.whole(1, _SAMPLE_MAX), default=100, show_default=True,
    help="Number of mutants to draw at random.",
)  # fmt: skip
@click.option(
    "--seed", default="", metavar="SEED", help="Reuse a run's random seed; default: a new one."
)
@click.option(
    "--module", "modules", multiple=True, metavar="MODULE",
    help="Draw only from this module of the service; repeatable; default: all.",
)  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List the sample without judging it.")
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Directory for the result; default: a new one in results/.",
)  # fmt: skip
def mutation_score(
    sample: int, seed: str, modules: tuple[str, ...], out: Path | None, *, listing: bool
) -> None:
    """Measure which share of random code mutants the checks and the tests notice.

    Each mutant is a copy of our server with one mechanical change: it is judged by the quick checks
    on this host, then by the tests. About 20 s for each mutant. Exit code 0: measured, and the
    survivors are shown. 2: the harness failed, or the unbroken server does not pass.
    """
    seed, modules = fill_seed(seed), modules or tuple(module_names(ROOT))
    mutants = sampled(ROOT, modules, sample, seed)
    if listing:
        for mutant in mutants:
            click.echo(mutant.name)
        return
    directory = new_run_directory(out)
    about = {"seed": seed, **environment("harness")}
    click.echo("\n".join(f"{name:12} {value}" for name, value in about.items()))
    numbers = {mutant: number for number, mutant in enumerate(mutants, 1)}

    def started(mutant: CodeMutant) -> None:
        click.echo(f"[{numbers[mutant]}/{len(mutants)}] started {mutant.name}")

    outcomes = []
    with tempfile.TemporaryDirectory(prefix="jobworker-score-") as temporary:
        scorer = Scorer(ROOT, make_identities(Path(temporary) / "identities"), Path(temporary))
        click.echo("judging the unbroken code")
        scorer.prepare(sorted({mutant.file.removesuffix(".py") for mutant in mutants}))
        for test in scorer.failing_tests:
            click.echo(f"the unbroken code fails {test}, which judges no mutant")
        for number, outcome in enumerate(score(scorer, mutants, started), 1):
            outcomes.append(outcome)
            click.echo(
                f"[{number}/{len(mutants)}] {outcome.fate} {outcome.mutant} "
                f"({outcome.seconds:.0f} s) {outcome.by}"
            )
    result = Score(seed, modules, len(all_mutants(ROOT, modules)), tuple(outcomes))
    write_whole(
        directory / RESULT, json.dumps({"about": about, "score": to_values(result)}, indent=1)
    )
    click.echo(summary(result))
    click.echo(f"result: {directory / RESULT}")


def summary(result: Score) -> str:
    """Return what a sample says: the survivors with their diffs, the kinds, the figures."""
    lines = [
        f"\nsurvived: {outcome.mutant}\n{outcome.diff}"
        for outcome in result.outcomes
        if outcome.fate is Fate.SURVIVED
    ]
    kinds = Counter(outcome.operator for outcome in result.outcomes)
    survivors = Counter(
        outcome.operator for outcome in result.outcomes if outcome.fate is Fate.SURVIVED
    )
    lines += [
        f"{kind:20} {survivors[kind]} of {count} survived" for kind, count in kinds.most_common()
    ]
    invalid, noticed = result.count(Fate.INVALID), result.valid - result.count(Fate.SURVIVED)
    lines += [
        f"invalid, since they cannot be imported, and left out of the figures: {invalid}",
        _share("killed by the judge", result.count(Fate.JUDGE), result.valid),
        _share("killed by the judge or by tests", noticed, result.valid),
        f"drawn from {result.places} mutants of {len(result.modules)} modules, seed {result.seed}",
    ]
    return "\n".join(lines)


def _share(what: str, hits: int, total: int) -> str:
    low, high = wilson_interval(hits, total)
    percent = 100 * hits / total if total else 0
    return (
        f"{what}: {hits} of {total}, {percent:.0f} % (95 % confidence {100 * low:.0f} to "
        f"{100 * high:.0f} %)"
    )
